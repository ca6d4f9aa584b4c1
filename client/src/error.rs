//! What can go wrong, by what the caller can do about it.
//!
//! A write whose answer was lost is neither failed nor done. [`Error::outcome`] says what is known,
//! and this crate never sends such a write again unless the cluster recognises it.

use std::{borrow::Cow, error::Error as _, time::Duration};

use tonic::{Code, ConnectError, Status};

/// What is known about the effect of a failed call.
///
/// ```no_run
/// # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
/// use conclave_client::Outcome;
///
/// if let Err(error) = client.put("seats/4", "ada").await {
///     match error.outcome() {
///         Outcome::NotApplied => return Err(error), // the seat is free for another attempt
///         Outcome::Applied => {}
///         // A read tells, as long as nobody else writes the key.
///         Outcome::Unknown => match client.get("seats/4").await?.one() {
///             Some(kv) if kv.value == "ada" => {}
///             _ => return Err(error),
///         },
///     }
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The request changed nothing and never will.
    NotApplied,
    /// The answer was lost: the request may have been applied, or may still be.
    Unknown,
    /// The request took effect.
    Applied,
}

/// A failed call. Variants differ in what the caller can do.
///
/// ```
/// use conclave_client::{Error, Outcome};
///
/// /// What an operator reads, and whether the program should retry.
/// fn advice(error: &Error) -> (&'static str, bool) {
///     match error {
///         Error::Config { .. } | Error::Invalid(_) => ("mend the program", false),
///         Error::Denied(_) => ("ask for a role with this permission", false),
///         Error::NoSpace(_) => ("free space, then disarm the alarm", false),
///         Error::Overloaded(_) | Error::Busy | Error::NotYet => ("wait", true),
///         _ if error.outcome() == Outcome::Unknown => ("look what became of it", false),
///         _ => ("see what it says", false),
///     }
/// }
///
/// let status = tonic::Status::resource_exhausted("etcdserver: mvcc: database space exceeded");
/// let error = Error::from_status(status, "10.0.0.1:2379");
/// assert_eq!(advice(&error), ("free space, then disarm the alarm", false));
/// assert_eq!(error.outcome(), Outcome::NotApplied);
/// ```
///
/// The text of an error that a connection caused ends with the innermost cause, such as `Connection
/// refused`. [`Error::source`](std::error::Error::source) is therefore always `None`; the whole
/// chain is that of [`Error::status`].
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The client was configured with something unusable: correct the configuration.
    #[error("{message}")]
    Config {
        /// Which setting is wrong, and why.
        message: String,
    },
    /// The request breaks a rule of the API: correct the request.
    #[error("{}", .0.message())]
    Invalid(Status),
    /// The state of the store forbids the request (lease exists, not leader, ...): read it and
    /// decide.
    #[error("{}", .0.message())]
    Refused(Status),
    /// The lease or member does not exist, or no longer exists.
    #[error("{}", .0.message())]
    NotFound(Status),
    /// Others hold the lock or lead, and the time to wait for it is over: try again later.
    #[error("held by others")]
    Busy,
    /// What was waited for did not happen in time: wait again, or go on without it.
    #[error("not in time")]
    NotYet,
    /// What the call needs is no longer held: stop working on what it protected.
    #[error("lost: {reason}")]
    Lost {
        /// What is known about the loss.
        reason: Cow<'static, str>,
    },
    /// The write took effect once, but its answer was lost, and the cluster did not keep the answer
    /// because it is too large or lists the keys of a range: read what you need of it.
    #[error("done as of revision {revision}, but the answer was lost")]
    AnswerLost {
        /// A revision by which the write had taken effect.
        revision: i64,
    },
    /// The value of a key is not what the program expects: correct the value, or the type.
    #[error("{key}: {message}")]
    Decode {
        /// The key.
        key: String,
        /// What is wrong with its value, and where.
        message: String,
    },
    /// The requested revision was compacted: read the current state and go on from there.
    #[error("etcdserver: mvcc: required revision has been compacted")]
    Compacted {
        /// The oldest revision that can still be read, 0 if the server did not say.
        revision: i64,
    },
    /// The requested revision does not exist yet on the answering member.
    #[error("{}", .0.message())]
    FutureRevision(Status),
    /// The store is over its quota: free space, then disarm the alarm.
    #[error("{}", .0.message())]
    NoSpace(Status),
    /// The server is overloaded and rejects calls: try again later.
    #[error("{}", .0.message())]
    Overloaded(Status),
    /// Credentials are missing, wrong, or lack the permission.
    #[error("{}", .0.message())]
    Denied(Status),
    /// The server does not implement this call.
    #[error("{}", .0.message())]
    Unimplemented(Status),
    /// The server found its data corrupted: an operator is needed.
    #[error("{}", .0.message())]
    Corrupt(Status),
    /// No endpoint could serve the call now: try again if the outcome allows it.
    #[error("{endpoint}: {}", in_full(.status))]
    Unavailable {
        /// Whether the call may have taken effect.
        outcome: Outcome,
        /// The endpoint tried last.
        endpoint: String,
        /// What it answered, or how the connection failed.
        status: Status,
    },
    /// The time allowed for the call ran out.
    #[error("{endpoint}: no answer within {timeout:?}")]
    Deadline {
        /// Whether the call may have taken effect.
        outcome: Outcome,
        /// The endpoint that was asked.
        endpoint: String,
        /// How long the call waited, with all its attempts.
        timeout: Duration,
    },
    /// An answer that violates the protocol, or an error that none of the other variants describes.
    #[error("{endpoint}: {}", .status.message())]
    Unexpected {
        /// Whether the call may have taken effect.
        outcome: Outcome,
        /// The endpoint that answered.
        endpoint: String,
        /// Its answer.
        status: Status,
    },
}

