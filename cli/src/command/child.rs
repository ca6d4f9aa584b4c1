//! A command that runs while something is held.

mod family;

use std::{
    future::pending,
    io::ErrorKind,
    os::unix::process::ExitStatusExt,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal};
use tokio::{
    process::Command,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use self::family::{Family, Orphans};
use crate::{failure::Failure, stop::Stop};

/// Time for a command to end after it was asked to, before it is ended by force, and then once more.
const GRACE: Duration = Duration::from_secs(5);
/// How much later than a command this process may hear of what a terminal sends to both.
const LAG: Duration = Duration::from_millis(20);
/// How often those are looked for that a command has started.
const POLL: Duration = Duration::from_millis(20);

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
    /// If it does not start or ends with anything but 0, in the words of Go; with its own exit code (as from etcdctl 3.5
    /// on), which Go calls -1 if a signal ended it.
    pub(super) async fn run(mut self) -> Result<(), Failure> {
        let status = self.command.stdin(Stdio::null()).status().await;
        let status = status.map_err(|error| refused(&self.program, &error))?;
        if status.success() {
            return Ok(());
        }
        let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX);
        Err(Failure::exit_because(code, in_go(status)))
    }

    /// Runs it to its end. It is asked to end when what it needs is in `jeopardy` or this process is asked to end,
    /// and ended by force when what it needs is `lost`, or 5 s after this process was asked.
    ///
    /// # Errors
    /// With its own exit code, if that is not 0; if it does not start; if what it needs was lost.
    pub(super) async fn run_while(
        self,
        (lost, jeopardy): (&CancellationToken, impl Future<Output = ()>),
        stop: &mut Stop,
    ) -> Result<(), Failure> {
        self.run_to((lost, jeopardy), async || stop.next().await).await
    }

    /// Runs it to its end, but asks it to end when `ending` says so, and 5 s later ends it by force.
    ///
    /// # Errors
    /// As [`Child::run_while`].
    pub(super) async fn run_until(self, ending: &CancellationToken) -> Result<(), Failure> {
        let ended = async || {
            ending.cancelled().await;
            Signal::TERM
        };
        self.run_to((&CancellationToken::new(), pending()), ended).await
    }

    async fn run_to(
        self,
        (lost, jeopardy): (&CancellationToken, impl Future<Output = ()>),
        mut stop: impl AsyncFnMut() -> Signal,
    ) -> Result<(), Failure> {
        let mut running = self.start()?;
        let why = tokio::select! {
            biased;
            () = lost.cancelled() => Why::Lost,
            () = jeopardy => Why::Jeopardy,
            signal = stop() => Why::Stop(signal),
            status = running.first() => {
                // What a terminal sends reaches both, and the command may be the faster one to obey.
                let lag = if running.is_at_terminal { LAG } else { Duration::ZERO };
                match timeout(lag, stop()).await {
                    Ok(signal) => Why::Stop(signal),
                    Err(_elapsed) => return ended(status),
                }
            }
        };
        let asked = async {
            match why {
                Why::Lost => None,
                Why::Stop(signal) => running.stop(signal).await,
                Why::Jeopardy => {
                    running.family.signal(Signal::TERM);
                    // It may have the rest of its time, unless somebody wants it to end anyhow.
                    tokio::select! {
                        status = running.gone() => Some(status),
                        signal = stop() => running.stop(signal).await,
                    }
                }
            }
        };
        let status = tokio::select! {
            biased;
            () = lost.cancelled() => None,
            status = asked => status,
        };
        if status.is_none() {
            running.kill().await;
        }
        let end = match (why, status) {
            (Why::Stop(_), Some(status)) => return ended(status),
            _ if lost.is_cancelled() => "lost what the command needed: it was ended".to_owned(),
            (Why::Jeopardy, _) => {
                "what the command needed was about to be lost: it was ended".to_owned()
            }
            _ => format!("the command had to be killed: it did not end within {GRACE:?}"),
        };
        Err(Failure::error(end))
    }

    fn start(mut self) -> Result<Running, Failure> {
        let is_at_terminal = has_terminal();
        let mut orphans = Orphans::default();
        if !is_at_terminal {
            self.command.process_group(0);
        } else {
            match Orphans::adopt() {
                Ok(adopted) => orphans = adopted,
                Err(error) => {
                    tracing::debug!(%error, "what the command starts is known only while its parent runs");
                }
            }
        }
        let child = self.command.spawn().map_err(|error| refused(&self.program, &error))?;
        let pid = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        let pid = pid.expect("invariant: it was not waited for, and ids are positive");
        let family = Family::new(pid, !is_at_terminal);
        Ok(Running { child, family, orphans, is_at_terminal })
    }
}

/// Whether there is a terminal, whose keys reach this process's group only: a command in another one could not
/// read it, and would go on when this process is stopped by it.
fn has_terminal() -> bool {
    std::fs::File::open("/dev/tty").is_ok()
}

/// Why a command has to end.
#[derive(Clone, Copy)]
enum Why {
    /// What it needs was lost.
    Lost,
    /// What it needs may be lost soon.
    Jeopardy,
    /// This process was asked to end.
    Stop(Signal),
}

/// A command that runs.
struct Running {
    child: tokio::process::Child,
    family: Family,
    orphans: Orphans,
    /// Whether it shares the group, and so the terminal, with this process.
    is_at_terminal: bool,
}

impl Running {
    /// Waits until the command has ended. Cancel-safe.
    async fn first(&mut self) -> std::io::Result<ExitStatus> {
        loop {
            tokio::select! {
                biased;
                status = self.child.wait() => return status,
                () = self.orphans.ended() => self.family.reap(),
            }
        }
    }

    /// Waits until the command and all that it started have ended. Cancel-safe.
    async fn gone(&mut self) -> std::io::Result<ExitStatus> {
        let status = self.first().await?;
        self.family.first_ended();
        while !self.family.is_gone() {
            sleep(POLL).await;
        }
        Ok(status)
    }

    /// Asks all to end, as this process was asked by `signal`; `None` if they do not soon enough.
    async fn stop(&mut self, signal: Signal) -> Option<std::io::Result<ExitStatus>> {
        // What a terminal sends has reached the command as well, which may be about to obey.
        if self.is_at_terminal
            && matches!(signal, Signal::INT | Signal::HUP)
            && let Ok(status) = timeout(GRACE, self.gone()).await
        {
            return Some(status);
        }
        self.family.signal(Signal::TERM);
        timeout(GRACE, self.gone()).await.ok()
    }

    /// Ends by force what still runs, and what that may have started meanwhile.
    async fn kill(&mut self) {
        let killed = timeout(GRACE, async {
            loop {
                self.family.signal(Signal::KILL);
                if let Ok(ended) = timeout(POLL, self.gone()).await {
                    return ended;
                }
            }
        });
        match killed.await {
            Ok(Ok(_status)) => {}
            Ok(Err(error)) => tracing::warn!(%error, "whether the command has ended is not known"),
            Err(_elapsed) => tracing::warn!("something that the command started cannot be killed"),
        }
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
