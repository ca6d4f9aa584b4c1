//! Reads within an allowance, for threads that must not block.
//!
//! A request does not show what it costs: there may be tombstones in its range, changes since its
//! revision, large values, or deleted rows that the storage has not cleaned up yet. So such a read
//! is started, and abandoned once it has used up its allowance.

use std::cell::Cell;
use std::ops::ControlFlow;

use bytes::Bytes;
use conclave_state_machine::read::{Read, Table};
use conclave_state_machine::response::Halt;

use crate::engine::Rows;

/// Most rows to read: enough for a page of 512 keys whose values all have to be looked up, and for
/// counting at both ends of its range.
const ROWS_MAX: usize = 6_400;
/// Rows that a look-up counts as: about what a scan passes in the same time.
const LOOK_UP_ROWS: usize = 8;
/// Most bytes of rows to read.
const BYTES_MAX: usize = 4 << 20;
/// Most successive deleted rows for the storage to skip.
const DELETED_ROWS_MAX: u64 = 2_048;

/// Rows that can be read until the allowance is spent. After that there seem to be no more rows,
/// and the read's result must be dropped.
pub(super) struct Allowance<'a> {
    rows: &'a Rows,
    rows_left: Cell<usize>,
    bytes_left: Cell<usize>,
}

impl<'a> Allowance<'a> {
    pub(super) fn new(rows: &'a Rows) -> Self {
        Self { rows, rows_left: Cell::new(ROWS_MAX), bytes_left: Cell::new(BYTES_MAX) }
    }

    /// Whether the allowance is spent, so that rows may be missing.
    pub(super) fn is_spent(&self) -> bool {
        self.rows_left.get() == 0 || self.bytes_left.get() == 0
    }

    fn spend(&self, rows: usize, bytes: usize) {
        self.rows_left.set(self.rows_left.get().saturating_sub(rows));
        self.bytes_left.set(self.bytes_left.get().saturating_sub(bytes));
    }
}

impl Read for Allowance<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, Halt> {
        if self.is_spent() {
            return Ok(None);
        }
        let row = self.rows.get(table, key)?;
        self.spend(LOOK_UP_ROWS, row.as_ref().map_or(0, Bytes::len));
        Ok(row)
    }

    fn scan(
        &self,
        table: Table,
        start: &[u8],
        end: Option<&[u8]>,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>, Halt>,
    ) -> Result<(), Halt> {
        let mut visit = |key: &[u8], row: &[u8]| {
            self.spend(1, key.len().saturating_add(row.len()));
            if self.is_spent() { Ok(ControlFlow::Break(())) } else { visit(key, row) }
        };
        let interval = (table, start, end);
        if self.rows.scan_within(interval, DELETED_ROWS_MAX, &mut visit)?.is_break() {
            self.rows_left.set(0);
        }
        Ok(())
    }
}
