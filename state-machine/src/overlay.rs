//! Writes of one apply batch on top of the rows before it: later commands see earlier ones.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};

use bytes::Bytes;

use crate::read::{Read, Table};
use crate::response::Halt;

type Writes = BTreeMap<Bytes, Option<Bytes>>;

/// Rows of `base` with writes over them, which the caller takes out at the end.
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
        self.tables[place(table)].insert(key, Some(row));
    }

    /// Deletes a row; it need not exist.
    pub fn delete(&mut self, table: Table, key: Bytes) {
        self.tables[place(table)].insert(key, None);
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

fn place(table: Table) -> usize {
    match table {
        Table::Key => 0,
        Table::Rev => 1,
        Table::Lease => 2,
        Table::LeaseKey => 3,
        Table::Member => 4,
        Table::Auth => 5,
        Table::Meta => 6,
    }
}

impl<R: Read> Read for Overlay<'_, R> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, Halt> {
        match self.tables[place(table)].get(key) {
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
        let mut written = self.tables[place(table)].range::<[u8], _>(bounds).peekable();
        let mut is_stopped = false;
        self.base.scan(table, start, end, &mut |key, row| {
            while let Some((written_key, written_row)) =
                written.next_if(|(written_key, _)| written_key.as_ref() < key)
            {
                let Some(written_row) = written_row else { continue };
                if visit(written_key, written_row)?.is_break() {
                    is_stopped = true;
                    return Ok(ControlFlow::Break(()));
                }
            }
            let flow = match written.next_if(|(written_key, _)| written_key.as_ref() == key) {
                Some((_, None)) => ControlFlow::Continue(()),
                Some((_, Some(written_row))) => visit(key, written_row)?,
                None => visit(key, row)?,
            };
            is_stopped = flow.is_break();
            Ok(flow)
        })?;
        if is_stopped {
            return Ok(());
        }
        for (key, row) in written {
            let Some(row) = row else { continue };
            if visit(key, row)?.is_break() {
                break;
            }
        }
        Ok(())
    }
}
