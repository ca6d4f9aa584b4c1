//! The newest batches, bounded by count and bytes; what falls off is still in the store.

use std::collections::VecDeque;
use std::sync::Arc;

use super::batch::Batch;

/// Consecutive batches, oldest first. Holds the only lasting references to them: streams refer to
/// batches weakly, so that this bound is the bound of the memory that slow streams can pin.
#[derive(Debug, Default)]
pub(crate) struct Ring {
    batches: VecDeque<Arc<Batch>>,
    bytes: usize,
    events: usize,
}

impl Ring {
    /// Adds the next batch and drops the oldest ones until the rest is within the limits; the newest
    /// always stays.
    pub(crate) fn push(&mut self, batch: Arc<Batch>, bytes_max: usize, events_max: usize) {
        if self.batches.back().is_some_and(|newest| newest.last + 1 != batch.first) {
            self.clear();
        }
        self.bytes += batch.bytes;
        self.events += batch.events.len();
        self.batches.push_back(batch);
        while self.batches.len() > 1 && (self.bytes > bytes_max || self.events > events_max) {
            if let Some(oldest) = self.batches.pop_front() {
                self.bytes -= oldest.bytes;
                self.events -= oldest.events.len();
            }
        }
    }

    pub(crate) fn clear(&mut self) {
        *self = Ring::default();
    }

    /// First revision that the ring still knows.
    pub(crate) fn first(&self) -> Option<i64> {
        self.batches.front().map(|batch| batch.first)
    }

    /// Joins the batches from the one that covers `from` on, about `bytes` and at most `revisions`.
    pub(crate) fn window(&self, from: i64, revisions: i64, bytes: usize) -> Option<Arc<Batch>> {
        let start = self.batches.partition_point(|batch| batch.last < from);
        let head = self.batches.get(start).filter(|batch| batch.covers(from))?;
        let mut size = 0;
        let mut chosen = Vec::new();
        for batch in self.batches.range(start..) {
            let is_full = size >= bytes || batch.last - head.first >= revisions;
            if is_full && !chosen.is_empty() {
                break;
            }
            size += batch.bytes;
            chosen.push(batch);
        }
        match chosen[..] {
            [only] => Some(Arc::clone(only)),
            _ => Batch::join(&chosen).map(Arc::new),
        }
    }
}
