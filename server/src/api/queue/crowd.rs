//! Who on this member waits behind others, so that newcomers know whether they are expected, and behind whom
//! they need not look.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::propose::Haste;

/// Those who wait behind others, by what they wait for.
#[derive(Debug, Default)]
pub(super) struct Crowd {
    behind: Mutex<HashMap<Bytes, Waiting>>,
}

/// Those who wait for the same.
#[derive(Debug, Default)]
struct Waiting {
    count: usize,
    /// Fence of the last of them before whom only places stood; 0: of none that is known.
    behind_places: i64,
}

/// One of them, until dropped.
#[derive(Debug)]
pub(super) struct Behind {
    crowd: Arc<Crowd>,
    prefix: Bytes,
}

impl Crowd {
    /// How soon whoever enters the queue of `prefix` has to be in it.
    pub(super) fn haste(&self, prefix: &Bytes) -> Haste {
        Haste::behind(self.behind.lock().get(prefix).map_or(0, |waiting| waiting.count))
    }

    /// Fence of the last one in the queue of `prefix` who waits behind places alone, if any is known to.
    pub(super) fn behind_places(&self, prefix: &Bytes) -> Option<i64> {
        let known = self.behind.lock().get(prefix)?.behind_places;
        (known > 0).then_some(known)
    }

    /// Counts one who waits behind others in the queue of `prefix`.
    pub(super) fn join(self: &Arc<Self>, prefix: &Bytes) -> Behind {
        self.behind.lock().entry(prefix.clone()).or_default().count += 1;
        Behind { crowd: Arc::clone(self), prefix: prefix.clone() }
    }
}

impl Behind {
    /// Tells newcomers that only places stood before the place with this fence.
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
