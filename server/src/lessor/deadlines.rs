//! Every lease with its deadline, fed by apply.

use std::time::Duration;

use conclave_state_machine::expiry::ExpiryQueue;
use conclave_state_machine::leases;
use conclave_state_machine::read::Read;
use conclave_state_machine::response::{Halt, LeaseChange};
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use tokio::time::Instant;

/// All leases with their deadlines on this member's clock.
pub(crate) struct Leases {
    pub(super) queue: Mutex<ExpiryQueue>,
    /// Time is measured from here, on the monotonic clock.
    epoch: Instant,
    pub(super) renewed: Counter,
}

impl Leases {
    /// `renewed` counts keep-alives.
    pub(crate) fn new(renewed: Counter) -> Self {
        Self { queue: Mutex::default(), epoch: Instant::now(), renewed }
    }

    pub(super) fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    /// Follows what was applied.
    pub(crate) fn apply(&self, changes: &[LeaseChange]) {
        if changes.is_empty() {
            return;
        }
        let now = self.now();
        let mut queue = self.queue.lock();
        for change in changes {
            match *change {
                LeaseChange::Granted { id, ttl, at } => queue.grant((id, at), seconds(ttl), now),
                LeaseChange::Ended { id } => {
                    queue.remove(id);
                }
            }
        }
    }

    /// Starts over from the stored leases: at the start, and when a snapshot replaced the state.
    ///
    /// # Errors
    /// [`Halt`] if they cannot be read.
    pub(crate) fn load(&self, rows: &impl Read) -> Result<(), Halt> {
        let mut stored = Vec::new();
        leases::grants(rows, &mut |id, ttl, at| stored.push(((id, at), seconds(ttl))))?;
        let now = self.now();
        let mut queue = self.queue.lock();
        queue.clear();
        for (lease, ttl) in stored {
            queue.grant(lease, ttl, now);
        }
        Ok(())
    }
}

fn seconds(ttl: i64) -> Duration {
    Duration::from_secs(u64::try_from(ttl).unwrap_or(0))
}
