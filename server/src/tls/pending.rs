//! Handshakes under way. When there are too many, the oldest gives way: those that say nothing are
//! the oldest, so that however many of them there are, whoever speaks is served.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Handshakes of one port.
#[derive(Debug)]
pub(super) struct Pending {
    max: usize,
    begun: Mutex<Begun>,
}

#[derive(Debug, Default)]
struct Begun {
    count: u64,
    by_age: BTreeMap<u64, Arc<Notify>>,
}

impl Pending {
    /// At most `max` at one time.
    pub(super) fn new(max: usize) -> Self {
        Self { max, begun: Mutex::default() }
    }

    /// Notes that a handshake begins; the oldest may have to end for it.
    pub(super) fn begin(&self) -> Place<'_> {
        let mut begun = self.begun.lock();
        if begun.by_age.len() >= self.max
            && let Some((_, oldest)) = begun.by_age.pop_first()
        {
            oldest.notify_one();
        }
        let age = begun.count;
        begun.count += 1;
        let crowded = Arc::new(Notify::new());
        begun.by_age.insert(age, crowded.clone());
        Place { pending: self, age, crowded }
    }
}

/// A handshake under way; it is over when this is dropped.
#[derive(Debug)]
pub(super) struct Place<'a> {
    pending: &'a Pending,
    age: u64,
    crowded: Arc<Notify>,
}

impl Place<'_> {
    /// Returns when it must give way.
    pub(super) async fn crowded(&self) {
        self.crowded.notified().await;
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.pending.begun.lock().by_age.remove(&self.age);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn the_oldest_gives_way() {
        let pending = Pending::new(2);
        let first = pending.begin();
        let second = pending.begin();
        assert_eq!(first.crowded().now_or_never(), None);
        let third = pending.begin();
        assert_eq!(first.crowded().now_or_never(), Some(()));
        drop(third);
        let _fourth = pending.begin();
        assert_eq!(second.crowded().now_or_never(), None, "there was room");
    }
}
