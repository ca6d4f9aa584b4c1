//! Writes of one apply batch on top of the rows before it: later commands see earlier ones.

use std::collections::BTreeMap;
use std::iter::Peekable;
use std::ops::{Bound, ControlFlow};

use bytes::Bytes;

use crate::read::{Read, Table};
use crate::response::Halt;

type Writes = BTreeMap<Bytes, Option<Bytes>>;

/// Callback of a scan.
type Visit<'a> = dyn FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>, Halt> + 'a;

/// Rows of `base` with writes on top, which the caller takes out at the end.
#[derive(Debug)]
pub struct Overlay<'a, R> {
    base: &'a R,
    // One map per table, so that a lookup needs no owned key.
    tables: [Writes; Table::ALL.len()],
}

impl<'a, R: Read> Overlay<'a, R> {
    /// Starts without writes.
    #[must_use]
    pub fn new(base: &'a R) -> Overlay<'a, R> {
        Overlay { base, tables: Default::default() }
    }

    /// Writes a row.
    pub fn put(&mut self, table: Table, key: Bytes, row: Bytes) {
        self.tables[table.position()].insert(key, Some(row));
    }

    /// Deletes a row; it need not exist.
    pub fn delete(&mut self, table: Table, key: Bytes) {
        self.tables[table.position()].insert(key, None);
    }

    /// Rows written or deleted so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tables.iter().map(BTreeMap::len).sum()
    }

    /// Whether nothing was written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tables.iter().all(BTreeMap::is_empty)
    }

    /// Takes the writes, by table and key; `None` deletes the row.
    pub fn into_writes(self) -> impl Iterator<Item = (Table, Bytes, Option<Bytes>)> {
        Table::ALL
            .into_iter()
            .zip(self.tables)
            .flat_map(|(table, writes)| writes.into_iter().map(move |(key, row)| (table, key, row)))
    }
}

/// Merges written rows into a scan of the rows below, in key order.
///
/// Pass every row of the scan to [`Merge::row`], then call [`Merge::rest`] for what is left.
#[derive(Debug)]
pub struct Merge<'a, I: Iterator<Item = (&'a Bytes, &'a Option<Bytes>)>> {
    written: Peekable<I>,
    is_stopped: bool,
}

impl<'a, I: Iterator<Item = (&'a Bytes, &'a Option<Bytes>)>> Merge<'a, I> {
    /// Takes the written rows of the same interval, in key order; `None` for a deleted one.
    pub fn new(written: I) -> Merge<'a, I> {
        Merge { written: written.peekable(), is_stopped: false }
    }

    /// Visits what was written before `key`, then the present row of `key`.
    ///
    /// # Errors
    /// Any error that `visit` returns.
    pub fn row(
        &mut self,
        (key, row): (&[u8], &[u8]),
        visit: &mut Visit<'_>,
    ) -> Result<ControlFlow<()>, Halt> {
        let mut flow = ControlFlow::Continue(());
        while flow.is_continue()
            && let Some((key, row)) = self.written.next_if(|(written, _)| written.as_ref() < key)
        {
            if let Some(row) = row {
                flow = visit(key, row)?;
            }
        }
        if flow.is_continue() {
            flow = match self.written.next_if(|(written, _)| written.as_ref() == key) {
                Some((_, None)) => flow,
                Some((_, Some(row))) => visit(key, row)?,
                None => visit(key, row)?,
            };
        }
        self.is_stopped = flow.is_break();
        Ok(flow)
    }

    /// Visits what was written after the last row of the scan, unless a visit broke it off.
    ///
    /// # Errors
    /// Any error that `visit` returns.
    pub fn rest(self, visit: &mut Visit<'_>) -> Result<(), Halt> {
        if self.is_stopped {
            return Ok(());
        }
        for (key, row) in self.written {
            let Some(row) = row else { continue };
            if visit(key, row)?.is_break() {
                break;
            }
        }
        Ok(())
    }
}

impl<R: Read> Read for Overlay<'_, R> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, Halt> {
        match self.tables[table.position()].get(key) {
            Some(written) => Ok(written.clone()),
            None => self.base.get(table, key),
        }
    }

    fn scan(
        &self,
        table: Table,
        start: &[u8],
        end: Option<&[u8]>,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>, Halt>,
    ) -> Result<(), Halt> {
        if end.is_some_and(|end| end <= start) {
            return Ok(());
        }
        let bounds = (Bound::Included(start), end.map_or(Bound::Unbounded, Bound::Excluded));
        let mut merge = Merge::new(self.tables[table.position()].range::<[u8], _>(bounds));
        self.base.scan(table, start, end, &mut |key, row| merge.row((key, row), visit))?;
        merge.rest(visit)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::memory::MemoryRows;

    fn key() -> impl Strategy<Value = Bytes> {
        prop::collection::vec(0..3_u8, 0..3).prop_map(Bytes::from)
    }

    fn writes() -> impl Strategy<Value = Vec<(Bytes, bool)>> {
        prop::collection::vec((key(), any::<bool>()), 0..12)
    }

    fn rows_of(
        rows: &impl Read,
        start: &[u8],
        end: Option<&[u8]>,
        rows_max: usize,
    ) -> Vec<(Bytes, Bytes)> {
        let mut found = Vec::new();
        rows.scan(Table::Key, start, end, &mut |key, row| {
            found.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(row)));
            let is_enough = found.len() >= rows_max;
            Ok(if is_enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })
        .expect("memory does not fail");
        found
    }

    proptest! {
        #[test]
        fn overlay_reads_as_if_it_were_written(
            base in writes(),
            over in writes(),
            (start, end) in (key(), prop::option::of(key())),
            rows_max in 1..8_usize,
        ) {
            let mut below = MemoryRows::default();
            below.write(base.into_iter().map(|(key, _)| (Table::Key, key, Some("base".into()))));
            let mut overlay = Overlay::new(&below);
            for (key, is_delete) in &over {
                if *is_delete {
                    overlay.delete(Table::Key, key.clone());
                } else {
                    overlay.put(Table::Key, key.clone(), "over".into());
                }
                overlay.put(Table::Rev, key.clone(), "of another table".into());
            }
            let mut written = below.clone();
            let writes = over.iter().map(|(key, is_delete)| {
                (Table::Key, key.clone(), (!is_delete).then(|| "over".into()))
            });
            written.write(writes);
            let end = end.as_deref();
            prop_assert_eq!(
                rows_of(&overlay, &start, end, rows_max),
                rows_of(&written, &start, end, rows_max)
            );
            prop_assert_eq!(
                overlay.get(Table::Key, &start).expect("memory does not fail"),
                written.get(Table::Key, &start).expect("memory does not fail")
            );
            let writes: Vec<_> =
                overlay.into_writes().filter(|(table, ..)| *table == Table::Key).collect();
            below.write(writes);
            prop_assert_eq!(below, written);
        }
    }
}
