//! Who waits for the answers of which batch.

use std::collections::HashMap;

use conclave_raft_store::AppliedEntry;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::Instant;

use super::{Answer, ProposeError};

/// Batches of this member that are in flight.
#[derive(Debug)]
pub(crate) struct Waiters {
    /// Where the callers wait.
    clients: Handle,
    batches: Mutex<HashMap<u64, InFlight>>,
}

/// One batch between its dispatch and its local apply.
#[derive(Debug)]
pub(crate) struct InFlight {
    /// In the order of the batch's commands.
    pub(crate) answers: Vec<Answer>,
    /// After it nobody waits any more.
    pub(crate) deadline: Instant,
    /// Lets another batch be in flight when it is given back: with the answer, or as soon as the fate
    /// of this one is unknown.
    pub(crate) slot: Option<OwnedSemaphorePermit>,
    /// Dropped with the rest: ends the search for a log that takes the batch.
    pub(crate) _over: oneshot::Sender<()>,
    /// Room for the bytes, given back with the answers.
    pub(crate) _room: Vec<OwnedSemaphorePermit>,
}

impl Waiters {
    /// For callers on this runtime.
    pub(crate) fn new(clients: Handle) -> Self {
        Self { clients, batches: Mutex::default() }
    }

    pub(crate) fn insert(&self, sequence: u64, batch: InFlight) {
        self.batches.lock().insert(sequence, batch);
    }

    /// Whether somebody waits for the answers of a batch.
    pub(crate) fn has(&self, sequence: u64) -> bool {
        self.batches.lock().contains_key(&sequence)
    }

    /// Whether all who wanted answers of a batch have gone.
    pub(crate) fn is_deserted(&self, sequence: u64) -> bool {
        let batches = self.batches.lock();
        let batch = batches.get(&sequence);
        batch.is_none_or(|batch| batch.answers.iter().all(Answer::is_closed))
    }

    /// Answers a batch that was applied here. The answers are handed out by a task of the callers'
    /// runtime: one thread is woken for all of them, and not by apply for each.
    pub(crate) fn complete(&self, entry: AppliedEntry) {
        let Some(batch) = self.batches.lock().remove(&entry.sequence) else { return };
        let InFlight { answers, slot, _room: room, .. } = batch;
        // The next batch need not wait for those who are answered.
        drop(slot);
        self.clients.spawn(async move {
            for (answer, applied) in answers.into_iter().zip(entry.results) {
                // A caller that has gone needs no answer.
                answer.send(Ok(applied)).ok();
            }
            drop(room);
        });
    }

    /// Gives a batch up.
    pub(crate) fn fail(&self, sequence: u64, error: ProposeError) {
        let Some(batch) = self.batches.lock().remove(&sequence) else { return };
        for answer in batch.answers {
            answer.send(Err(error)).ok();
        }
    }

    /// Gives all batches up.
    pub(crate) fn fail_all(&self, error: ProposeError) {
        let all: Vec<u64> = self.batches.lock().keys().copied().collect();
        for sequence in all {
            self.fail(sequence, error);
        }
    }

    /// Gives up all batches whose deadline has passed: their fate is unknown.
    pub(crate) fn expire(&self, now: Instant) {
        let expired: Vec<u64> = {
            let batches = self.batches.lock();
            batches.iter().filter(|(_, b)| b.deadline <= now).map(|(s, _)| *s).collect()
        };
        for sequence in expired {
            self.fail(sequence, ProposeError::Timeout);
        }
    }

    /// Lets another batch be in flight although this one is not answered yet.
    pub(crate) fn free_slot(&self, sequence: u64) {
        let slot = self.batches.lock().get_mut(&sequence).and_then(|batch| batch.slot.take());
        drop(slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_batch_is_deserted_when_the_last_one_has_gone() {
        let waiters = Waiters::new(Handle::current());
        let (answers, mut waiting): (Vec<Answer>, Vec<_>) =
            (0..2).map(|_| oneshot::channel()).unzip();
        let (_over, _) = oneshot::channel();
        let deadline = Instant::now();
        waiters.insert(7, InFlight { answers, deadline, slot: None, _over, _room: Vec::new() });
        assert!(!waiters.is_deserted(7));
        waiting.pop();
        assert!(!waiters.is_deserted(7), "one waits still");
        waiting.pop();
        assert!(waiters.is_deserted(7));
        assert!(waiters.is_deserted(8), "nobody waits for what was answered");
    }
}
