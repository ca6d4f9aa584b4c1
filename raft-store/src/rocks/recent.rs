//! The most recently written rows, in front of RocksDB.
//!
//! An insert into RocksDB's write buffer is a walk through a skip list of tens of thousands of
//! rows, mostly cache misses, and many rows are short-lived: a release deletes what its lock wrote.
//! So rows gather here, where later ones replace earlier ones, and are passed on to RocksDB many at
//! once and in order. They are as durable as rows in its write buffer: not before the next flush.

use std::collections::BTreeMap;
use std::collections::btree_map::Range;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use conclave_state_machine::read::Table;

use crate::engine::{Interval, RowWrite};

/// Written rows of one table; `None` for a deleted one.
pub(super) type Written = BTreeMap<Bytes, Option<Bytes>>;

/// Rows newer than those in RocksDB. A clone is a snapshot, and shares the rows.
#[derive(Clone, Default)]
pub(super) struct Recent {
    tables: [Arc<Written>; Table::ALL.len()],
    bytes: usize,
}

impl Recent {
    /// Number of rows.
    pub(super) fn len(&self) -> usize {
        self.tables.iter().map(|written| written.len()).sum()
    }

    /// Bytes of everything written since it was empty.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether it has no rows, so that every read goes to RocksDB.
    pub(super) fn is_empty(&self) -> bool {
        self.tables.iter().all(|written| written.is_empty())
    }

    /// Whether a reader shares some of the rows.
    pub(super) fn is_shared(&self) -> bool {
        self.tables.iter().any(|written| Arc::strong_count(written) > 1)
    }

    pub(super) fn write(&mut self, row: RowWrite) {
        self.bytes += bytes(&row);
        let (table, key, row) = row;
        let written = Arc::make_mut(&mut self.tables[table.position()]);
        match written.get_mut(&key) {
            Some(known) => *known = row,
            // Copied, because the key may be a slice of a whole log entry.
            None => drop(written.insert(Bytes::copy_from_slice(&key), row)),
        }
    }

    /// The last written row: `None` if it must be read from RocksDB, `Some(None)` if it was
    /// deleted.
    pub(super) fn get(&self, table: Table, key: &[u8]) -> Option<Option<Bytes>> {
        self.tables[table.position()].get(key).cloned()
    }

    /// A snapshot of the rows of one table.
    pub(super) fn table(&self, table: Table) -> Arc<Written> {
        Arc::clone(&self.tables[table.position()])
    }

    /// All rows, by table and key.
    pub(super) fn rows(&self) -> impl Iterator<Item = (Table, &Bytes, &Option<Bytes>)> {
        let tables = Table::ALL.into_iter().zip(&self.tables);
        tables.flat_map(|(table, rows)| rows.iter().map(move |(key, row)| (table, key, row)))
    }
}

/// Bytes of a row and its key.
pub(super) fn bytes((_, key, row): &RowWrite) -> usize {
    key.len() + row.as_ref().map_or(0, Bytes::len)
}

/// The rows of an interval of a table.
pub(super) fn range<'a>(
    written: &'a Written,
    (_, start, end): Interval<'_>,
) -> Range<'a, Bytes, Option<Bytes>> {
    // A range that ends before it starts would panic.
    let end = end.map_or(Bound::Unbounded, |end| Bound::Excluded(end.max(start)));
    written.range::<[u8], _>((Bound::Included(start), end))
}
