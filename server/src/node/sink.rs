//! Hands on what apply did: leases, answers, watch.

use std::sync::{Arc, OnceLock};

use conclave_raft_store::reader::Reader;
use conclave_raft_store::sink::{AppliedEntry, ApplySink};
use conclave_raft_store::types::StoredMembership;
use conclave_state_machine::head::Head;

use crate::lessor::Leases;
use crate::propose::Waiters;

/// Called by apply, in log order; nothing here waits.
pub(super) struct Sink {
    pub(super) member_id: Arc<OnceLock<u64>>,
    pub(super) waiters: Arc<Waiters>,
    pub(super) leases: Arc<Leases>,
    /// Set once the state is open, before anything is applied.
    pub(super) reader: Arc<OnceLock<Reader>>,
}

impl ApplySink for Sink {
    fn applied(&self, entries: Vec<AppliedEntry>, _head: Arc<Head>) {
        let own = self.member_id.get().copied();
        for mut entry in entries {
            for result in &mut entry.results {
                self.leases.apply(&result.leases);
                drop(std::mem::take(&mut result.events));
            }
            if Some(entry.proposer) == own {
                self.waiters.complete(entry);
            }
        }
    }

    fn installed(&self, _head: Arc<Head>) {
        let Some(reader) = self.reader.get() else { return };
        if let Err(error) = self.leases.load(reader) {
            // Apply reads the same rows and stops the member with this reason.
            tracing::error!(%error, "cannot read the leases of an installed snapshot");
        }
    }

    fn membership(&self, membership: &StoredMembership) {
        tracing::info!(members = %membership.membership(), "membership applied");
    }
}
