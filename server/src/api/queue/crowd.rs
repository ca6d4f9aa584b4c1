//! Counts the waiters of this member per queue, and remembers how much of a queue is known to hold
//! only places. A newcomer learns from that how soon it has to be in the queue, and which part of
//! it need not be read.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::propose::Haste;

/// The waiters of this member, by the key prefix of their queue.
#[derive(Debug, Default)]
pub(super) struct Crowd {
    behind: Mutex<HashMap<Bytes, Waiting>>,
}

/// The waiters of one queue.
#[derive(Debug, Default)]
struct Waiting {
    count: usize,
    /// Highest create revision of a place that is known to have only places before it; 0 if none is
    /// known.
    behind_places: i64,
}

/// Counts as one waiter until dropped.
#[derive(Debug)]
pub(super) struct Behind {
    crowd: Arc<Crowd>,
    prefix: Bytes,
}

impl Crowd {
    /// How soon a newcomer to the queue of `prefix` has to be in it.
    pub(super) fn haste(&self, prefix: &Bytes) -> Haste {
        Haste::behind(self.behind.lock().get(prefix).map_or(0, |waiting| waiting.count))
    }

    /// Highest create revision of a waiter in the queue of `prefix` that is known to be behind
    /// places only.
    pub(super) fn behind_places(&self, prefix: &Bytes) -> Option<i64> {
        let known = self.behind.lock().get(prefix)?.behind_places;
        (known > 0).then_some(known)
    }

    /// Adds a waiter that is behind others in the queue of `prefix`.
    pub(super) fn join(self: &Arc<Self>, prefix: &Bytes) -> Behind {
        self.behind.lock().entry(prefix.clone()).or_default().count += 1;
        Behind { crowd: Arc::clone(self), prefix: prefix.clone() }
    }
}

impl Behind {
    /// Records that the place created at revision `fence` has only places before it.
    pub(super) fn are_places(&self, fence: i64) {
        if let Some(waiting) = self.crowd.behind.lock().get_mut(&self.prefix) {
            waiting.behind_places = waiting.behind_places.max(fence);
        }
    }
}

impl Drop for Behind {
    fn drop(&mut self) {
        let mut behind = self.crowd.behind.lock();
        if let Some(waiting) = behind.get_mut(&self.prefix) {
            waiting.count -= 1;
            if waiting.count == 0 {
                behind.remove(&self.prefix);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_enters_behind_several_is_patient() {
        let crowd = Arc::new(Crowd::default());
        let (one, other) = (Bytes::from_static(b"one/"), Bytes::from_static(b"other/"));
        let first = crowd.join(&one);
        assert_eq!(crowd.haste(&one), Haste::Prompt);
        let second = crowd.join(&one);
        assert_eq!(crowd.haste(&one), Haste::Patient);
        assert_eq!(crowd.haste(&other), Haste::Prompt);
        assert_eq!(crowd.behind_places(&one), None);
        for fence in [7, 5] {
            first.are_places(fence);
        }
        assert_eq!((crowd.behind_places(&one), crowd.behind_places(&other)), (Some(7), None));
        drop(first);
        assert_eq!(crowd.haste(&one), Haste::Prompt);
        assert_eq!(
            crowd.behind_places(&one),
            Some(7),
            "whoever knew it is gone, but not the others"
        );
        drop(second);
        assert!(crowd.behind.lock().is_empty());
    }
}
