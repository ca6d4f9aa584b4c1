//! A cache of recently used rows in front of the engine.
//!
//! Every put reads the row that it replaces and that of its lease; every lock reads the summary of
//! its queue. In the engine each read walks through a skip list of tens of thousands of rows,
//! mostly cache misses; here it is one look-up. Only apply uses the cache and sees every write, so
//! it is never older than the engine.

use std::cell::RefCell;
use std::ops::ControlFlow;

use bytes::Bytes;
use conclave_state_machine::locks::queue;
use conclave_state_machine::read::{Read, Table};
use conclave_state_machine::response::Halt;
use lru::LruCache;

use crate::engine::RowWrite;

/// Larger rows are not cached: one would push out too many others.
const ROW_BYTES_MAX: usize = 8 << 10;
/// Estimated memory of a cache entry besides its bytes.
const ENTRY_OVERHEAD_BYTES: usize = 160;

/// Most bytes for the rows of each kind.
#[derive(Clone, Copy)]
pub(crate) struct RowCacheBytes {
    pub(crate) keys: usize,
    pub(crate) leases: usize,
    pub(crate) fronts: usize,
}

/// Caches rows of [`Table::Key`] and [`Table::Lease`], and the summaries of queues in
/// [`Table::Place`].
pub(crate) struct RowCache {
    keys: Kept,
    leases: Kept,
    fronts: Kept,
}

impl RowCache {
    pub(crate) fn new(bytes_max: RowCacheBytes) -> Self {
        Self {
            keys: Kept::new(bytes_max.keys),
            leases: Kept::new(bytes_max.leases),
            fronts: Kept::new(bytes_max.fronts),
        }
    }

    pub(crate) fn clear(&mut self) {
        for kept in [&mut self.keys, &mut self.leases, &mut self.fronts] {
            kept.clear();
        }
    }

    /// Updates the cache with a row that is being written.
    pub(crate) fn note(&mut self, (table, key, row): &RowWrite) {
        match (self.of(*table, key), row) {
            (Some(kept), Some(row)) if row.len() <= ROW_BYTES_MAX => kept.put(key, Some(row)),
            // The next to enter an emptied queue will read this row; the row of an ended lease is
            // hardly ever read again.
            (Some(kept), None) if *table == Table::Place => kept.put(key, None),
            (Some(kept), Some(_) | None) => kept.remove(key),
            (None, _) => {}
        }
    }

    /// The cache for such a row, if there is one.
    fn of(&mut self, table: Table, key: &[u8]) -> Option<&mut Kept> {
        match table {
            Table::Key => Some(&mut self.keys),
            Table::Lease => Some(&mut self.leases),
            Table::Place if queue::is_front(key) => Some(&mut self.fronts),
            _ => None,
        }
    }
}

/// Rows of one kind, bounded by bytes; the least recently used are dropped first.
struct Kept {
    /// `None`: the engine has no such row.
    rows: LruCache<Bytes, Option<Bytes>>,
    bytes: usize,
    bytes_max: usize,
}

impl Kept {
    fn new(bytes_max: usize) -> Self {
        Self { rows: LruCache::unbounded(), bytes: 0, bytes_max }
    }

    fn clear(&mut self) {
        self.rows.clear();
        self.bytes = 0;
    }

    fn put(&mut self, key: &[u8], row: Option<&Bytes>) {
        if let Some(known) = self.rows.get_mut(key) {
            self.bytes += length(row);
            self.bytes -= length(known.as_ref());
            *known = row.cloned();
        } else {
            self.bytes += cost(key, row);
            // Copied, because the key may be a slice of a whole log entry.
            self.rows.push(Bytes::copy_from_slice(key), row.cloned());
        }
        while self.bytes > self.bytes_max
            && let Some((key, row)) = self.rows.pop_lru()
        {
            self.bytes -= cost(&key, row.as_ref());
        }
    }

    fn remove(&mut self, key: &[u8]) {
        if let Some((key, row)) = self.rows.pop_entry(key) {
            self.bytes -= cost(&key, row.as_ref());
        }
    }
}

fn length(row: Option<&Bytes>) -> usize {
    row.map_or(0, Bytes::len)
}

fn cost(key: &[u8], row: Option<&Bytes>) -> usize {
    key.len() + length(row) + ENTRY_OVERHEAD_BYTES
}

/// The rows of the engine, read through the cache.
pub(crate) struct CachedRows<'a, R> {
    rows: &'a R,
    cache: RefCell<&'a mut RowCache>,
}

impl<'a, R> CachedRows<'a, R> {
    pub(crate) fn new(rows: &'a R, cache: &'a mut RowCache) -> Self {
        Self { rows, cache: RefCell::new(cache) }
    }
}

