//! Rows in memory, for tests of the rules, here and in other crates.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};

use bytes::Bytes;

use crate::overlay::Overlay;
use crate::read::{Read, Table};
use crate::response::Halt;

/// All tables as ordered maps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryRows {
    tables: BTreeMap<Table, BTreeMap<Bytes, Bytes>>,
}

impl MemoryRows {
    /// Carries out the writes that [`Overlay::into_writes`] returned.
    pub fn write(&mut self, writes: impl IntoIterator<Item = (Table, Bytes, Option<Bytes>)>) {
        for (table, key, row) in writes {
            let rows = self.tables.entry(table).or_default();
            match row {
                Some(row) => rows.insert(key, row),
                None => rows.remove(&key),
            };
        }
    }

    /// Runs `change` on an overlay over these rows and keeps what it wrote.
    ///
    /// # Errors
    /// Any error that `change` returns; its writes are dropped then.
    pub fn update<T, E>(
        &mut self,
        change: impl FnOnce(&mut Overlay<'_, MemoryRows>) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut overlay = Overlay::new(&*self);
        let answer = change(&mut overlay)?;
        let writes: Vec<_> = overlay.into_writes().collect();
        self.write(writes);
        Ok(answer)
    }

    /// Rows of one table, in key order.
    pub fn rows(&self, table: Table) -> impl Iterator<Item = (&Bytes, &Bytes)> {
        self.tables.get(&table).into_iter().flatten()
    }
}

impl Read for MemoryRows {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, Halt> {
        Ok(self.tables.get(&table).and_then(|rows| rows.get(key)).cloned())
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
        let Some(rows) = self.tables.get(&table) else { return Ok(()) };
        let bounds = (Bound::Included(start), end.map_or(Bound::Unbounded, Bound::Excluded));
        for (key, row) in rows.range::<[u8], _>(bounds) {
            if visit(key, row)?.is_break() {
                break;
            }
        }
        Ok(())
    }
}
