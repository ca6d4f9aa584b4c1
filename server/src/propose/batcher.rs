//! The task that turns waiting commands into log entries and finds a log for them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use conclave_proto::internal;
use conclave_raft_store::Reader;
use prost::Message as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::waiters::InFlight;
use super::{Haste, ProposeError, Waiters, Waiting};
use crate::coordination::unix_ms;
use crate::raft::route::{Offer, Route};
use crate::read_index::ReadIndex;

/// Entries of this member in flight. Few, so that batches grow under load; two, so that the next
/// entry is on its way to the leader's next round while the last one is being committed and applied.
const IN_FLIGHT_MAX: u32 = 2;
/// Entries of patient commands in flight. What the leader holds of them counts there
/// ([`FORWARDS_MAX`](crate::raft::forward::FORWARDS_MAX)), with the others.
const PATIENT_IN_FLIGHT_MAX: u32 = 8;
/// Commands of one entry.
const BATCH_COMMANDS_MAX: usize = 1024;
/// Bytes of one entry, except that one large command always fits.
const BATCH_BYTES_MAX: usize = 1024 * 1024;
/// Pause before a command that certainly was not proposed is offered again.
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// How often batches whose fate is unknown are looked through.
const EXPIRY_INTERVAL: Duration = Duration::from_millis(500);

/// Drains waiting commands of one haste into entries; one task.
pub(crate) struct Batcher {
    pub(crate) haste: Haste,
    pub(crate) waiting: mpsc::Receiver<Waiting>,
    pub(crate) waiters: Arc<Waiters>,
    pub(crate) route: Route,
    pub(crate) read_index: ReadIndex,
    pub(crate) reader: Reader,
    pub(crate) member_id: u64,
    pub(crate) timeout: Duration,
    pub(crate) tasks: TaskTracker,
}

impl Batcher {
    /// Runs until all [`super::Proposer`]s are gone.
    pub(crate) async fn run(mut self) {
        let in_flight_max = match self.haste {
            Haste::Prompt => IN_FLIGHT_MAX,
            Haste::Patient => PATIENT_IN_FLIGHT_MAX,
        };
        let slots = Arc::new(Semaphore::new(in_flight_max as usize));
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

    /// Waits until another entry may be in flight and it is the time for it to leave.
    async fn slot(&self, slots: &Arc<Semaphore>) -> OwnedSemaphorePermit {
        loop {
            let idle = async { drop(slots.acquire_many(IN_FLIGHT_MAX).await) };
            let slot = async {
                // Who is patient waits at the leader, for company from all members.
                if self.haste == Haste::Prompt {
                    self.route.departure(idle).await;
                }
                slots.clone().acquire_owned().await
            };
            match tokio::time::timeout(EXPIRY_INTERVAL, slot).await {
                Ok(slot) => return slot.expect("nobody closes the semaphore"),
                Err(_elapsed) => self.waiters.expire(Instant::now()),
            }
        }
    }

    /// Makes one entry of everything that waits, within bounds, and sends it on its way.
    fn dispatch(&mut self, first: Waiting, slot: OwnedSemaphorePermit, sequence: u64) {
        let mut commands = Vec::new();
        let mut answers = Vec::new();
        let mut room = Vec::new();
        let mut bytes = 0;
        let mut next = Some(first);
        while let Some(waiting) = next {
            bytes += waiting.bytes;
            // Whoever gave up before the command left does not get it executed.
            if !waiting.answer.is_closed() {
                commands.push(waiting.command);
                answers.push(waiting.answer);
                room.push(waiting.room);
            }
            let is_full = bytes >= BATCH_BYTES_MAX || commands.len() >= BATCH_COMMANDS_MAX;
            next = if is_full { None } else { self.waiting.try_recv().ok() };
        }
        if commands.is_empty() {
            return;
        }
        let deadline = Instant::now() + self.timeout;
        let batch = internal::Batch {
            proposer: self.member_id,
            sequence,
            commands,
            proposed_unix_ms: unix_ms(),
        };
        let (over_sender, over) = oneshot::channel();
        let slot = Some(slot);
        let in_flight = InFlight { answers, deadline, slot, _over: over_sender, _room: room };
        self.waiters.insert(sequence, in_flight);
        let delivery = Delivery {
            sequence,
            entry: Bytes::from(batch.encode_to_vec()),
            haste: self.haste,
            waiters: self.waiters.clone(),
            route: self.route.clone(),
            read_index: self.read_index.clone(),
            reader: self.reader.clone(),
        };
        self.tasks.spawn(async move {
            tokio::select! {
                biased;
                // Applied here, or given up at the deadline.
                _ = over => {}
                () = delivery.run() => {}
            }
        });
    }
}

/// One entry on its way into a log.
struct Delivery {
    sequence: u64,
    entry: Bytes,
    haste: Haste,
    waiters: Arc<Waiters>,
    route: Route,
    read_index: ReadIndex,
    reader: Reader,
}

impl Delivery {
    /// Offers the entry to leaders until one takes it or may have taken it. Local apply answers the
    /// callers; this answers them only if that cannot happen or is in doubt.
    async fn run(self) {
        loop {
            match self.route.offer(self.entry.clone(), self.haste).await {
                Offer::Taken => return,
                Offer::Unknown => return self.find_out().await,
                Offer::Busy => return self.fail(ProposeError::TooManyRequests),
                Offer::Stopped => return self.fail(ProposeError::Stopped),
                Offer::NotLeader => self.route.wait_for_change(RETRY_PAUSE).await,
            }
            // No log has it, and nobody wants it any more.
            if self.waiters.is_deserted(self.sequence) {
                return self.fail(ProposeError::Timeout);
            }
        }
    }

    fn fail(&self, error: ProposeError) {
        self.waiters.fail(self.sequence, error);
    }

    /// The leader went away with the entry. If it survived, it is in the log before whatever the next
    /// leader confirms; once that is applied here, an answer is not to be expected any more.
    async fn find_out(&self) {
        self.waiters.free_slot(self.sequence);
        if let Ok(index) = self.read_index.confirm().await {
            self.reader.wait_applied(index).await;
            self.fail(ProposeError::LeaderLost);
        }
    }
}
