//! What the state needs from a storage engine: ordered rows, one atomic batch, flush, checkpoint.
//!
//! Two engines implement it: `rocks` on disk, and `memory` for the simulator and tests. Neither has
//! a write-ahead log: what was not flushed is lost in a crash, and replayed from the raft log. Code
//! above this file does not depend on which engine is used.

use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use conclave_state_machine::read::{Read, Table};
use conclave_state_machine::response::Halt;

use crate::directory::StateDir;
use crate::memory::MemoryEngine;
use crate::rocks::{RocksEngine, RocksOptions};

/// One change of one row; `None` deletes it.
pub type RowWrite = (Table, Bytes, Option<Bytes>);

/// A table, the first key, and the end key (exclusive; `None` for no bound).
pub type Interval<'a> = (Table, &'a [u8], Option<&'a [u8]>);

/// Callback of a scan.
pub type Visit<'a> = dyn FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>, Halt> + 'a;

/// The rows of one state directory.
pub trait Engine: Read + Send + Sync {
    /// Writes all rows or, after a crash, none of them. Not durable before the next flush.
    ///
    /// # Errors
    /// Any error of the storage; the batch then has no effect.
    fn write(&self, rows: &mut dyn Iterator<Item = RowWrite>) -> io::Result<()>;

    /// Returns the row as it would be after a crash now.
    ///
    /// # Errors
    /// Any error of the storage.
    fn get_flushed(&self, table: Table, key: &[u8]) -> io::Result<Option<Bytes>>;

    /// Makes everything written so far durable. Blocks; writes continue meanwhile.
    ///
    /// # Errors
    /// Any error of the storage.
    fn flush(&self) -> io::Result<()>;

    /// Creates `dir`, which must not exist, as a consistent copy of the state at some moment at or
    /// after the call. Flushes first.
    ///
    /// # Errors
    /// Any error of the storage; `dir` may then be incomplete.
    fn checkpoint(&self, dir: &Path) -> io::Result<()>;

    /// Rewrites the files without dead rows. Blocks, possibly for long; reads and writes continue.
    ///
    /// # Errors
    /// Any error of the storage.
    fn compact(&self) -> io::Result<()>;

    /// Like [`Read::scan`] of `interval` (table, start, end), but breaks off where more than
    /// `deleted_max` successive deleted rows, which are still in the files, would have to be
    /// skipped. Returns whether it did; rows before that point may then be missing.
    ///
    /// # Errors
    /// Those of [`Read::scan`].
    fn scan_within(
        &self,
        interval: Interval<'_>,
        deleted_max: u64,
        visit: &mut Visit<'_>,
    ) -> Result<ControlFlow<()>, Halt>;

    /// Calls `read` with a consistent snapshot of the rows.
    fn with_snapshot(&self, read: &mut dyn FnMut(&dyn Read));

    /// Reads every row, which verifies all checksums.
    ///
    /// # Errors
    /// The first damage found.
    fn verify(&self) -> io::Result<()>;

    /// Size of the files on disk, in bytes.
    fn disk_bytes(&self) -> u64;

    /// Bytes of memory for write buffers, caches and file indexes.
    fn memory_bytes(&self) -> u64;
}

/// Which engine a store opens, and its bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineKind {
    /// RocksDB.
    Rocks(RocksOptions),
    /// A map in memory; a flush writes it to one file.
    Memory,
}

impl Default for EngineKind {
    fn default() -> Self {
        Self::Rocks(RocksOptions::default())
    }
}

/// Whether opening may create an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Create {
    /// The directory is new: create what is missing.
    New,
    /// The directory must contain rows: an empty one means that data was lost.
    Never,
    /// The directory must contain rows; nothing is written, neither rows nor files.
    ReadOnly,
}

impl EngineKind {
    /// Opens the rows in `dir`.
    pub(crate) fn open(&self, dir: StateDir, create: Create) -> io::Result<Rows> {
        let engine = self.open_at(dir.path(), create)?;
        Ok(Rows(Arc::new(Open { engine, dir })))
    }

    /// Opens the rows in a directory whose lifetime is managed elsewhere.
    pub(crate) fn open_at(&self, dir: &Path, create: Create) -> io::Result<Box<dyn Engine>> {
        Ok(match self {
            Self::Rocks(options) => Box::new(RocksEngine::open(dir, options, create)?),
            Self::Memory => Box::new(MemoryEngine::open(dir, create)?),
        })
    }
}

// Fields are dropped in order: the engine closes before its directory may be removed.
struct Open {
    engine: Box<dyn Engine>,
    dir: StateDir,
}

/// An open engine; clones share it, and it is closed with the last of them.
#[derive(Clone)]
pub(crate) struct Rows(Arc<Open>);

impl Rows {
    /// Whether both are the same open engine.
    pub(crate) fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The directory of its files.
    pub(crate) fn dir(&self) -> &StateDir {
        &self.0.dir
    }
}

impl std::ops::Deref for Rows {
    type Target = dyn Engine;

    fn deref(&self) -> &Self::Target {
        &*self.0.engine
    }
}

impl Read for Rows {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, Halt> {
        self.0.engine.get(table, key)
    }

    fn scan(
        &self,
        table: Table,
        start: &[u8],
        end: Option<&[u8]>,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>, Halt>,
    ) -> Result<(), Halt> {
        self.0.engine.scan(table, start, end, visit)
    }
}

/// Makes a `dyn Read` usable where a sized type is required.
pub(crate) struct View<'a>(pub(crate) &'a dyn Read);

impl Read for View<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, Halt> {
        self.0.get(table, key)
    }

    fn scan(
        &self,
        table: Table,
        start: &[u8],
        end: Option<&[u8]>,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>, Halt>,
    ) -> Result<(), Halt> {
        self.0.scan(table, start, end, visit)
    }
}

/// Converts an error that stops the node into an I/O error, with which raft stops it.
pub(crate) fn halt_to_io(halt: Halt) -> io::Error {
    match halt {
        Halt::Storage(source) => match source.downcast::<io::Error>() {
            Ok(error) => *error,
            Err(source) => io::Error::other(source),
        },
        damage @ Halt::CorruptRow { .. } => io::Error::new(io::ErrorKind::InvalidData, damage),
    }
}
