//! The engine on disk: RocksDB without a write-ahead log.
//!
//! Two column families: `rev`, which only grows at its end, so that its files are moved down the
//! levels and never rewritten; and the default one for all other tables, where each row key is
//! prefixed with its table's number. Both are flushed together (`atomic_flush`), so after a crash
//! the state is that of one write batch. Written rows first gather in memory (`recent`) and are
//! passed on to RocksDB in larger batches. Every read looks there first.
//!
//! The settings (`options`) are measured: index and filter blocks stay **outside** the block cache,
//! because inside it a random get reloads them and costs 205 us instead of 7 us.
//!
//! | module | what |
//! |---|---|
//! | `options` | our bounds and RocksDB's settings |
//! | `recent` | rows that RocksDB does not have yet |
//! | `tidy` | removes deleted rows from the files |
//! | `error` | converts RocksDB's errors to ours |

mod error;
mod options;
mod recent;
mod tidy;

use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use conclave_state_machine::overlay::Merge;
use conclave_state_machine::read::{Read, Table};
use conclave_state_machine::response::Halt;
use parking_lot::{Mutex, RwLock};
use rocksdb::checkpoint::Checkpoint;
use rocksdb::{
    BottommostLevelCompaction, Cache, ColumnFamily, ColumnFamilyDescriptor, CompactOptions, DB,
    DBAccess, DBRawIteratorWithThreadMode, ErrorKind, FlushOptions, ReadOptions, ReadTier,
    WriteBatch, WriteOptions,
};

use self::error::{damage_or_io, halt, open_error};
use self::options::{BLOOM_BITS, database_options, family_options};
use self::recent::{Recent, range};
use self::tidy::{Marks, Pace, Tidier};
use crate::engine::{Create, Engine, Interval, RowWrite, Visit};

pub use options::RocksOptions;

const REV: &str = "rev";
/// Most memory to reserve for a write batch before it is filled.
const EXPECTED_BATCH_BYTES_MAX: usize = 256 << 10;

/// An open RocksDB.
pub(crate) struct RocksEngine {
    db: Arc<DB>,
    tidier: Tidier,
    cache: Cache,
    unlogged: WriteOptions,
    /// Size of the last write batch, which is reserved for the next one.
    batch_bytes: AtomicUsize,
    recent: RwLock<Recent>,
    recent_rows_max: usize,
    recent_bytes_max: usize,
    /// Held while `recent` is changed, until the change is complete: rows leave it only once
    /// RocksDB has them.
    writing: Mutex<()>,
}

impl RocksEngine {
    /// Opens the database in `dir`; fails with [`io::ErrorKind::InvalidData`] if RocksDB finds
    /// damage.
    pub(crate) fn open(dir: &Path, options: &RocksOptions, create: Create) -> io::Result<Self> {
        let cache = Cache::new_lru_cache(options.cache_bytes);
        let families = [
            ColumnFamilyDescriptor::new(
                rocksdb::DEFAULT_COLUMN_FAMILY_NAME,
                family_options(options, &cache, Some(BLOOM_BITS)),
            ),
            // Events are looked up by exact revision in files that do not overlap, so a filter
            // would only cost memory.
            ColumnFamilyDescriptor::new(REV, family_options(options, &cache, None)),
        ];
        let database = database_options(options, create);
        let db = match create {
            Create::ReadOnly => DB::open_cf_descriptors_read_only(&database, dir, families, false),
            Create::New | Create::Never => DB::open_cf_descriptors(&database, dir, families),
        }
        .map_err(|e| open_error(&e, create))?;
        let mut unlogged = WriteOptions::default();
        unlogged.disable_wal(true);
        Ok(Self {
            db: Arc::new(db),
            tidier: Tidier::new(Pace::default()),
            cache,
            unlogged,
            batch_bytes: AtomicUsize::new(0),
            recent: RwLock::default(),
            recent_rows_max: options.recent_rows_max,
            recent_bytes_max: options.recent_bytes_max,
            writing: Mutex::default(),
        })
    }

