//! Runs one server as a process: `conclave server`, or the binary called `etcd`.

use std::time::Duration;
use std::{env, process::ExitCode};

use conclave_server::config::{self, Invocation, Settings};

use crate::{
    failure::Failure,
    output::{complain, write},
    stop::Stop,
};

/// How long the process waits for blocked threads when it ends.
const EXIT_PATIENCE: Duration = Duration::from_secs(5);

/// Runs what the flags and the environment ask for; `version` is the version text for the program's
/// name.
pub(crate) fn main(flags: Vec<String>, version: fn() -> String) -> ExitCode {
    let environment = env::vars_os().map(|(name, value)| {
        (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned())
    });
    let done = match config::parse(flags, environment) {
        Ok(Invocation::Run(settings)) => run(*settings),
        Ok(Invocation::Version) => write(version().as_bytes()),
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

fn run(settings: Settings) -> Result<(), Failure> {
    conclave_server::logging::init(&settings.log)
        .map_err(|error| Failure::error(error.to_string()))?;
    conclave_server::logging::note_panics();
    let runtime = crate::runtime()?;
    let result = runtime.block_on(async {
        let mut stop = Stop::listen().map_err(|error| error.to_string())?;
        let shutdown = async move { stop.requested().await };
        match conclave_server::run(settings, shutdown).await {
            Err(error) if error.is_removal() => {
                conclave_server::logging::last(&error.to_string());
                Ok(())
            }
            result => result.map_err(|error| error.to_string()),
        }
    });
    // Reads still running for disconnected clients must not delay the exit.
    runtime.shutdown_timeout(EXIT_PATIENCE);
    result.map_err(|reason: String| {
        conclave_server::logging::last(&reason);
        Failure::reported()
    })
}
