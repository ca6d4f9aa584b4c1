//! What watching needs from the node around it.

use conclave_proto::etcdserverpb::ResponseHeader;
use conclave_raft_store::{EventSpan, ReadError, Reader};
use conclave_state_machine::response::{Event, Halt, Rejection};

/// The store and the identity of this node, as far as watching goes.
pub trait Source: Send + Sync + 'static {
    /// Newest revision that a reader of this node can see. Never goes back.
    fn revision(&self) -> i64;

    /// Revision of the last compaction; below 0 before the first. History before it is gone.
    fn compacted(&self) -> i64;

    /// Reads the events of `span` in order. Blocks. May end early, but never within a revision; an empty
    /// answer says that there is nothing up to its end. `None` if its beginning is compacted, before or
    /// while it was read.
    ///
    /// # Errors
    /// [`Halt`] if the storage fails.
    fn events(&self, span: EventSpan<'_>) -> Result<Option<Vec<Event>>, Halt>;

    /// Whether this node knows a leader.
    fn has_leader(&self) -> bool;

    /// The header of an answer that speaks of `revision`.
    fn header(&self, revision: i64) -> ResponseHeader;
}

/// A [`Source`] over the state of this node.
pub struct StoreSource<H, L> {
    reader: Reader,
    header: H,
    has_leader: L,
}

impl<H, L> StoreSource<H, L>
where
    H: Fn(i64) -> ResponseHeader + Send + Sync + 'static,
    L: Fn() -> bool + Send + Sync + 'static,
{
    /// Reads from `reader`; `header` makes the header for a revision, `has_leader` says whether a
    /// leader is known.
    pub fn new(reader: Reader, header: H, has_leader: L) -> Self {
        StoreSource { reader, header, has_leader }
    }
}

impl<H, L> Source for StoreSource<H, L>
where
    H: Fn(i64) -> ResponseHeader + Send + Sync + 'static,
    L: Fn() -> bool + Send + Sync + 'static,
{
    fn revision(&self) -> i64 {
        self.reader.head().revision
    }

    fn compacted(&self) -> i64 {
        self.reader.head().compacted
    }

    fn events(&self, span: EventSpan<'_>) -> Result<Option<Vec<Event>>, Halt> {
        match self.reader.events(span) {
            Ok(events) => Ok(Some(events)),
            Err(ReadError::Rejected(Rejection::Compacted)) => Ok(None),
            Err(ReadError::Rejected(rejection)) => Err(Halt::Storage(rejection.into())),
            Err(ReadError::Halt(halt)) => Err(halt),
        }
    }

    fn has_leader(&self) -> bool {
        (self.has_leader)()
    }

    fn header(&self, revision: i64) -> ResponseHeader {
        (self.header)(revision)
    }
}
