//! Who on this member waits behind others, so that newcomers know whether they are expected.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::propose::Haste;

/// How many wait behind others, by what they wait for.
#[derive(Debug, Default)]
pub(super) struct Crowd {
    behind: Mutex<HashMap<Bytes, usize>>,
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
        let behind = self.behind.lock().get(prefix).copied().unwrap_or(0);
        Haste::behind(behind)
    }

    /// Counts one who waits behind others in the queue of `prefix`.
    pub(super) fn join(self: &Arc<Self>, prefix: &Bytes) -> Behind {
        *self.behind.lock().entry(prefix.clone()).or_default() += 1;
        Behind { crowd: Arc::clone(self), prefix: prefix.clone() }
    }
}

impl Drop for Behind {
    fn drop(&mut self) {
        let mut behind = self.crowd.behind.lock();
        if let Some(count) = behind.get_mut(&self.prefix) {
            *count -= 1;
            if *count == 0 {
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
        drop(first);
        assert_eq!(crowd.haste(&one), Haste::Prompt);
        drop(second);
        assert!(crowd.behind.lock().is_empty());
    }
}
