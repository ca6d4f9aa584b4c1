//! Raft's own small tokio runtime: client load can neither starve heartbeats nor delay acknowledgements.

use std::io;

use tokio::runtime::{Builder, Handle, Runtime};

/// Two workers let one of them block in the storage engine while the other answers. With so few cores
/// that the second would only take turns with the first, one does: apply works in small pieces and
/// yields in between, and no thread is woken for every message between raft's tasks.
const WORKERS_MAX: usize = 2;
const CORES_PER_WORKER: usize = 2;

/// Owns the runtime; its tasks end when it is dropped.
#[derive(Debug)]
pub(crate) struct RaftRuntime {
    runtime: Option<Runtime>,
}

impl RaftRuntime {
    pub(crate) fn start() -> io::Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let workers = (cores / CORES_PER_WORKER).clamp(1, WORKERS_MAX);
        let runtime = Builder::new_multi_thread()
            .worker_threads(workers)
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
        if let Some(runtime) = self.runtime.take() {
            // Dropped from async code as well, where waiting for blocking work is not allowed.
            runtime.shutdown_background();
        }
    }
}
