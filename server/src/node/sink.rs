//! Passes on what apply did: leases, answers, turns, watch events.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use conclave_raft_store::reader::Reader;
use conclave_raft_store::report::Report;
use conclave_raft_store::sink::{AppliedEntry, ApplySink};
use conclave_raft_store::types::StoredMembership;
use conclave_state_machine::head::Head;
use conclave_state_machine::response::Response;

use crate::auth::Feed;
use crate::coordination::registry::Changed;
use crate::coordination::{Takings, Turns};
use crate::lessor::Leases;
use crate::metrics::Counts;
use crate::propose::Waiters;
use crate::raft::corruption::Digests;
use crate::raft::link::Links;
use crate::raft::standing::Standing;
use crate::space::Space;
use crate::watch::Hub;

/// Called by apply, in log order; nothing here blocks.
pub(super) struct Sink {
    pub(super) member_id: Arc<OnceLock<u64>>,
    pub(super) waiters: Arc<Waiters>,
    pub(super) leases: Arc<Leases>,
    pub(super) counts: Counts,
    pub(super) turns: Arc<Turns>,
    pub(super) takings: Arc<Takings>,
    pub(super) digests: Arc<Digests>,
    pub(super) auth: Arc<Feed>,
    pub(super) changed_checks: Arc<Changed>,
    pub(super) space: Arc<Space>,
    /// The parts that need the open state; set before anything is applied.
    pub(super) late: Arc<OnceLock<Late>>,
}

/// The part of a [`Sink`] that is made from the open state.
pub(super) struct Late {
    pub(super) reader: Reader,
    pub(super) hub: Arc<Hub>,
    pub(super) links: Arc<Links>,
    pub(super) standing: Arc<Standing>,
}

impl ApplySink for Sink {
    fn applying(&self, entries: &[AppliedEntry]) {
        for result in entries.iter().flat_map(|entry| &entry.results) {
            self.leases.apply(&result.leases);
            // Before the apply becomes visible to those whose turn is over.
            self.takings.note(result);
            if let Ok(Response::Auth(change)) = &result.outcome {
                self.auth.note(change);
            }
        }
    }

    fn applied(&self, entries: Vec<AppliedEntry>, head: Arc<Head>) {
        let own = self.member_id.get().copied();
        self.counts.applied(&entries, own);
        self.digests.note(&entries);
        let (mut events, mut lack_prev) = (Vec::new(), false);
        for mut entry in entries {
            for result in &mut entry.results {
                // Callers get the answers, watchers the events.
                events.append(&mut result.events);
                lack_prev |= result.lack_prev;
            }
            if Some(entry.proposer) == own {
                self.waiters.complete(entry);
            }
        }
        self.turns.note(&events);
        self.auth.publish(head.auth);
        if lack_prev {
            self.changed_checks.note_all();
        } else {
            self.changed_checks.note(&events);
        }
        if let Some(late) = self.late.get() {
            self.space.note(&events, late.reader.total_bytes());
        }
        match self.late.get() {
            Some(late) if lack_prev => late.hub.skip(head.revision),
            Some(late) => late.hub.publish(events, head.revision),
            None => {}
        }
    }

    fn is_awaited(&self, proposer: u64, sequence: u64) -> bool {
        self.member_id.get() == Some(&proposer) && self.waiters.has(sequence)
    }

    fn timed(&self, report: &Report) {
        self.counts.applies.note(report);
    }

    fn flushed(&self, took: Duration) {
        self.counts.applies.flushed(took);
    }

    fn installing(&self) {
        self.auth.installing();
    }

    fn installed(&self, head: Arc<Head>) {
        let Some(late) = self.late.get() else { return };
        if let Err(error) = self.leases.load(&late.reader) {
            // Apply reads the same rows and stops the member for this reason.
            tracing::error!(%error, "cannot read the leases of an installed snapshot");
        }
        self.turns.note_all();
        self.takings.note_all();
        self.auth.publish(head.auth);
        self.changed_checks.note_all();
        late.hub.skip(head.revision);
    }

    fn membership(&self, membership: &StoredMembership) {
        let membership = membership.membership();
        tracing::info!(members = %membership, "membership applied");
        let Some(late) = self.late.get() else { return };
        late.links.follow(membership);
        if let Err(error) = late.standing.follow(&late.reader) {
            // Apply reads the same rows and stops the member for this reason.
            tracing::error!(%error, "cannot read who was removed");
        }
    }
}
