//! Failures of commands, with etcdctl's exit codes and its single line on standard error.

use std::{
    error::Error as _,
    io::{IsTerminal, stderr},
    process::ExitCode,
    time::Duration,
};

use conclave_client::{Error, Outcome};
use humantime::format_duration;

use crate::output::complain;

/// Part of the message of a failed login.
const LOGIN_FAILED: &str = "authentication failed, ";

/// A failed command.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    /// Printed as `Error: ...`; `None` if everything was already reported.
    message: Option<String>,
    /// Possible cause and remedy, shown to people only.
    hint: Option<String>,
}

impl Failure {
    fn new(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: Some(message.into()), hint: None }
    }

    /// A failed request.
    pub(crate) fn error(message: impl Into<String>) -> Self {
        Self::new(1, message)
    }

    /// Some of several endpoints failed; each was reported on its own line.
    pub(crate) fn reported() -> Self {
        Self { code: 1, message: None, hint: None }
    }

    /// A child command exited with this code and has reported why.
    pub(crate) fn exit(code: u8) -> Self {
        Self { code, message: None, hint: None }
    }

    /// A child command exited with this code, for this reason.
    pub(crate) fn exit_because(code: u8, message: impl Into<String>) -> Self {
        Self::new(code, message)
    }

    /// The server did not do what a command over a connection needs.
    pub(crate) fn bad_connection(error: Error) -> Self {
        Self { code: 2, ..Self::from(error) }
    }

    /// Like [`Failure::bad_connection`], with a message of our own.
    pub(crate) fn bad_status(message: impl Into<String>) -> Self {
        Self::new(2, message)
    }

    /// Standard input cannot be parsed.
    pub(crate) fn invalid_input(message: impl Into<String>) -> Self {
        Self::new(3, message)
    }

    /// A flag asks for something that does not exist.
    pub(crate) fn bad_feature(message: impl Into<String>) -> Self {
        Self::new(4, message)
    }

    /// A long-running command was ended by the server.
    pub(crate) fn interrupted(message: impl Into<String>) -> Self {
        Self::new(5, message)
    }

    /// The same failure with the exit code of a long-running command.
    pub(crate) fn interrupting(self) -> Self {
        Self { code: 5, ..self }
    }

    /// The client cannot be created from the given settings.
    pub(crate) fn unusable(error: Error) -> Self {
        match error {
            Error::Config { message } => Self::bad_arguments(message),
            other => other.into(),
        }
    }

    /// Standard input or output failed.
    pub(crate) fn input_output(message: impl Into<String>) -> Self {
        Self::new(6, message)
    }

    /// A signal arrived before `before`.
    pub(crate) fn stopped(before: &str) -> Self {
        Self::error(format!("a signal came before {before}"))
    }

    /// Like other failures, but a timeout names what was waited for.
    pub(crate) fn awaited(what: &str, at_most: Option<Duration>, error: Error) -> Self {
        match (error, at_most) {
            (Error::NotYet, Some(at_most)) => {
                Self::error(format!("{what} within {}", format_duration(at_most)))
            }
            (error, _) => Self::from(error),
        }
    }

    /// The arguments make no sense.
    pub(crate) fn bad_arguments(message: impl Into<String>) -> Self {
        Self::new(128, message)
    }

    /// Names the refused action, as etcdctl does for some verbs.
    pub(crate) fn about(action: &str, error: Error) -> Self {
        let failure = Self::from(error);
        let message = failure.message.map(|message| format!("{action} ({message})"));
        Self { message, ..failure }
    }

    /// Prints the failure and returns the exit code.
    pub(crate) fn report(self) -> ExitCode {
        if let Some(message) = &self.message {
            complain(&format!("Error: {message}"));
        }
        if let Some(hint) = self.hint
            && stderr().is_terminal()
        {
            complain(&hint);
        }
        ExitCode::from(self.code)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let message = describe(&error);
        // etcdctl logs in before it does anything else, which has an exit code of its own.
        let code = if message.contains(LOGIN_FAILED) { 2 } else { 1 };
        Self { code, message: Some(message), hint: hint(&error) }
    }
}

/// The error text of etcd's own client.
pub(crate) fn describe(error: &Error) -> String {
    const TIMED_OUT: &str = "context deadline exceeded";
    match error {
        Error::Deadline { .. } => TIMED_OUT.to_owned(),
        Error::Unavailable { status, .. } | Error::Unexpected { status, .. } => {
            if status.message().starts_with("etcdserver: ") {
                status.message().to_owned()
            } else if matches!(error, Error::Unavailable { .. }) {
                TIMED_OUT.to_owned()
            } else {
                format!("rpc error: code = {:?} desc = {}", status.code(), status.message())
            }
        }
        Error::Unimplemented(status) => {
            format!("rpc error: code = Unimplemented desc = {}", status.message())
        }
        other => other.to_string(),
    }
}

fn hint(error: &Error) -> Option<String> {
    if error.outcome() == Outcome::Unknown {
        return Some(format!(
            "No answer came ({error}): the request may or may not have been applied. \
             Look at the current state before you repeat it."
        ));
    }
    let Error::Unavailable { endpoint, status, .. } = error else { return None };
    let mut cause: Option<&dyn std::error::Error> = status.source();
    let mut reason = status.message().to_owned();
    while let Some(error) = cause {
        reason = error.to_string();
        cause = error.source();
    }
    Some(format!(
        "{endpoint}: {reason}. Is the server running, and is --endpoints right? \
         Try `conclave endpoint health`."
    ))
}
