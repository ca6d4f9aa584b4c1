//! Where applied entries are reported to: answers, watches, leases, metrics.

use std::sync::Arc;
use std::time::Duration;

use conclave_state_machine::head::Head;
use conclave_state_machine::response::Applied;

use crate::report::Report;
use crate::types::{LogId, StoredMembership};

/// One applied log entry that carried commands.
#[derive(Clone, Debug)]
pub struct AppliedEntry {
    /// Its log id.
    pub log_id: LogId,
    /// Member that proposed the batch.
    pub proposer: u64,
    /// Number of the batch, unique within the proposer.
    pub sequence: u64,
    /// `results[i]` answers `commands[i]` of the batch.
    pub results: Vec<Applied>,
}

/// Receives applied entries in log order. It must not block, because apply waits for it.
pub trait ApplySink: Send + Sync {
    /// The entries are written, and visible to readers right after this call. For state that is
    /// looked up by callers that waited until an entry was applied.
    fn applying(&self, _entries: &[AppliedEntry]) {}

    /// Whether a client of this member waits for the answers of a batch. If not, they are not made
    /// in full.
    fn is_awaited(&self, _proposer: u64, _sequence: u64) -> bool {
        true
    }

    /// `head` is published: the entries are visible to readers.
    fn applied(&self, entries: Vec<AppliedEntry>, head: Arc<Head>);

    /// One piece of the log was applied.
    fn timed(&self, _report: &Report) {}

    /// The state was flushed, which makes a snapshot, in this time.
    fn flushed(&self, _took: Duration) {}

    /// A snapshot is about to replace the state; its state is visible to readers right after this
    /// call.
    fn installing(&self) {}

    /// A snapshot replaced the state. The entries in between were never applied here.
    fn installed(&self, head: Arc<Head>);

    /// A membership entry was applied, or came with a snapshot.
    fn membership(&self, membership: &StoredMembership);
}

/// A sink that ignores everything.
impl ApplySink for () {
    fn applied(&self, _: Vec<AppliedEntry>, _: Arc<Head>) {}
    fn installed(&self, _: Arc<Head>) {}
    fn membership(&self, _: &StoredMembership) {}
}
