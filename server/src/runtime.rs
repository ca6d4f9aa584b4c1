//! Raft's own small tokio runtime: client load can neither starve heartbeats nor delay acknowledgements.

use std::io;

use tokio::runtime::{Builder, Handle, Runtime};

/// Raft's core, apply and the connections to other members need little; two let one of them block in
/// the storage engine while the other answers.
const WORKERS: usize = 2;

/// Owns the runtime; its tasks end when it is dropped.
#[derive(Debug)]
pub(crate) struct RaftRuntime {
    runtime: Option<Runtime>,
}

impl RaftRuntime {
    pub(crate) fn start() -> io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(WORKERS)
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