impl Error {
    /// What is known about the effect of the failed call.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Unavailable { outcome, .. }
            | Self::Deadline { outcome, .. }
            | Self::Unexpected { outcome, .. } => *outcome,
            Self::AnswerLost { .. } => Outcome::Applied,
            _ => Outcome::NotApplied,
        }
    }

    /// The gRPC status behind the error, if there was one.
    #[must_use]
    pub fn status(&self) -> Option<&Status> {
        match self {
            Self::Config { .. }
            | Self::Busy
            | Self::NotYet
            | Self::Lost { .. }
            | Self::AnswerLost { .. }
            | Self::Compacted { .. }
            | Self::Decode { .. }
            | Self::Deadline { .. } => None,
            Self::Invalid(status)
            | Self::Refused(status)
            | Self::NotFound(status)
            | Self::FutureRevision(status)
            | Self::NoSpace(status)
            | Self::Overloaded(status)
            | Self::Denied(status)
            | Self::Unimplemented(status)
            | Self::Corrupt(status)
            | Self::Unavailable { status, .. }
            | Self::Unexpected { status, .. } => Some(status),
        }
    }

    /// The same error of a call that ended after `waited`.
    pub(crate) fn after(mut self, waited: Duration) -> Self {
        if let Self::Deadline { timeout, .. } = &mut self {
            *timeout = Duration::from_millis(u64::try_from(waited.as_millis()).unwrap_or(u64::MAX));
        }
        self
    }

    /// Whether a user who is known to the server lacks a permission. The server itself works.
    #[must_use]
    pub fn is_permission_denied(&self) -> bool {
        matches!(self, Self::Denied(status) if status.code() != Code::InvalidArgument)
    }

    pub(crate) fn session_lost() -> Self {
        Self::lost("the session ended, or may have")
    }

    pub(crate) fn lost(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::Lost { reason: reason.into() }
    }

    /// Turns a status that `endpoint` returned for a call into an error.
    #[must_use]
    pub fn from_status(status: Status, endpoint: &str) -> Self {
        let endpoint = endpoint.to_owned();
        if status.source().is_some() {
            let outcome = if never_sent(&status) { Outcome::NotApplied } else { Outcome::Unknown };
            return Self::Unavailable { outcome, endpoint, status };
        }
        match status.code() {
            Code::InvalidArgument if LOGIN_REFUSALS.contains(&status.message()) => {
                Self::Denied(status)
            }
            Code::InvalidArgument => Self::Invalid(status),
            // A learner cannot serve this call, but other members can.
            Code::Unavailable | Code::FailedPrecondition
                if status.message() == NOT_FOR_LEARNERS =>
            {
                Self::Unavailable { outcome: Outcome::NotApplied, endpoint, status }
            }
            Code::FailedPrecondition | Code::AlreadyExists | Code::Aborted => Self::Refused(status),
            Code::NotFound => Self::NotFound(status),
            Code::OutOfRange => out_of_range(status),
            Code::ResourceExhausted if status.message().ends_with("space exceeded") => {
                Self::NoSpace(status)
            }
            Code::ResourceExhausted if status.message().contains("larger than max") => {
                Self::Invalid(status)
            }
            Code::ResourceExhausted => Self::Overloaded(status),
            // etcd sends this one with code Unknown by mistake; etcd's clients match the text.
            Code::Unknown if status.message() == TOO_MANY_REQUESTS => Self::Overloaded(status),
            Code::PermissionDenied | Code::Unauthenticated => Self::Denied(status),
            Code::Unimplemented => Self::Unimplemented(status),
            Code::DataLoss => Self::Corrupt(status),
            Code::Unavailable => {
                let outcome = if status.message() == NO_LEADER {
                    Outcome::NotApplied
                } else {
                    Outcome::Unknown
                };
                Self::Unavailable { outcome, endpoint, status }
            }
            _ => Self::Unexpected { outcome: Outcome::Unknown, endpoint, status },
        }
    }

    /// Whether the same call may succeed some time later.
    pub(crate) fn is_passing(&self) -> bool {
        self.is_unavailable() || matches!(self, Self::Deadline { .. } | Self::Overloaded(_))
    }

    /// Whether another endpoint, or the same one a moment later, may answer.
    pub(crate) fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}

