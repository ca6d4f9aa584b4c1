//! Runs one server as a process: `conclave server`, or the binary called `etcd`.

use std::time::Duration;
use std::{env, process::ExitCode};

use conclave_server::config::{self, Invocation, Settings};
use rustix::process::{Signal, getpid};
use signal_hook::low_level::emulate_default_handler;

use crate::{
    failure::Failure,
    output::{complain, write},
    stop::Stop,
};

/// How long the process waits for blocked threads when it ends.
const EXIT_PATIENCE: Duration = Duration::from_secs(5);

/// The name under which the server was started.
#[derive(Clone, Copy)]
pub(crate) enum Program {
    Conclave,
    Etcd,
}

impl Program {
    fn version(self) -> String {
        match self {
            Self::Conclave => config::version_text(),
            Self::Etcd => config::etcd_version_text(),
        }
    }

    /// Ends the process after an orderly shutdown for `signal`. As `etcd` it restores the signal's
    /// default action and raises it again, so that its parent sees a process ended by that signal
    /// (143 in a shell for SIGTERM), unless it is the first process of a container.
    fn end(self, signal: Signal) -> ExitCode {
        let is_etcds = signal == Signal::TERM || signal == Signal::INT;
        if matches!(self, Self::Etcd) && is_etcds && !getpid().is_init() {
            // If that fails, exit code 0 still says that the shutdown was orderly.
            emulate_default_handler(signal.as_raw()).ok();
        }
        ExitCode::SUCCESS
    }
}

/// Runs what the flags and the environment ask for.
pub(crate) fn main(flags: Vec<String>, program: Program) -> ExitCode {
    let environment = env::vars_os().map(|(name, value)| {
        (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned())
    });
    let done = match config::parse(flags, environment) {
        Ok(Invocation::Run(settings)) => match run(*settings) {
            Ok(Some(signal)) => return program.end(signal),
            result => result.map(drop),
        },
        Ok(Invocation::Version) => write(program.version().as_bytes()),
        Ok(Invocation::Help) => write(config::usage().as_bytes()),
        Err(error) => {
            complain(&format!("error verifying flags, {error}. See 'conclave server --help'."));
            return ExitCode::from(error.exit_code());
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// Runs a server until it ends; returns the signal that asked for it, if one did.
fn run(settings: Settings) -> Result<Option<Signal>, Failure> {
    conclave_server::logging::init(&settings.log)
        .map_err(|error| Failure::error(error.to_string()))?;
    conclave_server::logging::note_panics();
    let runtime = crate::runtime()?;
    let result = runtime.block_on(async {
        let mut stop = Stop::listen().map_err(|error| error.to_string())?;
        let mut asked = None;
        let shutdown = async { asked = Some(stop.next().await) };
        match conclave_server::run(settings, shutdown).await {
            Err(error) if error.is_removal() => {
                conclave_server::logging::last(&error.to_string());
                Ok(None)
            }
            result => result.map(|()| asked).map_err(|error| error.to_string()),
        }
    });
    // Reads still running for disconnected clients must not delay the exit.
    runtime.shutdown_timeout(EXIT_PATIENCE);
    result.map_err(|reason: String| {
        conclave_server::logging::last(&reason);
        Failure::reported()
    })
}