    /// Passes the recent rows on to RocksDB. The caller holds `writing`.
    fn hand_on(&self) -> io::Result<()> {
        let recent = self.recent.read().clone();
        if recent.is_empty() {
            return Ok(());
        }
        self.insert(recent.rows())?;
        // A concurrent reader finds them in one of the two places.
        *self.recent.write() = Recent::default();
        Ok(())
    }

    /// Writes rows to RocksDB, all or none. The caller holds `writing`.
    fn insert<'a>(
        &self,
        rows: impl Iterator<Item = (Table, &'a Bytes, &'a Option<Bytes>)>,
    ) -> io::Result<()> {
        let expected = self.batch_bytes.load(Ordering::Relaxed).min(EXPECTED_BATCH_BYTES_MAX);
        let mut batch = WriteBatch::with_capacity_bytes(expected);
        let (mut prefixed, mut marks) = (Vec::new(), Marks::default());
        for (table, key, row) in rows {
            match (table, row) {
                (Table::Rev, Some(row)) => batch.put_cf(self.rev(), key, row),
                (Table::Rev, None) => batch.delete_cf(self.rev(), key),
                (table, row) => {
                    prefix_into(&mut prefixed, table, key);
                    match row {
                        Some(row) => batch.put(&prefixed, row),
                        None => {
                            batch.delete(&prefixed);
                            // Only keys are read in ranges across thousands of deleted rows.
                            if table == Table::Key {
                                marks.note(&prefixed);
                            }
                        }
                    }
                }
            }
        }
        self.batch_bytes.store(batch.size_in_bytes(), Ordering::Relaxed);
        self.db.write_opt(batch, &self.unlogged).map_err(|e| damage_or_io(&e))?;
        if !marks.is_empty() {
            self.tidier.note(&self.db, &marks);
        }
        Ok(())
    }

    fn rev(&self) -> &ColumnFamily {
        self.db.cf_handle(REV).expect("opened with this column family")
    }

    fn default_family(&self) -> &ColumnFamily {
        default_family(&self.db)
    }

    fn property(&self, name: &rocksdb::properties::PropName) -> u64 {
        [self.default_family(), self.rev()]
            .into_iter()
            .map(|family| self.db.property_int_value_cf(family, name).ok().flatten().unwrap_or(0))
            .sum()
    }
}

fn default_family(db: &DB) -> &ColumnFamily {
    db.cf_handle(rocksdb::DEFAULT_COLUMN_FAMILY_NAME).expect("opened with this column family")
}

impl Engine for RocksEngine {
    fn write(&self, rows: &mut dyn Iterator<Item = RowWrite>) -> io::Result<()> {
        // Before any lock is taken, because the iterator may take long.
        let rows: Vec<RowWrite> = rows.collect();
        let is_large = rows.len() >= self.recent_rows_max
            || rows.iter().map(recent::bytes).sum::<usize>() >= self.recent_bytes_max;
        let _writing = self.writing.lock();
        let is_full = {
            let recent = self.recent.read();
            recent.len() >= self.recent_rows_max
                || recent.bytes() >= self.recent_bytes_max
                // Copying rows that a reader holds would cost more.
                || recent.is_shared()
        };
        // Before the new rows are added: a batch that fails must have no effect.
        if is_full || is_large {
            self.hand_on()?;
        }
        if is_large {
            return self.insert(rows.iter().map(|(table, key, row)| (*table, key, row)));
        }
        let mut recent = self.recent.write();
        rows.into_iter().for_each(|row| recent.write(row));
        Ok(())
    }

    fn get_flushed(&self, table: Table, key: &[u8]) -> io::Result<Option<Bytes>> {
        let mut flushed = ReadOptions::default();
        flushed.set_read_tier(ReadTier::Persisted);
        let row = if table == Table::Rev {
            self.db.get_pinned_cf_opt(self.rev(), key, &flushed)
        } else {
            self.db.get_pinned_opt(prefixed(table, key), &flushed)
        };
        Ok(row.map_err(|e| damage_or_io(&e))?.map(|row| Bytes::copy_from_slice(&row)))
    }

