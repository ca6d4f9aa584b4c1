//! Runs a command while something is held.

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

/// Time for a command to end after it was asked to, before it is killed; also the time for killing
/// it.
const GRACE: Duration = Duration::from_secs(5);
/// A terminal sends its signals to the command and to this process; how much later this process may
/// receive one.
const LAG: Duration = Duration::from_millis(20);
/// How often to check for processes that the command has started.
const POLL: Duration = Duration::from_millis(20);

/// A command to be run.
pub(super) struct Child {
    program: String,
    command: Command,
}

impl Child {
    /// The command that these words name; `None` if there are none.
    pub(super) fn new(words: &[String]) -> Option<Self> {
        let [program, arguments @ ..] = words else { return None };
        let mut command = Command::new(program);
        command.args(arguments).kill_on_drop(true);
        Some(Self { program: program.clone(), command })
    }

    /// Sets environment variables of the command.
    pub(super) fn env(&mut self, variables: &[(&str, String)]) {
        self.command.envs(variables.iter().map(|(name, value)| (name, value)));
    }

    /// Runs the command to its end whatever happens, without input, as etcdctl does.
    ///
    /// # Errors
    /// If it does not start, or exits with anything but 0: with Go's message and the command's exit
    /// code (as from etcdctl 3.5 on), which Go calls -1 if a signal ended it.
    pub(super) async fn run(mut self) -> Result<(), Failure> {
        let status = self.command.stdin(Stdio::null()).status().await;
        let status = status.map_err(|error| refused(&self.program, &error))?;
        if status.success() {
            return Ok(());
        }
        let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX);
        Err(Failure::exit_because(code, in_go(status)))
    }

    /// Runs the command to its end. It is asked to end when what it needs is in `jeopardy` or this
    /// process is asked to end, and killed when what it needs is `lost`, or 5 s after this process
    /// was asked.
    ///
    /// # Errors
    /// With the command's exit code, if that is not 0; if it does not start; or if what it needs
    /// was lost.
    pub(super) async fn run_while(
        self,
        (lost, jeopardy): (&CancellationToken, impl Future<Output = ()>),
        stop: &mut Stop,
    ) -> Result<(), Failure> {
        self.run_to((lost, jeopardy), async || stop.next().await).await
    }

    /// Runs the command to its end, but asks it to end when `ending` is cancelled, and kills it 5 s
    /// later.
    ///
    /// # Errors
    /// Like [`Child::run_while`].
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
                // A terminal's signal reaches both, and the command may react first.
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
                    // It may use the remaining time, unless this process is asked to end too.
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

/// Whether there is a terminal. Its keys reach this process's group only: a command in another
/// group could not read from it, and would continue when this process is stopped by it.
fn has_terminal() -> bool {
    std::fs::File::open("/dev/tty").is_ok()
}

/// Why a command must end.
#[derive(Clone, Copy)]
enum Why {
    /// What it needs was lost.
    Lost,
    /// What it needs may be lost soon.
    Jeopardy,
    /// This process was asked to end.
    Stop(Signal),
}

/// A running command.
struct Running {
    child: tokio::process::Child,
    family: Family,
    orphans: Orphans,
    /// Whether it is in this process's group and so shares its terminal.
    is_at_terminal: bool,
}

impl Running {
    /// Waits until the command itself has ended. Cancel-safe.
    async fn first(&mut self) -> std::io::Result<ExitStatus> {
        loop {
            tokio::select! {
                biased;
                status = self.child.wait() => return status,
                () = self.orphans.ended() => self.family.reap(),
            }
        }
    }

    /// Waits until the command and everything it started have ended. Cancel-safe.
    async fn gone(&mut self) -> std::io::Result<ExitStatus> {
        let status = self.first().await?;
        self.family.first_ended();
        while !self.family.is_gone() {
            sleep(POLL).await;
        }
        Ok(status)
    }

    /// Asks all processes to end after this one received `signal`; `None` if they do not end in
    /// time.
    async fn stop(&mut self, signal: Signal) -> Option<std::io::Result<ExitStatus>> {
        // A terminal's signal has reached the command as well, which may be about to end.
        if self.is_at_terminal
            && matches!(signal, Signal::INT | Signal::HUP)
            && let Ok(status) = timeout(GRACE, self.gone()).await
        {
            return Some(status);
        }
        self.family.signal(Signal::TERM);
        timeout(GRACE, self.gone()).await.ok()
    }

    /// Kills what is still running, including processes started in the meantime.
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
    // As in shells.
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    Err(Failure::exit(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}

/// The failure of a command that did not start, with Go's message.
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

/// How a command ended, in Go's words.
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
