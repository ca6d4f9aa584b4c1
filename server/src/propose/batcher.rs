//! The task that turns waiting commands into log entries and finds a log for them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use conclave_proto::internal;
use prost::Message as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::waiters::InFlight;
use super::{ProposeError, Waiters, Waiting};
use crate::raft::route::{Offer, Route};

/// Entries of this member in flight. Few, so that batches grow under load; several, so that the
/// next entry is on its way while the last one is being synced and applied.
const IN_FLIGHT_MAX: usize = 6;
/// Commands of one entry.
const BATCH_COMMANDS_MAX: usize = 1024;
/// Bytes of one entry, except that one large command always fits.
const BATCH_BYTES_MAX: usize = 1024 * 1024;
/// Pause before a command that certainly was not proposed is offered again.
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// How often batches whose fate is unknown are looked through.
const EXPIRY_INTERVAL: Duration = Duration::from_millis(500);

/// Drains waiting commands into entries; one task.
pub(crate) struct Batcher {
    pub(crate) waiting: mpsc::Receiver<Waiting>,
    pub(crate) waiters: Arc<Waiters>,
    pub(crate) route: Route,
    pub(crate) member_id: u64,
    pub(crate) timeout: Duration,
    pub(crate) tasks: TaskTracker,
}

impl Batcher {
    /// Runs until all [`super::Proposer`]s are gone.
    pub(crate) async fn run(mut self) {
        let slots = Arc::new(Semaphore::new(IN_FLIGHT_MAX));
        // Unique across restarts: an entry of an earlier run must not answer a caller of this one.
        let mut sequence = rand::random::<u64>();
        let mut expiry = tokio::time::interval(EXPIRY_INTERVAL);
        loop {
            let first = tokio::select! {
                first = self.waiting.recv() => first,
                _ = expiry.tick() => {
                    self.waiters.expire(Instant::now());
                    continue;
                }
            };
            let Some(first) = first else { return };
            let slot = self.slot(&slots).await;
            sequence = sequence.wrapping_add(1);
            self.dispatch(first, slot, sequence);
        }
    }

    /// Waits until another entry may be in flight.
    async fn slot(&self, slots: &Arc<Semaphore>) -> OwnedSemaphorePermit {
        loop {
            let slot = tokio::time::timeout(EXPIRY_INTERVAL, slots.clone().acquire_owned()).await;
            match slot {
                Ok(slot) => return slot.expect("nobody closes the semaphore"),
                Err(_elapsed) => self.waiters.expire(Instant::now()),
            }
        }
    }

    /// Makes one entry of everything that waits, within bounds, and sends it on its way.
    fn dispatch(&mut self, first: Waiting, slot: OwnedSemaphorePermit, sequence: u64) {
        let mut commands = Vec::new();
        let mut answers = Vec::new();
        let mut permits = vec![slot];
        let mut bytes = 0;
        let mut next = Some(first);
        while let Some(waiting) = next {
            bytes += waiting.bytes;
            // Whoever gave up before the command left does not get it executed.
            if !waiting.answer.is_closed() {
                commands.push(waiting.command);
                answers.push(waiting.answer);
                permits.push(waiting.room);
            }
            let is_full = bytes >= BATCH_BYTES_MAX || commands.len() >= BATCH_COMMANDS_MAX;
            next = if is_full { None } else { self.waiting.try_recv().ok() };
        }
        if commands.is_empty() {
            return;
        }
        let deadline = Instant::now() + self.timeout;
        let batch = internal::Batch { proposer: self.member_id, sequence, commands };
        self.waiters.insert(sequence, InFlight { answers, deadline, _permits: permits });
        let (route, waiters) = (self.route.clone(), self.waiters.clone());
        let entry = Bytes::from(batch.encode_to_vec());
        self.tasks.spawn(async move {
            let offered = tokio::time::timeout_at(deadline, offer(&route, entry)).await;
            match offered {
                // Local apply answers, or the deadline gives up.
                Ok(None) => {}
                Ok(Some(error)) => waiters.fail(sequence, error),
                Err(_elapsed) if waiters.contains(sequence) => {
                    waiters.fail(sequence, ProposeError::Timeout);
                }
                Err(_elapsed) => {}
            }
        });
    }
}

/// Offers an entry to leaders until one takes it or may have taken it. Returns why it certainly did
/// not enter a log, if nobody will.
async fn offer(route: &Route, entry: Bytes) -> Option<ProposeError> {
    loop {
        match route.offer(entry.clone()).await {
            Offer::Taken | Offer::Unknown => return None,
            Offer::Busy => return Some(ProposeError::TooManyRequests),
            Offer::Stopped => return Some(ProposeError::Stopped),
            Offer::NotLeader => route.wait_for_change(RETRY_PAUSE).await,
        }
    }
}
