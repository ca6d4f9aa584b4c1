//! Newest rows of keys that were used last, beside the engine.
//!
//! Every put reads the row it replaces. In the engine that is a walk through a skip list of tens of
//! thousands of rows, mostly cache misses; here it is one lookup. Only apply uses it: it sees every
//! write, so that the cache is never older than the engine.

use std::cell::RefCell;
use std::ops::ControlFlow;

use bytes::Bytes;
use conclave_state_machine::read::{Read, Table};
use conclave_state_machine::response::Halt;
use lru::LruCache;

use crate::engine::{RowWrite, Rows};

/// Rows larger than this are left to the engine: one would push out too many others.
const ROW_BYTES_MAX: usize = 8 << 10;
/// What an entry costs beside its bytes.
const ENTRY_OVERHEAD_BYTES: usize = 160;

/// Rows of [`Table::Key`], bounded by bytes; the least recently used go first.
pub(crate) struct RowCache {
    rows: LruCache<Bytes, Bytes>,
    bytes: usize,
    bytes_max: usize,
}

impl RowCache {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { rows: LruCache::unbounded(), bytes: 0, bytes_max }
    }

    pub(crate) fn clear(&mut self) {
        self.rows.clear();
        self.bytes = 0;
    }

    /// Takes over what is being written.
    pub(crate) fn note(&mut self, (table, key, row): &RowWrite) {
        if *table != Table::Key {
            return;
        }
        match row {
            Some(row) if row.len() <= ROW_BYTES_MAX => self.put(key, row.clone()),
            Some(_) | None => self.remove(key),
        }
    }

    fn put(&mut self, key: &[u8], row: Bytes) {
        if let Some(known) = self.rows.get_mut(key) {
            self.bytes += row.len();
            self.bytes -= known.len();
            *known = row;
        } else {
            self.bytes += cost(key, &row);
            // A copy: the key may be a slice of a whole log entry.
            self.rows.push(Bytes::copy_from_slice(key), row);
        }
        while self.bytes > self.bytes_max
            && let Some((key, row)) = self.rows.pop_lru()
        {
            self.bytes -= cost(&key, &row);
        }
    }

    fn remove(&mut self, key: &[u8]) {
        if let Some((key, row)) = self.rows.pop_entry(key) {
            self.bytes -= cost(&key, &row);
        }
    }
}

fn cost(key: &[u8], row: &[u8]) -> usize {
    key.len() + row.len() + ENTRY_OVERHEAD_BYTES
}

/// The rows of the engine, read through the cache.
pub(crate) struct CachedRows<'a> {
    rows: &'a Rows,
    cache: RefCell<&'a mut RowCache>,
}

impl<'a> CachedRows<'a> {
    pub(crate) fn new(rows: &'a Rows, cache: &'a mut RowCache) -> Self {
        Self { rows, cache: RefCell::new(cache) }
    }
}

impl Read for CachedRows<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, Halt> {
        if table != Table::Key {
            return self.rows.get(table, key);
        }
        let mut cache = self.cache.borrow_mut();
        if let Some(row) = cache.rows.get(key) {
            return Ok(Some(row.clone()));
        }
        let row = self.rows.get(table, key)?;
        if let Some(row) = &row
            && row.len() <= ROW_BYTES_MAX
        {
            cache.put(key, row.clone());
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
