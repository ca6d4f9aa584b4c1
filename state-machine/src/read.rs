//! What the rules need from a store: read-only, ordered rows in a few tables.

use std::ops::ControlFlow;

use bytes::Bytes;

use crate::response::Halt;

/// Tables of the store. The numbers are durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Table {
    /// User key -> newest state or tombstone.
    Key = 1,
    /// Revision -> event.
    Rev = 2,
    /// Lease id -> TTL.
    Lease = 3,
    /// (lease id, key) -> nothing.
    LeaseKey = 4,
    /// Member id -> name and URLs.
    Member = 5,
    /// Users, roles, permissions.
    Auth = 6,
    /// Head, alarms, and what raft-store keeps beside the data (keys that start with `raft/`).
    Meta = 7,
    /// Queues of locks. (name, create revision, child) -> attempt, for keys `name/child` created
    /// with a lease; name -> summary of the queue; (name, session, request) -> child, where the key
    /// does not contain them.
    Place = 8,
    /// What the registry keeps besides the keys of instances: services, checks, penalties, due
    /// times.
    Instance = 12,
    /// Writer -> its requests that may still be retried; writers by last write; their number.
    Writer = 13,
}

impl Table {
    /// All tables, in number order.
    pub const ALL: [Table; 10] = [
        Table::Key,
        Table::Rev,
        Table::Lease,
        Table::LeaseKey,
        Table::Member,
        Table::Auth,
        Table::Meta,
        Table::Place,
        Table::Instance,
        Table::Writer,
    ];

    /// Index in [`Table::ALL`].
    #[must_use]
    pub fn position(self) -> usize {
        match self {
            Table::Key => 0,
            Table::Rev => 1,
            Table::Lease => 2,
            Table::LeaseKey => 3,
            Table::Member => 4,
            Table::Auth => 5,
            Table::Meta => 6,
            Table::Place => 7,
            Table::Instance => 8,
            Table::Writer => 9,
        }
    }
}

/// Ordered rows, of a snapshot or of the live store; the caller knows which.
pub trait Read {
    /// Returns the row, or `None`.
    ///
    /// # Errors
    /// [`Halt::Storage`] if the storage below fails.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, Halt>;

    /// Visits rows with `start <= key < end` in ascending key order until `visit` breaks. `end` of
    /// `None` means to the end of the table. `visit` may read the same store again (links to older
    /// revisions are followed in the middle of a scan), so the implementation must not hold a lock
    /// that would prevent it.
    ///
    /// # Errors
    /// [`Halt::Storage`] if the storage below fails; any error that `visit` returns.
    #[expect(clippy::type_complexity, reason = "an alias would need a second lifetime")]
    fn scan(
        &self,
        table: Table,
        start: &[u8],
        end: Option<&[u8]>,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>, Halt>,
    ) -> Result<(), Halt>;
}
