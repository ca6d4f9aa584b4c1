//! What those who watch a service are still to be told, bounded in number and in bytes.
//!
//! A step goes when all have taken it, when there are too many after it, or when those that are kept hold too
//! many bytes: then the oldest is emptied, and whoever comes to it begins again with a snapshot.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use conclave_state_machine::registry::coalesce::Change;
use conclave_state_machine::registry::view::Shown;
use parking_lot::Mutex;
use tokio::sync::broadcast;

use super::feed::Step;
use super::window::{Merged, Steps};

/// Steps that a watcher may be behind before it starts over with a snapshot.
const STEPS_MAX: usize = 1_024;
/// About bytes of steps that are kept for those of one service that are behind.
const BYTES_MAX: usize = 16 << 20;
/// About what a change holds beside its values.
const CHANGE_BYTES: usize = 512;

/// A step while it is kept.
#[derive(Debug)]
pub(super) struct Told {
    step: Mutex<Option<Arc<Step>>>,
    /// About what the step holds.
    pub(super) bytes: usize,
    /// When it was told, from when the ring was made on.
    pub(super) at: Duration,
    /// Whether the service is large then.
    pub(super) is_large: bool,
}

impl Told {
    /// The step; `None` if there was no room for it any more.
    pub(super) fn step(&self) -> Option<Arc<Step>> {
        self.step.lock().clone()
    }
}

/// The steps of one service.
pub(super) struct Ring {
    sender: broadcast::Sender<Arc<Told>>,
    /// Oldest first, with what they hold; those that all have taken among them.
    kept: VecDeque<(Weak<Told>, usize)>,
    bytes: usize,
    begun: Instant,
    merged: Arc<Merged>,
}

impl Ring {
    /// A ring that began when it did: times are counted from there on.
    pub(super) fn new(begun: Instant) -> Self {
        Self {
            sender: broadcast::channel(STEPS_MAX).0,
            kept: VecDeque::new(),
            bytes: 0,
            begun,
            merged: Arc::default(),
        }
    }

    /// All steps from now on.
    pub(super) fn subscribe(&self) -> Steps {
        Steps::new(self.sender.subscribe(), Arc::clone(&self.merged), self.begun)
    }

    /// Tells a step of a service, which is large or not, to all who are there.
    pub(super) fn send(&mut self, step: Arc<Step>, is_large: bool) {
        self.send_at(self.begun.elapsed(), step, is_large);
    }

    /// As of this time after the ring was made.
    pub(super) fn send_at(&mut self, at: Duration, step: Arc<Step>, is_large: bool) {
        let bytes = bytes(&step);
        let told = Arc::new(Told { step: Mutex::new(Some(step)), bytes, at, is_large });
        let kept = Arc::downgrade(&told);
        // Nobody may be there just now.
        if self.sender.send(told).is_err() {
            return;
        }
        self.kept.push_back((kept, bytes));
        self.bytes += bytes;
        if self.bytes > BYTES_MAX || self.kept.len() > STEPS_MAX {
            self.shrink();
        }
    }

    fn shrink(&mut self) {
        self.kept.retain(|(told, _)| told.strong_count() > 0);
        self.bytes = self.kept.iter().map(|(_, bytes)| bytes).sum();
        // The newest stays, however large: most take it at once.
        while self.bytes > BYTES_MAX && self.kept.len() > 1 {
            let Some((told, bytes)) = self.kept.pop_front() else { return };
            self.bytes -= bytes;
            if let Some(told) = told.upgrade() {
                *told.step.lock() = None;
            }
        }
    }
}

/// About what a step holds: values before and after, and those after once more as messages.
fn bytes(step: &Step) -> usize {
    let length = |shown: &Option<Arc<Shown>>| shown.as_ref().map_or(0, |shown| shown.value.len());
    let change = |Change { delta, .. }: &Change| {
        length(&delta.before) + 2 * length(&delta.after) + CHANGE_BYTES
    };
    step.changes.iter().map(change).sum()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use conclave_state_machine::registry::record::Record;
    use conclave_state_machine::registry::view::Delta;

    use super::*;

    const LARGE: usize = 1 << 20;

    fn step(revision: i64, length: usize) -> Arc<Step> {
        let value = Bytes::from(vec![0; length]);
        let (record, fence, session) = (Record::new("h:1"), 1, 1);
        let shown = Shown { record, value, fence, mod_revision: revision, session };
        let delta = Delta { id: "a".to_owned(), before: None, after: Some(Arc::new(shown)) };
        Arc::new(Step::new(revision, vec![Change { delta, cause: None }]))
    }

    fn revisions(steps: &mut Steps) -> Vec<Option<i64>> {
        std::iter::from_fn(|| steps.told.try_recv().ok())
            .map(|told| told.step().map(|step| step.revision))
            .collect()
    }

    #[test]
    fn who_is_behind_by_too_many_bytes_misses_the_oldest() {
        let mut ring = Ring::new(Instant::now());
        let mut slow = ring.subscribe();
        let held: Vec<Weak<Step>> = (0..20)
            .map(|revision| {
                let step = step(revision, LARGE);
                let held = Arc::downgrade(&step);
                ring.send(step, false);
                held
            })
            .collect();
        let left = held.iter().filter(|held| held.strong_count() > 0).count();
        assert_eq!(left, 7, "each counts twice and a little more");
        let mut expected = vec![None; 13];
        expected.extend((13..20).map(Some));
        assert_eq!(revisions(&mut slow), expected);
        ring.send(step(20, 100 * LARGE), false);
        assert_eq!(revisions(&mut slow), [Some(20)], "the newest is told, however large");
    }

    #[test]
    fn what_all_have_taken_is_not_kept() {
        let mut ring = Ring::new(Instant::now());
        ring.send(step(0, LARGE), false);
        assert_eq!(ring.bytes, 0, "nobody is there");
        let mut quick = ring.subscribe();
        for revision in 1..100 {
            let step = step(revision, LARGE);
            let held = Arc::downgrade(&step);
            ring.send(step, false);
            assert_eq!(revisions(&mut quick), [Some(revision)]);
            assert_eq!(held.strong_count(), 0);
        }
        for revision in 0..3_000 {
            ring.send(step(revision, 0), false);
        }
        assert!(ring.kept.len() <= STEPS_MAX, "nor a note of what is gone");
    }
}
