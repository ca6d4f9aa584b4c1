//! The engine in memory, for tests that compare engines.
//!
//! It has the same contract as `rocks`: a write is lost in a crash until a flush, which here writes
//! all rows to one checksummed file. Readers never wait for writers: a reader keeps the maps as
//! they were, and a write copies them if a reader has them.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::ops::{Bound, ControlFlow};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Buf, Bytes};
use conclave_state_machine::read::{Read, Table};
use conclave_state_machine::response::Halt;
use parking_lot::Mutex;

use crate::engine::{Create, Engine, Interval, RowWrite, Visit};

const FILE: &str = "rows";

type Map = BTreeMap<Bytes, Bytes>;

#[derive(Clone, Default)]
struct Tables([Map; TABLES]);

/// One more than the largest table number, which is the last one's; some numbers are unused.
const TABLES: usize = Table::ALL[Table::ALL.len() - 1] as usize + 1;

impl Tables {
    fn table(&self, table: Table) -> &Map {
        &self.0[table as usize]
    }
}

/// Rows in memory.
pub(crate) struct MemoryEngine {
    dir: PathBuf,
    rows: Mutex<Arc<Tables>>,
    flushed: Mutex<Arc<Tables>>,
}

impl MemoryEngine {
    /// Loads what the last flush left in `dir`; fails with [`io::ErrorKind::InvalidData`] if it is
    /// damaged.
    pub(crate) fn open(dir: &Path, create: Create) -> io::Result<Self> {
        let tables = match create {
            Create::New => {
                std::fs::create_dir_all(dir)?;
                Tables::default()
            }
            Create::Never | Create::ReadOnly => decode(std::fs::read(dir.join(FILE))?.into())?,
        };
        let rows = Arc::new(tables);
        let flushed = Mutex::new(Arc::clone(&rows));
        Ok(Self { dir: dir.to_owned(), rows: Mutex::new(rows), flushed })
    }

    fn rows(&self) -> Arc<Tables> {
        Arc::clone(&self.rows.lock())
    }
}

impl Engine for MemoryEngine {
    fn write(&self, rows: &mut dyn Iterator<Item = RowWrite>) -> io::Result<()> {
        let mut current = self.rows.lock();
        let tables = Arc::make_mut(&mut current);
        for (table, key, value) in rows {
            let map = &mut tables.0[table as usize];
            match value {
                Some(value) => map.insert(key, value),
                None => map.remove(&key),
            };
        }
        Ok(())
    }

    fn get_flushed(&self, table: Table, key: &[u8]) -> io::Result<Option<Bytes>> {
        Ok(self.flushed.lock().table(table).get(key).cloned())
    }

    fn flush(&self) -> io::Result<()> {
        let mut flushed = self.flushed.lock();
        let rows = self.rows();
        store(&self.dir, &rows)?;
        *flushed = rows;
        Ok(())
    }

    fn checkpoint(&self, dir: &Path) -> io::Result<()> {
        self.flush()?;
        std::fs::create_dir(dir)?;
        store(dir, &self.flushed.lock())
    }

    fn compact(&self) -> io::Result<()> {
        Ok(())
    }

    fn scan_within(
        &self,
        (table, start, end): Interval<'_>,
        _deleted_max: u64,
        visit: &mut Visit<'_>,
    ) -> Result<ControlFlow<()>, Halt> {
        // Deleted rows leave nothing behind here.
        self.scan(table, start, end, visit)?;
        Ok(ControlFlow::Continue(()))
    }

    fn with_snapshot(&self, read: &mut dyn FnMut(&dyn Read)) {
        read(&*self.rows());
    }

    fn verify(&self) -> io::Result<()> {
        Ok(())
    }

    fn disk_bytes(&self) -> u64 {
        std::fs::metadata(self.dir.join(FILE)).map_or(0, |file| file.len())
    }

    fn memory_bytes(&self) -> u64 {
        let rows = self.rows();
        rows.0.iter().flatten().map(|(key, value)| (key.len() + value.len()) as u64).sum()
    }
}

impl Read for MemoryEngine {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, Halt> {
        Ok(self.rows.lock().table(table).get(key).cloned())
    }

