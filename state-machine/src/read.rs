//! What the rules need from a store: ordered rows in a few tables, read only.

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
    /// (name, create revision, child) -> attempt, for keys `name/child` created with a lease; name -> what is kept
    /// of them together; (name, session, request) -> child, where the key does not tell.
    Place = 8,
    /// What the registry keeps beside the keys of instances: services, checks, penalties, what is due.
    Instance = 12,
    /// Writer -> what it may still ask for; who wrote last when; how many there are.
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

    /// Where it stands in [`Table::ALL`].
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

/// Ordered rows, as of one moment or as of now; the caller knows which.
pub trait Read {
    /// Returns the row, or `None`.
    ///
    /// # Errors
    /// [`Halt::Storage`] if the storage below fails.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, Halt>;

    /// Visits rows with `start <= key < end` in ascending key order until `visit` breaks.
    /// `end` of `None` means to the end of the table. `visit` may read the same store again (links to
    /// older revisions are followed in the middle of a scan), so no lock may be held that forbids it.
    ///
    /// # Errors
    /// [`Halt::Storage`] if the storage below fails; whatever `visit` returns as an error.
    #[expect(clippy::type_complexity, reason = "an alias would need a second lifetime")]
    fn scan(
        &self,
        table: Table,
        start: &[u8],
        end: Option<&[u8]>,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>, Halt>,
    ) -> Result<(), Halt>;
}
