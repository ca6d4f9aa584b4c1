//! Reads within an allowance, for threads that must not be held up.
//!
//! A request does not show what it costs: there may be tombstones in its range, changes since its revision, large
//! values, or rows that the storage has deleted and not cleaned away. So such a read is begun, and given up where
//! it has looked at as much as it may.

use std::cell::Cell;
use std::ops::ControlFlow;

use bytes::Bytes;
use conclave_state_machine::read::{Read, Table};
use conclave_state_machine::response::Halt;

use crate::engine::Rows;

/// Rows that a read looks at: enough for a page of 512 keys whose values all have to be looked up, and for counting
/// at both ends of its range.
const ROWS_MAX: usize = 6_400;
/// What a look-up counts for: about as many rows as a scan passes meanwhile.
const LOOK_UP_ROWS: usize = 8;
/// Bytes of the rows that it looks at.
const BYTES_MAX: usize = 4 << 20;
/// Rows without any that is there between them which the storage steps over in one go.
const DELETED_ROWS_MAX: u64 = 2_048;

/// Rows that can be read until the allowance is spent; then there seem to be no more, and what was read is void.
pub(super) struct Allowance<'a> {
    rows: &'a Rows,
    rows_left: Cell<usize>,
    bytes_left: Cell<usize>,
}

impl<'a> Allowance<'a> {
    pub(super) fn new(rows: &'a Rows) -> Self {
        Self { rows, rows_left: Cell::new(ROWS_MAX), bytes_left: Cell::new(BYTES_MAX) }
    }

    /// Whether there may have been more than was shown.
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
