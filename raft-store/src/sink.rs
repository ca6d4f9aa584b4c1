//! Who hears of what was applied: answers, watch, leases, metrics.

use std::sync::Arc;
use std::time::Duration;

use conclave_state_machine::head::Head;
use conclave_state_machine::response::Applied;

use crate::report::Report;
use crate::types::{LogId, StoredMembership};

/// One applied log entry that carried commands.
#[derive(Clone, Debug)]
pub struct AppliedEntry {
    /// Its place in the log.
    pub log_id: LogId,
    /// Member that assembled the batch.
    pub proposer: u64,
    /// Number of the batch, unique within the proposer.
    pub sequence: u64,
    /// `results[i]` answers `commands[i]` of the batch.
    pub results: Vec<Applied>,
}

/// Called by whoever applies, in log order. It must not block: apply waits for it.
pub trait ApplySink: Send + Sync {
    /// The entries are written; right after this a reader sees them. For what is looked up by those who
    /// waited until an entry is applied.
    fn applying(&self, _entries: &[AppliedEntry]) {}

    /// Whether somebody waits here for the answers of a batch, which are not made in full otherwise.
    fn is_awaited(&self, _proposer: u64, _sequence: u64) -> bool {
        true
    }

    /// `head` is published: a reader sees the entries.
    fn applied(&self, entries: Vec<AppliedEntry>, head: Arc<Head>);

    /// One piece of the log was applied.
    fn timed(&self, _report: &Report) {}

    /// The state was flushed, which makes a snapshot; it took so long.
    fn flushed(&self, _took: Duration) {}

    /// A snapshot is about to replace the state; right after this a reader sees that.
    fn installing(&self) {}

    /// A snapshot replaced the state; what lies between was never applied here.
    fn installed(&self, head: Arc<Head>);

    /// A membership entry is applied, or came with a snapshot.
    fn membership(&self, membership: &StoredMembership);
}

/// Nobody.
impl ApplySink for () {
    fn applied(&self, _: Vec<AppliedEntry>, _: Arc<Head>) {}
    fn installed(&self, _: Arc<Head>) {}
    fn membership(&self, _: &StoredMembership) {}
}
