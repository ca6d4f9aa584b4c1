//! The threads: clients have theirs and raft has its own few, so that client load can neither starve
//! heartbeats nor delay acknowledgements.

use std::io;
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};

/// Two workers let one of them block in the storage engine while the other answers. With so few cores
/// that the second would only take turns with the first, one does: apply works in small pieces and
/// yields in between, and no thread is woken for every message between raft's tasks.
const WORKERS_MAX: usize = 2;
const CORES_PER_WORKER: usize = 2;
/// How long the end of the runtime waits for what blocks on a disk.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn raft_workers(cores: usize) -> usize {
    (cores / CORES_PER_WORKER).clamp(1, WORKERS_MAX)
}

/// Clients get the cores that raft leaves. More threads than cores would mostly wake each other: with
/// one for clients on two cores a put costs an eighth less CPU than with two.
fn client_workers(cores: usize) -> usize {
    cores.saturating_sub(raft_workers(cores)).max(1)
}

/// The runtime on which a process serves clients: give it to [`crate::run`] or [`crate::start`].
///
/// # Errors
/// [`io::Error`] if the system refuses a thread.
pub fn client_runtime() -> io::Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(client_workers(cores()))
        .thread_name("api")
        .enable_all()
        .build()
}

/// Owns the runtime; its tasks end when it is dropped.
#[derive(Debug)]
pub(crate) struct RaftRuntime {
    runtime: Option<Runtime>,
}

impl RaftRuntime {
    pub(crate) fn start() -> io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(raft_workers(cores()))
            .thread_name("raft")
            .enable_all()
            .build()?;
        Ok(Self { runtime: Some(runtime) })
    }

    pub(crate) fn handle(&self) -> &Handle {
        self.runtime.as_ref().expect("only drop takes it").handle()
    }
}

impl Drop for RaftRuntime {
    fn drop(&mut self) {
        let Some(runtime) = self.runtime.take() else { return };
        // The storage engine must be closed before the process ends: its exit handlers destroy mutexes that
        // a thread in the engine still locks, and the process would abort. On a thread of its own, because
        // a runtime may not be awaited where async code runs.
        let end = std::thread::Builder::new()
            .name("raft-end".to_owned())
            .spawn(move || runtime.shutdown_timeout(SHUTDOWN_TIMEOUT));
        // A panic of that thread was reported by the panic hook.
        drop(end.map(std::thread::JoinHandle::join));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_shared_out() {
        let shares: Vec<_> = [1, 2, 4, 8, 64]
            .map(|cores| (cores, raft_workers(cores), client_workers(cores)))
            .into();
        assert_eq!(shares, [(1, 1, 1), (2, 1, 1), (4, 2, 2), (8, 2, 6), (64, 2, 62)]);
    }
}