/// etcd sends these two with code `InvalidArgument`: a wrong name or password, and a call without a
/// user on a server with authentication.
const LOGIN_REFUSALS: [&str; 2] = [
    "etcdserver: authentication failed, invalid user ID or password",
    "etcdserver: user name is empty",
];
const TOO_MANY_REQUESTS: &str = "etcdserver: too many requests";
const NO_LEADER: &str = "etcdserver: no leader";
const NOT_FOR_LEARNERS: &str = "etcdserver: rpc not supported for learner";

/// The message of a status and the innermost cause, if the message does not contain it: tonic says
/// `transport error` where the cause says that the server asked for a certificate.
fn in_full(status: &Status) -> String {
    let mut root = status.source();
    while let Some(cause) = root.and_then(std::error::Error::source) {
        root = Some(cause);
    }
    let message = status.message();
    match root.map(ToString::to_string) {
        Some(cause) if !message.contains(&cause) => format!("{message}: {cause}"),
        _ => message.to_owned(),
    }
}

fn out_of_range(status: Status) -> Error {
    match status.message() {
        text if text.ends_with("has been compacted") => Error::Compacted { revision: 0 },
        text if text.ends_with("is a future revision") => Error::FutureRevision(status),
        _ => Error::Invalid(status),
    }
}

/// Whether the request failed while connecting, so that nothing has left this process.
pub(crate) fn never_sent(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.is::<ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(code: Code, message: &str) -> Outcome {
        Error::from_status(Status::new(code, message), "n1").outcome()
    }

    #[test]
    fn a_refusal_is_known_not_to_be_applied() {
        for (code, message) in [
            (Code::InvalidArgument, "etcdserver: key is not provided"),
            (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded"),
            (Code::Unknown, "etcdserver: too many requests"),
            (Code::Unavailable, "etcdserver: no leader"),
            (Code::NotFound, "etcdserver: requested lease not found"),
        ] {
            assert_eq!(outcome(code, message), Outcome::NotApplied, "{message}");
        }
    }

    #[test]
    fn a_lost_answer_is_unknown() {
        for (code, message) in [
            (Code::Unavailable, "etcdserver: leader changed"),
            (Code::Unavailable, "etcdserver: request timed out"),
            (Code::Unavailable, "etcdserver: server stopped"),
            (Code::Unknown, "something else"),
            (Code::Cancelled, "context canceled"),
        ] {
            assert_eq!(outcome(code, message), Outcome::Unknown, "{message}");
        }
    }

    #[test]
    fn a_learner_is_an_endpoint_that_cannot_serve() {
        // The second code is that of etcd since 3.5.13.
        for code in [Code::Unavailable, Code::FailedPrecondition] {
            let error = Error::from_status(Status::new(code, NOT_FOR_LEARNERS), "n1");
            assert!(error.is_unavailable(), "{error:?}");
            assert_eq!(error.outcome(), Outcome::NotApplied);
        }
    }

    #[test]
    fn a_login_that_fails_is_denied_and_nothing_else_that_is_invalid() {
        for message in LOGIN_REFUSALS {
            let error = Error::from_status(Status::invalid_argument(message), "n1");
            assert!(matches!(error, Error::Denied(_)), "{error:?}");
            assert!(!error.is_permission_denied(), "{message}");
        }
        let error =
            Error::from_status(Status::permission_denied("etcdserver: permission denied"), "n1");
        assert!(error.is_permission_denied());
        let error =
            Error::from_status(Status::invalid_argument("etcdserver: key is not provided"), "n1");
        assert!(matches!(error, Error::Invalid(_)), "{error:?}");
    }

    #[test]
    fn an_error_tells_its_innermost_cause_once() {
        let alert = std::io::Error::other("received fatal alert: CertificateRequired");
        let connect = ConnectError(Box::new(std::io::Error::other(alert)));
        let mut status = Status::unavailable("transport error");
        status.set_source(std::sync::Arc::new(connect));
        let text = Error::from_status(status.clone(), "n1:2379").to_string();
        assert_eq!(text, "n1:2379: transport error: received fatal alert: CertificateRequired");
        let told = Status::unavailable("connect: received fatal alert: CertificateRequired");
        let mut told = told;
        told.set_source(std::sync::Arc::new(std::io::Error::other("CertificateRequired")));
        let text = Error::from_status(told, "n1").to_string();
        assert_eq!(text, "n1: connect: received fatal alert: CertificateRequired");
    }

    #[test]
    fn only_a_failed_connect_proves_that_nothing_was_sent() {
        let connect = ConnectError(Box::new(std::io::Error::other("refused")));
        let error = Error::from_status(Status::from_error(Box::new(connect)), "n1");
        assert_eq!(error.outcome(), Outcome::NotApplied);
        let broken = Status::from_error(Box::new(std::io::Error::other("reset")));
        assert_eq!(Error::from_status(broken, "n1").outcome(), Outcome::Unknown);
    }
}
