//! Linearizable reads: one confirmation by a quorum serves everyone who waits for one.
//!
//! At most one confirmation is under way. Whoever arrives meanwhile waits for the next one, because
//! theirs must begin after they asked; that one starts as soon as the first ends and serves them all.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::metrics::Counts;
use crate::raft::route::Route;

/// Reads that wait for a confirmation.
const WAITERS_MAX: usize = 64 * 1024;
/// Pause after a failed confirmation, unless the leader changes first.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// A confirmation that takes longer, with all attempts at it, is counted as slow, as in etcd.
const SLOW: Duration = Duration::from_millis(500);

/// Why a read could not be made linearizable. It had no effect; asking again is safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadIndexError {
    /// Too many reads wait.
    #[error("too many requests")]
    TooManyRequests,
    /// No leader was confirmed by a quorum in time.
    #[error("request timed out")]
    Timeout,
    /// This member is stopping.
    #[error("server stopped")]
    Stopped,
}

type Waiter = oneshot::Sender<u64>;

/// Asks for read indexes; clones are cheap.
#[derive(Clone)]
pub(crate) struct ReadIndex {
    queue: mpsc::Sender<Waiter>,
    timeout: Duration,
}

impl ReadIndex {
    /// Returns the asking end and what [`run`] serves.
    pub(crate) fn new(timeout: Duration) -> (Self, mpsc::Receiver<Waiter>) {
        let (queue, waiters) = mpsc::channel(WAITERS_MAX);
        (Self { queue, timeout }, waiters)
    }

    /// Returns the index that must be applied before a read is linearizable. Cancel-safe.
    ///
    /// # Errors
    /// [`ReadIndexError`].
    pub(crate) async fn confirm(&self) -> Result<u64, ReadIndexError> {
        let (waiter, index) = oneshot::channel();
        self.queue.try_send(waiter).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => ReadIndexError::TooManyRequests,
            mpsc::error::TrySendError::Closed(_) => ReadIndexError::Stopped,
        })?;
        match tokio::time::timeout(self.timeout, index).await {
            Ok(Ok(index)) => Ok(index),
            Ok(Err(_dropped)) => Err(ReadIndexError::Stopped),
            Err(_elapsed) => Err(ReadIndexError::Timeout),
        }
    }
}

/// Serves waiters until all askers are gone.
pub(crate) async fn run(route: Route, mut waiting: mpsc::Receiver<Waiter>, counts: Counts) {
    let mut waiters = Vec::new();
    while let Some(first) = waiting.recv().await {
        waiters.push(first);
        let began = Instant::now();
        while !waiters.is_empty() {
            // Everyone who asked before this moment may share the confirmation that begins now.
            while waiters.len() < WAITERS_MAX
                && let Ok(waiter) = waiting.try_recv()
            {
                waiters.push(waiter);
            }
            match route.read_index().await {
                Some(index) => waiters.drain(..).for_each(|waiter| {
                    waiter.send(index).ok();
                }),
                // Who is told that this member stops asks another one.
                None if route.retired.is_cancelled() => waiters.clear(),
                None => {
                    route.wait_for_change(RETRY_PAUSE).await;
                    waiters.retain(|waiter| !waiter.is_closed());
                }
            }
        }
        if began.elapsed() > SLOW {
            counts.slow_read_indexes.inc();
        }
    }
}
