//! A command that runs while something is held.

use std::{
    io::ErrorKind,
    os::unix::process::ExitStatusExt,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{process::Command, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{failure::Failure, stop::Stop};

/// Time for a command to end after it was asked to, before it is ended by force.
const GRACE: Duration = Duration::from_secs(5);

/// A command that is to be run.
pub(super) struct Child {
    program: String,
    command: Command,
}

impl Child {
    /// The command that these words name, if any.
    pub(super) fn new(words: &[String]) -> Option<Self> {
        let [program, arguments @ ..] = words else { return None };
        let mut command = Command::new(program);
        command.args(arguments).kill_on_drop(true);
        Some(Self { program: program.clone(), command })
    }

    /// Sets variables in its environment.
    pub(super) fn env(&mut self, variables: &[(&str, String)]) {
        self.command.envs(variables.iter().map(|(name, value)| (name, value)));
    }

    /// Runs it to its end whatever happens, without input, as etcdctl does.
    ///
    /// # Errors
    /// If it does not start or ends with anything but 0, in the words of Go.
    pub(super) async fn run(mut self) -> Result<(), Failure> {
        let status = self.command.stdin(Stdio::null()).status().await;
        let status = status.map_err(|error| refused(&self.program, &error))?;
        if status.success() { Ok(()) } else { Err(Failure::error(in_go(status))) }
    }

    /// Runs it to its end, but ends it when what it needs is `lost` or this process is asked to end.
    ///
    /// # Errors
    /// With its own exit code, if that is not 0; if it does not start; if what it needs was lost.
    pub(super) async fn run_while(
        self,
        lost: &CancellationToken,
        stop: &mut Stop,
    ) -> Result<(), Failure> {
        self.run_to(async {
            tokio::select! {
                biased;
                () = lost.cancelled() => true,
                () = stop.requested() => false,
            }
        })
        .await
    }

    /// Runs it to its end, but ends it when `ending` says so.
    ///
    /// # Errors
    /// As [`Child::run_while`].
    pub(super) async fn run_until(self, ending: &CancellationToken) -> Result<(), Failure> {
        self.run_to(async {
            ending.cancelled().await;
            false
        })
        .await
    }

    /// Runs it to its end, or to `end`, which says whether what it needs was lost.
    async fn run_to(mut self, end: impl Future<Output = bool>) -> Result<(), Failure> {
        let mut child = self.command.spawn().map_err(|error| refused(&self.program, &error))?;
        let pid = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        let is_lost = tokio::select! {
            biased;
            is_lost = end => is_lost,
            status = child.wait() => return ended(status),
        };
        if let Some(pid) = pid
            && let Err(error) = kill_process(pid, Signal::TERM)
        {
            tracing::debug!(%error, "the command has ended meanwhile");
        }
        let Ok(status) = timeout(GRACE, child.wait()).await else {
            child.kill().await.map_err(|error| refused(&self.program, &error))?;
            let message = format!("the command had to be killed: it did not end within {GRACE:?}");
            return Err(Failure::error(message));
        };
        if is_lost {
            return Err(Failure::error("lost what the command needed: it was ended"));
        }
        ended(status)
    }
}

fn ended(status: std::io::Result<ExitStatus>) -> Result<(), Failure> {
    let status = status.map_err(|error| Failure::error(error.to_string()))?;
    if status.success() {
        return Ok(());
    }
    // As shells have it.
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    Err(Failure::exit(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}

/// Why a command did not start, in the words of Go.
fn refused(program: &str, error: &std::io::Error) -> Failure {
    if error.kind() == ErrorKind::NotFound && !program.contains('/') {
        return Failure::error(format!("exec: {program:?}: executable file not found in $PATH"));
    }
    let reason = match error.kind() {
        ErrorKind::NotFound => "no such file or directory".to_owned(),
        ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    };
    Failure::error(format!("fork/exec {program}: {reason}"))
}

/// How a command ended, in the words of Go.
fn in_go(status: ExitStatus) -> String {
    let Some(signal) = status.signal() else {
        return format!("exit status {}", status.code().unwrap_or(-1));
    };
    let name = match signal {
        1 => "hangup",
        2 => "interrupt",
        3 => "quit",
        4 => "illegal instruction",
        5 => "trace/breakpoint trap",
        6 => "aborted",
        7 => "bus error",
        8 => "floating point exception",
        9 => "killed",
        10 => "user defined signal 1",
        11 => "segmentation fault",
        12 => "user defined signal 2",
        13 => "broken pipe",
        14 => "alarm clock",
        15 => "terminated",
        other => return format!("signal: signal {other}"),
    };
    let dump = if status.core_dumped() { " (core dumped)" } else { "" };
    format!("signal: {name}{dump}")
}