    fn flush(&self) -> io::Result<()> {
        {
            let _writing = self.writing.lock();
            self.hand_on()?;
        }
        let families = [self.default_family(), self.rev()];
        let mut wait = FlushOptions::default();
        wait.set_wait(true);
        self.db.flush_cfs_opt(&families, &wait).map_err(|e| damage_or_io(&e))
    }

    fn checkpoint(&self, dir: &Path) -> io::Result<()> {
        {
            let _writing = self.writing.lock();
            self.hand_on()?;
        }
        let checkpoint = Checkpoint::new(&self.db).map_err(|e| damage_or_io(&e))?;
        checkpoint.create_checkpoint(dir).map_err(|e| damage_or_io(&e))
    }

    fn compact(&self) -> io::Result<()> {
        let mut options = CompactOptions::default();
        // Lets flushes, and the compactions that writes wait for, run in between.
        options.set_exclusive_manual_compaction(false);
        options.set_bottommost_level_compaction(BottommostLevelCompaction::ForceOptimized);
        for family in [self.default_family(), self.rev()] {
            self.db.compact_range_cf_opt(family, None::<&[u8]>, None::<&[u8]>, &options);
        }
        Ok(())
    }

    fn scan_within(
        &self,
        interval: Interval<'_>,
        deleted_max: u64,
        visit: &mut Visit<'_>,
    ) -> Result<ControlFlow<()>, Halt> {
        let mut options = ReadOptions::default();
        options.set_max_skippable_internal_keys(deleted_max);
        match scan(self, None, options, interval, visit)? {
            Ok(()) => Ok(ControlFlow::Continue(())),
            Err(error) if error.kind() == ErrorKind::Incomplete => Ok(ControlFlow::Break(())),
            Err(error) => Err(halt(error)),
        }
    }

    fn with_snapshot(&self, read: &mut dyn FnMut(&dyn Read)) {
        let (recent, snapshot) = {
            let recent = self.recent.read();
            (recent.clone(), self.db.snapshot())
        };
        read(&Snapshot { engine: self, recent, snapshot: &snapshot });
    }

    fn verify(&self) -> io::Result<()> {
        for family in [self.default_family(), self.rev()] {
            let mut options = ReadOptions::default();
            options.fill_cache(false);
            options.set_readahead_size(1 << 20);
            let mut rows = self.db.raw_iterator_cf_opt(family, options);
            rows.seek_to_first();
            while rows.valid() {
                rows.next();
            }
            rows.status().map_err(|e| damage_or_io(&e))?;
        }
        Ok(())
    }

    fn disk_bytes(&self) -> u64 {
        self.property(rocksdb::properties::TOTAL_SST_FILES_SIZE)
    }

    fn memory_bytes(&self) -> u64 {
        self.property(rocksdb::properties::CUR_SIZE_ALL_MEM_TABLES)
            + self.property(rocksdb::properties::ESTIMATE_TABLE_READERS_MEM)
            + self.cache.get_usage() as u64
            + self.recent.read().bytes() as u64
    }
}

impl Drop for RocksEngine {
    /// Passes the recent rows on. RocksDB flushes when it is closed, so that the next start has
    /// less of the log to replay.
    fn drop(&mut self) {
        if let Err(error) = self.hand_on() {
            tracing::debug!(%error, "the last rows were not written: the log has them");
        }
        if let Some(thread) = self.tidier.close() {
            // Otherwise a merge would run to its end. This also flushes.
            self.db.cancel_all_background_work(true);
            if thread.join().is_err() {
                tracing::debug!("deleted rows were not taken out of the files");
            }
        }
    }
}

impl Read for RocksEngine {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, Halt> {
        let recent = self.recent.read().get(table, key);
        recent.map_or_else(|| get(self, ReadOptions::default(), table, key), Ok)
    }

    fn scan(
        &self,
        table: Table,
        start: &[u8],
        end: Option<&[u8]>,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>, Halt>,
    ) -> Result<(), Halt> {
        scan(self, None, ReadOptions::default(), (table, start, end), visit)?.map_err(halt)
    }
}

/// A snapshot of the rows.
struct Snapshot<'a> {
    engine: &'a RocksEngine,
    recent: Recent,
    snapshot: &'a rocksdb::Snapshot<'a>,
}

