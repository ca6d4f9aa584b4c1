//! From which entry on the log is needed, as the leader sees it and tells the others.
//!
//! Only the leader knows how far each member is. Were a follower to cut its log by its own state alone,
//! then, should it lead next, a member that is a moment behind would need a snapshot.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How long what a leader told counts.
const COUNTS_FOR: Duration = Duration::from_secs(15);

/// What this member tells as a leader, and what it was told by one.
#[derive(Debug, Default)]
pub(crate) struct Needed {
    /// The first needed entry; 0 while this member does not lead.
    own: AtomicU64,
    told: Mutex<Option<(u64, Instant)>>,
}

impl Needed {
    /// As the leader, or `None` if this member is not.
    pub(crate) fn set_own(&self, first: Option<u64>) {
        self.own.store(first.unwrap_or(0), Ordering::Relaxed);
    }

    /// What goes along with heartbeats and appends: 0 if unknown.
    pub(crate) fn own(&self) -> u64 {
        self.own.load(Ordering::Relaxed)
    }

    /// Takes what came with a call of a leader.
    pub(crate) fn hear(&self, first: u64) {
        if first > 0 {
            *self.told.lock() = Some((first, Instant::now()));
        }
    }

    /// The first entry that is needed by what a leader said lately.
    pub(crate) fn told(&self) -> Option<u64> {
        let told = *self.told.lock();
        told.filter(|(_, at)| at.elapsed() < COUNTS_FOR).map(|(first, _)| first)
    }
}
