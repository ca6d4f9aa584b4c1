//! The first log entry that is still needed: determined by the leader, which tells the others.
//!
//! Only the leader knows how far each member is. If a follower cut its log by its own state alone
//! and led next, a member that is a moment behind would need a snapshot.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How long a leader's word is valid.
const COUNTS_FOR: Duration = Duration::from_secs(15);

/// What this member tells others as leader, and what it was told by one.
#[derive(Debug, Default)]
pub(crate) struct Needed {
    /// First needed entry; 0 while this member does not lead.
    own: AtomicU64,
    told: Mutex<Option<(u64, Instant)>>,
}

impl Needed {
    /// Sets the value determined as leader; `None` if this member does not lead.
    pub(crate) fn set_own(&self, first: Option<u64>) {
        self.own.store(first.unwrap_or(0), Ordering::Relaxed);
    }

    /// The value sent with heartbeats and appends; 0 if unknown.
    pub(crate) fn own(&self) -> u64 {
        self.own.load(Ordering::Relaxed)
    }

    /// Notes the value from a leader's call; 0 is ignored.
    pub(crate) fn hear(&self, first: u64) {
        if first > 0 {
            *self.told.lock() = Some((first, Instant::now()));
        }
    }

    /// First needed entry according to a recent call of a leader.
    pub(crate) fn told(&self) -> Option<u64> {
        let told = *self.told.lock();
        told.filter(|(_, at)| at.elapsed() < COUNTS_FOR).map(|(first, _)| first)
    }
}
