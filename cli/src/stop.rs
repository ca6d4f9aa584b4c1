//! Signals that ask the process to stop.

use std::{io, sync::LazyLock};

use rustix::process::Signal;
use tokio::signal::unix::{self, SignalKind, signal};

/// Receives the signals by which people and supervisors stop a process.
pub(crate) struct Stop {
    interrupt: unix::Signal,
    terminate: unix::Signal,
    quit: unix::Signal,
    /// `None` if SIGHUP was ignored when the process started, as `nohup` does.
    hangup: Option<unix::Signal>,
}

impl Stop {
    /// Registers for the signals, which then no longer end the process by themselves.
    ///
    /// # Errors
    /// If the system refuses to deliver them.
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            quit: signal(SignalKind::quit())?,
            hangup: if is_hangup_ignored() { None } else { Some(signal(SignalKind::hangup())?) },
        })
    }

    /// Waits for the next signal. Cancel-safe.
    pub(crate) async fn requested(&mut self) {
        self.next().await;
    }

    /// Waits for the next signal and returns which it is. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => Signal::INT,
            _ = self.terminate.recv() => Signal::TERM,
            _ = self.quit.recv() => Signal::QUIT,
            _ = hung_up(&mut self.hangup) => Signal::HUP,
        }
    }
}

async fn hung_up(hangup: &mut Option<unix::Signal>) {
    match hangup {
        Some(hangup) => _ = hangup.recv().await,
        None => std::future::pending().await,
    }
}

/// Whether SIGHUP was ignored when the process started. Determined once, before it is registered
/// for.
fn is_hangup_ignored() -> bool {
    static IS_IGNORED: LazyLock<bool> = LazyLock::new(|| {
        std::fs::read_to_string("/proc/self/status").is_ok_and(|status| ignores_hangup(&status))
    });
    *IS_IGNORED
}

/// Whether the mask of ignored signals in `/proc/PID/status` includes SIGHUP.
fn ignores_hangup(status: &str) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ignored_hangup_is_the_first_bit_of_the_mask() {
        assert!(ignores_hangup("Name:\tx\nSigIgn:\t0000000000001001\nSigCgt:\t0\n"));
        assert!(!ignores_hangup("Name:\tx\nSigIgn:\t0000000000001000\nSigCgt:\t1\n"));
        assert!(!ignores_hangup("nothing of the kind"));
    }
}