    fn scan(
        &self,
        table: Table,
        start: &[u8],
        end: Option<&[u8]>,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>, Halt>,
    ) -> Result<(), Halt> {
        self.rows().scan(table, start, end, visit)
    }
}

impl Read for Tables {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, Halt> {
        Ok(self.table(table).get(key).cloned())
    }

    fn scan(
        &self,
        table: Table,
        start: &[u8],
        end: Option<&[u8]>,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>, Halt>,
    ) -> Result<(), Halt> {
        // An empty interval makes `BTreeMap::range` panic.
        if end.is_some_and(|end| end <= start) {
            return Ok(());
        }
        let upper = end.map_or(Bound::Unbounded, Bound::Excluded);
        for (key, value) in self.table(table).range::<[u8], _>((Bound::Included(start), upper)) {
            if visit(key, value)?.is_break() {
                break;
            }
        }
        Ok(())
    }
}

/// Writes the rows to a temporary file, which then replaces the old one.
fn store(dir: &Path, tables: &Tables) -> io::Result<()> {
    let temporary = dir.join("rows.tmp");
    let mut file = std::fs::File::create(&temporary)?;
    file.write_all(&encode(tables))?;
    file.sync_all()?;
    std::fs::rename(&temporary, dir.join(FILE))?;
    std::fs::File::open(dir)?.sync_all()
}

fn encode(tables: &Tables) -> Vec<u8> {
    let mut bytes = Vec::new();
    for table in Table::ALL {
        for (key, value) in tables.table(table) {
            bytes.push(table as u8);
            bytes.extend_from_slice(&(key.len() as u64).to_le_bytes());
            bytes.extend_from_slice(&(value.len() as u64).to_le_bytes());
            bytes.extend_from_slice(key);
            bytes.extend_from_slice(value);
        }
    }
    bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
    bytes
}

fn decode(mut bytes: Bytes) -> io::Result<Tables> {
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, "damaged file of rows");
    let body = bytes.len().checked_sub(4).ok_or_else(damaged)?;
    let checksum = bytes.split_off(body).get_u32_le();
    if crc32c::crc32c(&bytes) != checksum {
        return Err(damaged());
    }
    let mut tables = Tables::default();
    while bytes.has_remaining() {
        if bytes.remaining() < 17 {
            return Err(damaged());
        }
        let table = usize::from(bytes.get_u8());
        let key = usize::try_from(bytes.get_u64_le()).map_err(|_| damaged())?;
        let value = usize::try_from(bytes.get_u64_le()).map_err(|_| damaged())?;
        let row = key.checked_add(value).filter(|row| *row <= bytes.remaining());
        if table >= TABLES || row.is_none() {
            return Err(damaged());
        }
        let key = bytes.split_to(key);
        tables.0[table].insert(key, bytes.split_to(value));
    }
    Ok(tables)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_loses_exactly_what_was_not_flushed() {
        let dir = tempfile::tempdir().unwrap();
        let row = |key: &'static str| {
            (Table::Key, Bytes::from_static(key.as_bytes()), Some(Bytes::from_static(b"v")))
        };
        let engine = MemoryEngine::open(dir.path(), Create::New).unwrap();
        engine.write(&mut [row("kept")].into_iter()).unwrap();
        engine.flush().unwrap();
        engine.write(&mut [row("lost")].into_iter()).unwrap();
        assert!(engine.get(Table::Key, b"lost").unwrap().is_some());
        assert!(engine.get_flushed(Table::Key, b"lost").unwrap().is_none());
        drop(engine);
        let engine = MemoryEngine::open(dir.path(), Create::Never).unwrap();
        assert!(engine.get(Table::Key, b"kept").unwrap().is_some());
        assert!(engine.get(Table::Key, b"lost").unwrap().is_none());
    }

    #[test]
    fn a_damaged_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        MemoryEngine::open(dir.path(), Create::New).unwrap().flush().unwrap();
        std::fs::write(dir.path().join(FILE), b"xxxxxxxxxxx").unwrap();
        let error = MemoryEngine::open(dir.path(), Create::Never).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