impl Snapshot<'_> {
    fn options(&self) -> ReadOptions {
        let mut options = ReadOptions::default();
        options.set_snapshot(self.snapshot);
        options
    }
}

impl Read for Snapshot<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, Halt> {
        let recent = self.recent.get(table, key);
        recent.map_or_else(|| get(self.engine, self.options(), table, key), Ok)
    }

    fn scan(
        &self,
        table: Table,
        start: &[u8],
        end: Option<&[u8]>,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>, Halt>,
    ) -> Result<(), Halt> {
        let mut options = self.options();
        // Reads from a snapshot are long ones, which must not push the hot blocks out of the cache.
        options.fill_cache(false);
        let interval = (table, start, end);
        scan(self.engine, Some(&self.recent), options, interval, visit)?.map_err(halt)
    }
}

fn get(
    engine: &RocksEngine,
    options: ReadOptions,
    table: Table,
    key: &[u8],
) -> Result<Option<Bytes>, Halt> {
    let row = if table == Table::Rev {
        engine.db.get_pinned_cf_opt(engine.rev(), key, &options)
    } else {
        engine.db.get_pinned_opt(prefixed(table, key), &options)
    };
    Ok(row.map_err(halt)?.map(|row| Bytes::copy_from_slice(&row)))
}

/// The status that RocksDB reports for a scan; the outer error is one that `visit` returned.
type Scanned = Result<Result<(), rocksdb::Error>, Halt>;

/// Visits an interval of the present rows, or of the snapshot in `options`, whose recent rows are
/// `recent`.
fn scan(
    engine: &RocksEngine,
    recent: Option<&Recent>,
    mut options: ReadOptions,
    interval @ (table, start, end): Interval<'_>,
    visit: &mut Visit<'_>,
) -> Scanned {
    let (family, start, prefix) = if table == Table::Rev {
        if let Some(end) = end {
            options.set_iterate_upper_bound(end);
        }
        (engine.rev(), start.to_vec(), 0)
    } else {
        let upper = match end {
            Some(end) => prefixed(table, end),
            None => vec![table as u8 + 1],
        };
        options.set_iterate_upper_bound(upper);
        (engine.default_family(), prefixed(table, start), 1)
    };
    let (recent, rows) = {
        // Both from the same moment.
        let now = engine.recent.read();
        (recent.unwrap_or(&now).table(table), engine.db.raw_iterator_cf_opt(family, options))
    };
    let mut merge = Merge::new(range(&recent, interval));
    let mut over = |key: &[u8], row: &[u8]| merge.row((key, row), visit);
    if let Err(error) = visit_rows(rows, &start, prefix, &mut over)? {
        return Ok(Err(error));
    }
    merge.rest(visit).map(Ok)
}

/// Visits rows from `start` to the iterator's bound, without the first `prefix` bytes of each
/// stored key.
fn visit_rows<D: DBAccess>(
    mut rows: DBRawIteratorWithThreadMode<'_, D>,
    start: &[u8],
    prefix: usize,
    visit: &mut Visit<'_>,
) -> Scanned {
    rows.seek(start);
    while let Some((key, value)) = rows.item() {
        if visit(&key[prefix..], value)?.is_break() {
            return Ok(Ok(()));
        }
        rows.next();
    }
    Ok(rows.status())
}

fn prefixed(table: Table, key: &[u8]) -> Vec<u8> {
    let mut row = Vec::with_capacity(key.len() + 1);
    prefix_into(&mut row, table, key);
    row
}