impl<R: Read> Read for CachedRows<'_, R> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, Halt> {
        let mut cache = self.cache.borrow_mut();
        let Some(kept) = cache.of(table, key) else { return self.rows.get(table, key) };
        if let Some(row) = kept.rows.get(key) {
            return Ok(row.clone());
        }
        let row = self.rows.get(table, key)?;
        if row.as_ref().is_some_and(|row| row.len() <= ROW_BYTES_MAX) {
            kept.put(key, row.as_ref());
        }
        Ok(row)
    }

    // The engine has everything that was written before this batch, as the cache has.
    fn scan(
        &self,
        table: Table,
        start: &[u8],
        end: Option<&[u8]>,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>, Halt>,
    ) -> Result<(), Halt> {
        self.rows.scan(table, start, end, visit)
    }
}

#[cfg(test)]
mod tests {
    use conclave_state_machine::memory::MemoryRows;
    use proptest::prelude::*;

    use super::*;

    const BYTES_MAX: RowCacheBytes = RowCacheBytes { keys: 700, leases: 400, fronts: 400 };
    /// Two rows of each kind that is cached, and one of a kind that is not.
    const ROWS: [(Table, &[u8]); 7] = [
        (Table::Key, b"a"),
        (Table::Key, b"b/1"),
        (Table::Lease, b"\0\0\0\0\0\0\0\x01"),
        (Table::Lease, b"\0\0\0\0\0\0\0\x02"),
        (Table::Place, b"\0\0\0\x01b"),
        (Table::Place, b"\0\0\0\x01c"),
        (Table::Place, b"\0\0\0\x01b\0\0\0\0\0\0\0\x071"),
    ];

    #[derive(Clone, Debug)]
    enum Step {
        /// `None` deletes the row; otherwise the number of bytes to write.
        Write(usize, Option<usize>),
        Read(usize),
        Clear,
    }

    fn step() -> impl Strategy<Value = Step> {
        let row = || 0..ROWS.len();
        let bytes = prop::option::of(prop_oneof![9 => 0..300_usize, 1 => Just(ROW_BYTES_MAX + 1)]);
        prop_oneof![
            4 => (row(), bytes).prop_map(|(row, bytes)| Step::Write(row, bytes)),
            4 => row().prop_map(Step::Read),
            1 => Just(Step::Clear),
        ]
    }

    fn check_size(kept: &Kept) {
        let bytes: usize = kept.rows.iter().map(|(key, row)| cost(key, row.as_ref())).sum();
        assert_eq!(bytes, kept.bytes);
        assert!(bytes <= kept.bytes_max);
    }

    proptest! {
        #[test]
        fn rows_are_as_the_engine_has_them(steps in prop::collection::vec(step(), 0..60)) {
            let (mut rows, mut cache) = (MemoryRows::default(), RowCache::new(BYTES_MAX));
            for step in steps {
                match step {
                    Step::Write(at, bytes) => {
                        let (table, key) = ROWS[at];
                        let row = bytes.map(|bytes| Bytes::from(vec![7; bytes]));
                        let write = (table, Bytes::from_static(key), row);
                        cache.note(&write);
                        rows.write([write]);
                    }
                    Step::Read(at) => {
                        let (table, key) = ROWS[at];
                        let found = CachedRows::new(&rows, &mut cache).get(table, key).unwrap();
                        prop_assert_eq!(found, rows.get(table, key).unwrap());
                    }
                    Step::Clear => cache.clear(),
                }
                for kept in [&cache.keys, &cache.leases, &cache.fronts] {
                    check_size(kept);
                }
            }
        }
    }

    #[test]
    fn what_was_written_is_not_asked_of_the_engine() {
        let mut cache = RowCache::new(BYTES_MAX);
        let row = Bytes::from_static(b"row");
        for (table, key) in ROWS {
            cache.note(&(table, Bytes::from_static(key), Some(row.clone())));
        }
        let front = ROWS[4];
        cache.note(&(front.0, Bytes::from_static(front.1), None));
        // The engine has something else, so an answer from it is noticed.
        let mut rows = MemoryRows::default();
        let other = Bytes::from_static(b"other");
        rows.write(ROWS.map(|(table, key)| (table, Bytes::from_static(key), Some(other.clone()))));
        let mut read = |(table, key)| CachedRows::new(&rows, &mut cache).get(table, key).unwrap();
        assert_eq!(read(front), None, "nobody stands there");
        assert_eq!([1, 3, 5].map(|at| read(ROWS[at])), [1, 3, 5].map(|_| Some(row.clone())));
        assert_eq!(read(ROWS[6]), Some(other), "of a place nothing is kept");
    }
}
