//! Limits the handshakes in progress. If there are too many, the oldest is ended: silent clients
//! are the oldest, so that a client that speaks is served however many of them there are.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Handshakes in progress on one port.
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
    /// At most `max` at a time.
    pub(super) fn new(max: usize) -> Self {
        Self { max, begun: Mutex::default() }
    }

    /// Registers a new handshake; at the limit the oldest is told to end.
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

/// A handshake in progress; it is deregistered when this is dropped.
#[derive(Debug)]
pub(super) struct Place<'a> {
    pending: &'a Pending,
    age: u64,
    crowded: Arc<Notify>,
}

impl Place<'_> {
    /// Returns when this handshake must end.
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
