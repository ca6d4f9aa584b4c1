//! What watching needs from the node around it.

use conclave_proto::etcdserverpb::ResponseHeader;
use conclave_state_machine::response::{Event, Halt};

/// The store and the identity of this node, as far as watching goes.
pub trait Source: Send + Sync + 'static {
    /// Newest revision that a reader of this node can see. Never goes back.
    fn revision(&self) -> i64;

    /// Revision of the last compaction; below 0 before the first. History before it is gone.
    fn compacted(&self) -> i64;

    /// Reads all events of the revisions `from..=to` in order, `prev_kv` filled where it still exists.
    /// Blocks. May end early, but never within a revision, after `revisions_max` revisions or about
    /// `bytes_max` bytes; an empty answer says that there is nothing up to `to`.
    ///
    /// # Errors
    /// [`Halt`] if the storage fails.
    fn events(
        &self,
        from: i64,
        to: i64,
        revisions_max: usize,
        bytes_max: usize,
    ) -> Result<Vec<Event>, Halt>;

    /// The header of an answer that speaks of `revision`.
    fn header(&self, revision: i64) -> ResponseHeader;
}
