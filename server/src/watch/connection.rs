//! The watchers of one connection, whatever streams they are on: counted together.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How many watchers a connection has; clones count the same ones.
#[derive(Clone, Debug, Default)]
pub struct Connection {
    watchers: Arc<AtomicUsize>,
}

/// The part of one stream, given back when it ends.
#[derive(Debug, Default)]
pub(super) struct Share {
    connection: Connection,
    own: usize,
}

impl Share {
    /// Of a stream without watchers.
    pub(super) fn of(connection: Connection) -> Self {
        Self { connection, own: 0 }
    }

    /// Counts one more, unless there are `max`; says whether it did.
    pub(super) fn take(&mut self, max: usize) -> bool {
        let one_more = |watchers| (watchers < max).then_some(watchers + 1);
        let watchers = &self.connection.watchers;
        let is_taken =
            watchers.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok();
        self.own += usize::from(is_taken);
        is_taken
    }

    /// Counts one less.
    pub(super) fn give_back(&mut self) {
        self.own -= 1;
        self.connection.watchers.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.connection.watchers.fetch_sub(self.own, Ordering::Relaxed);
    }
}