fn prefix_into(row: &mut Vec<u8>, table: Table, key: &[u8]) {
    row.clear();
    row.push(table as u8);
    row.extend_from_slice(key);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn put(key: &'static str, value: &'static str) -> RowWrite {
        (Table::Key, Bytes::from_static(key.as_bytes()), Some(Bytes::from_static(value.as_bytes())))
    }

    /// All keys with their values, checking that a scan and single reads agree.
    fn shown(rows: &dyn Read) -> String {
        let mut seen = String::new();
        let mut visit = |key: &[u8], row: &[u8]| {
            seen.push_str(&format!("{}={} ", key.escape_ascii(), row.escape_ascii()));
            // The trait allows reading the same rows again during a scan.
            assert_eq!(rows.get(Table::Key, key)?.as_deref(), Some(row));
            Ok(ControlFlow::Continue(()))
        };
        rows.scan(Table::Key, b"", None, &mut visit).unwrap();
        seen
    }

    #[test]
    fn a_scan_gives_up_where_too_much_is_deleted() {
        const DELETED: u64 = 3_000;
        let dir = tempfile::tempdir().unwrap();
        let engine = RocksEngine::open(dir.path(), &RocksOptions::default(), Create::New).unwrap();
        let rows = (0..DELETED).map(|n| (Table::Key, Bytes::from(format!("b{n:05}"))));
        let written = |(table, key)| (table, key, Some(Bytes::from_static(b"v")));
        engine.write(&mut rows.clone().map(written)).unwrap();
        engine.write(&mut rows.map(|(table, key)| (table, key, None))).unwrap();
        engine.write(&mut [put("a", "1"), put("c", "3")].into_iter()).unwrap();
        engine.hand_on().unwrap();
        let scan = |deleted_max: u64| {
            let mut seen = Vec::new();
            let mut visit = |key: &[u8], _: &[u8]| {
                seen.push(key[0]);
                Ok(ControlFlow::Continue(()))
            };
            let interval = (Table::Key, &b""[..], None);
            let ended = engine.scan_within(interval, deleted_max, &mut visit).unwrap();
            (seen, ended)
        };
        assert_eq!(scan(DELETED / 2), (b"a".to_vec(), ControlFlow::Break(())));
        assert_eq!(scan(DELETED * 3), (b"ac".to_vec(), ControlFlow::Continue(())));
    }

    #[test]
    fn deleted_keys_leave_the_files_by_themselves() {
        const DELETED: u64 = 3_000;
        let dir = tempfile::tempdir().unwrap();
        let mut engine =
            RocksEngine::open(dir.path(), &RocksOptions::default(), Create::New).unwrap();
        let (settle, pause) = (Duration::ZERO, Duration::ZERO);
        engine.tidier = Tidier::new(Pace { marks_min: DELETED, settle, pause });
        let rows = (0..DELETED).map(|n| (Table::Key, Bytes::from(format!("b{n:05}"))));
        let written = |(table, key)| (table, key, Some(Bytes::from_static(b"v")));
        engine.write(&mut rows.clone().map(written)).unwrap();
        engine.flush().unwrap();
        engine.write(&mut [put("a", "1"), put("c", "3")].into_iter()).unwrap();
        // Whether a scan of all rows never has to skip more than a few deleted ones in succession.
        let passes = || {
            let mut visit = |_: &[u8], _: &[u8]| Ok(ControlFlow::Continue(()));
            engine.scan_within((Table::Key, b"", None), 10, &mut visit).unwrap().is_continue()
        };
        engine.write(&mut rows.clone().skip(1).map(|(table, key)| (table, key, None))).unwrap();
        engine.tidier.wait_until_done();
        assert!(!passes(), "they are too few");
        engine.write(&mut rows.take(1).map(|(table, key)| (table, key, None))).unwrap();
        engine.hand_on().unwrap();
        engine.tidier.wait_until_done();
        assert!(passes());
        assert_eq!(shown(&engine), "a=1 c=3 ");
    }

    #[test]
    fn closing_does_not_wait_for_the_next_merge() {
        let dir = tempfile::tempdir().unwrap();
        let options = RocksOptions::default();
        let mut engine = RocksEngine::open(dir.path(), &options, Create::New).unwrap();
        let (settle, pause) = (Duration::MAX, Duration::MAX);
        engine.tidier = Tidier::new(Pace { marks_min: 1, settle, pause });
        engine.write(&mut [put("a", "1"), put("b", "1")].into_iter()).unwrap();
        engine.write(&mut [(Table::Key, Bytes::from_static(b"a"), None)].into_iter()).unwrap();
        drop(engine);
        let engine = RocksEngine::open(dir.path(), &options, Create::Never).unwrap();
        assert_eq!(shown(&engine), "b=1 ", "closing loses nothing");
    }

    #[test]
    fn a_snapshot_stays_as_it_was_while_rows_are_handed_on() {
        let dir = tempfile::tempdir().unwrap();
        let options = RocksOptions { recent_rows_max: 2, ..RocksOptions::default() };
        let engine = RocksEngine::open(dir.path(), &options, Create::New).unwrap();
        let write = |rows: &[RowWrite]| engine.write(&mut rows.iter().cloned()).unwrap();
        let deleted = |key| (Table::Key, Bytes::from_static(key), None);
        write(&[put("a", "1"), put("b", "1"), put("c", "1")]);
        write(&[put("b", "2"), deleted(b"c")]);
        engine.with_snapshot(&mut |snapshot| {
            assert_eq!(shown(snapshot), "a=1 b=2 ");
            write(&[deleted(b"a"), put("d", "3")]);
            write(&[put("b", "4")]);
            assert_eq!(shown(snapshot), "a=1 b=2 ");
        });
        assert_eq!(shown(&engine), "b=4 d=3 ");
        drop(engine);
        let engine = RocksEngine::open(dir.path(), &options, Create::Never).unwrap();
        assert_eq!(shown(&engine), "b=4 d=3 ", "closing loses nothing");
    }

    #[test]
    fn rows_that_a_reader_holds_go_on_and_are_not_copied() {
        let dir = tempfile::tempdir().unwrap();
        let engine = RocksEngine::open(dir.path(), &RocksOptions::default(), Create::New).unwrap();
        let write = |row: RowWrite| engine.write(&mut std::iter::once(row)).unwrap();
        let waiting = || {
            let recent = engine.recent.read();
            let keys = recent.rows().map(|(_, key, _)| String::from_utf8_lossy(key).into_owned());
            keys.collect::<String>()
        };
        let stored = |key: &[u8]| get(&engine, ReadOptions::default(), Table::Key, key).unwrap();
        write(put("a", "1"));
        write(put("b", "1"));
        assert_eq!((waiting().as_str(), stored(b"a")), ("ab", None), "nobody holds them");
        engine.with_snapshot(&mut |snapshot| {
            write(put("b", "2"));
            assert_eq!(waiting(), "b", "what the reader holds went on as it was");
            assert_eq!([stored(b"a"), stored(b"b")].map(Option::unwrap), ["1", "1"]);
            write(put("c", "1"));
            assert_eq!(waiting(), "bc", "it holds nothing of what came later");
            assert_eq!(shown(snapshot), "a=1 b=1 ");
        });
        write(put("d", "1"));
        assert_eq!(waiting(), "bcd");
        // A scan keeps the rows of its table only while it runs, and its visitor may write.
        let mut has_written = false;
        let mut visit = |_: &[u8], _: &[u8]| {
            if !std::mem::replace(&mut has_written, true) {
                write(put("e", "1"));
                assert_eq!(waiting(), "e");
            }
            Ok(ControlFlow::Continue(()))
        };
        engine.scan(Table::Key, b"", None, &mut visit).unwrap();
        assert_eq!(shown(&engine), "a=1 b=2 c=1 d=1 e=1 ");
    }

    #[test]
    fn a_damaged_file_is_refused_when_opened_or_read() {
        let dir = tempfile::tempdir().unwrap();
        let options = RocksOptions::default();
        let engine = RocksEngine::open(dir.path(), &options, Create::New).unwrap();
        engine.write(&mut [put("a", "1"), put("b", "2")].into_iter()).unwrap();
        engine.flush().unwrap();
        drop(engine);
        let table = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .find(|path| path.extension().is_some_and(|e| e == "sst"))
            .unwrap();
        let mut bytes = std::fs::read(&table).unwrap();
        bytes[3] ^= 0xff;
        std::fs::write(&table, bytes).unwrap();
        let damaged = RocksEngine::open(dir.path(), &options, Create::Never)
            .and_then(|engine| engine.verify())
            .unwrap_err();
        assert_eq!(damaged.kind(), io::ErrorKind::InvalidData);
    }
}
