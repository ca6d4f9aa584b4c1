//! The threads: clients have theirs and raft has its own few, so that client load can neither starve
//! heartbeats nor delay acknowledgements.

use std::io;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::oneshot;

/// Two workers let one of them block in the storage engine while the other answers. With so few cores
/// that the second would only take turns with the first, one does: apply works in small pieces and
/// yields in between, and no thread is woken for every message between raft's tasks.
const WORKERS_MAX: usize = 2;
const CORES_PER_WORKER: usize = 2;
/// How long the end of the runtime waits for what blocks on a disk.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

fn raft_workers(cores: usize) -> usize {
    (cores / CORES_PER_WORKER).clamp(1, WORKERS_MAX)
}

/// Clients get the cores that raft leaves. More threads than cores would mostly wake each other: with
/// one for clients on two cores a put costs an eighth less CPU than with two.
fn client_workers(cores: usize) -> usize {
    cores.saturating_sub(raft_workers(cores)).max(1)
}

/// One worker needs none of what several need to share their tasks out, and takes them in the order in
/// which they were woken: whoever may join a batch is heard before it is closed.
fn builder(workers: usize) -> Builder {
    let mut builder = match workers {
        1 => Builder::new_current_thread(),
        _ => Builder::new_multi_thread(),
    };
    builder.worker_threads(workers).enable_all();
    builder
}

/// The runtime on which a process serves clients: give it to [`crate::run`] or [`crate::start`], and
/// stay in [`Runtime::block_on`] while it serves.
///
/// # Errors
/// [`io::Error`] if the system refuses a thread.
pub fn client_runtime() -> io::Result<Runtime> {
    builder(client_workers(cores())).thread_name("api").build()
}

/// Owns the runtime and the thread it runs on; its tasks end when it is dropped.
#[derive(Debug)]
pub(crate) struct RaftRuntime {
    handle: Handle,
    /// Dropped first: tells the thread to end.
    running: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl RaftRuntime {
    pub(crate) fn start() -> io::Result<Self> {
        let runtime = builder(raft_workers(cores())).thread_name("raft").build()?;
        let handle = runtime.handle().clone();
        let (running, stopped) = oneshot::channel::<()>();
        let thread = thread::Builder::new().name("raft".to_owned()).spawn(move || {
            // The end of the sender is what is waited for.
            runtime.block_on(stopped).ok();
            runtime.shutdown_timeout(SHUTDOWN_TIMEOUT);
        })?;
        Ok(Self { handle, running: Some(running), thread: Some(thread) })
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }
}

impl Drop for RaftRuntime {
    fn drop(&mut self) {
        drop(self.running.take());
        // The storage engine must be closed before the process ends: its exit handlers destroy mutexes that
        // a thread in the engine still locks, and the process would abort.
        let other =
            self.thread.take().filter(|thread| thread.thread().id() != thread::current().id());
        // A panic of that thread was reported by the panic hook.
        drop(other.map(JoinHandle::join));
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
