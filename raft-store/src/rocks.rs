//! The engine on disk: RocksDB without a write-ahead log.
//!
//! Two column families: `rev`, which only ever grows at its end, so that its files are moved down
//! the levels and never rewritten; and the default one for all other tables, each row key prefixed
//! with its table's number. Both are flushed together (`atomic_flush`), so after a crash the state is
//! that of one write batch.
//!
//! The settings are measured: index and filter blocks stay **outside** the block
//! cache, because inside it a random get reloads them and costs 205 us instead of 7 us.

use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use conclave_state_machine::read::{Read, Table};
use conclave_state_machine::response::Halt;
use rocksdb::{
    BlockBasedOptions, BottommostLevelCompaction, Cache, ColumnFamily, ColumnFamilyDescriptor,
    CompactOptions, DB, DBAccess, DBCompressionType, DBRawIteratorWithThreadMode, ErrorKind,
    FlushOptions, LogLevel, Options, ReadOptions, ReadTier, WriteBatch, WriteOptions,
    checkpoint::Checkpoint,
};

use crate::engine::{Create, Engine, RowWrite};

const REV: &str = "rev";
const BLOCK_BYTES: usize = 8 << 10;
const BLOOM_BITS: f64 = 10.0;
/// One flush and one compaction at a time: the log writer and raft need the other core.
const BACKGROUND_JOBS: i32 = 2;
const WRITE_BUFFERS_MAX: i32 = 3;
/// Flushed files that are merged into the next level together: each merge rewrites much of that level.
const LEVEL_0_FILES: i32 = 8;
/// Memory taken for a write batch before it is filled.
const EXPECTED_BATCH_BYTES_MAX: usize = 256 << 10;
/// RocksDB's own words, whatever the system's language.
const NO_SPACE: &str = "IO error: No space left on device";

/// Bounds of a RocksDB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RocksOptions {
    /// Cache of uncompressed data blocks.
    pub cache_bytes: usize,
    /// Size at which a write buffer is flushed; there are at most three of each of two kinds.
    pub write_buffer_bytes: usize,
    /// Size of all write buffers together at which they are flushed early.
    pub write_buffers_bytes_max: usize,
    /// Most files held open.
    pub open_files_max: i32,
}

impl Default for RocksOptions {
    fn default() -> Self {
        Self {
            cache_bytes: 64 << 20,
            // Inserts into a small one miss the processor's caches less.
            write_buffer_bytes: 8 << 20,
            write_buffers_bytes_max: 32 << 20,
            open_files_max: 512,
        }
    }
}

/// An open RocksDB.
pub(crate) struct RocksEngine {
    db: DB,
    cache: Cache,
    unlogged: WriteOptions,
    /// Size of the last write batch: the next one is made as large at once.
    batch_bytes: AtomicUsize,
}

impl RocksEngine {
    /// Opens the database in `dir`; [`io::ErrorKind::InvalidData`] if RocksDB finds damage.
    pub(crate) fn open(dir: &Path, options: &RocksOptions, create: Create) -> io::Result<Self> {
        let cache = Cache::new_lru_cache(options.cache_bytes);
        let families = [
            ColumnFamilyDescriptor::new(
                rocksdb::DEFAULT_COLUMN_FAMILY_NAME,
                family_options(options, &cache, Some(BLOOM_BITS)),
            ),
            // Events are looked up by exact revision in files that do not overlap: a filter would
            // only cost memory.
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
        Ok(Self { db, cache, unlogged, batch_bytes: AtomicUsize::new(0) })
    }

    fn rev(&self) -> &ColumnFamily {
        self.db.cf_handle(REV).expect("opened with this column family")
    }

    fn default_family(&self) -> &ColumnFamily {
        self.db
            .cf_handle(rocksdb::DEFAULT_COLUMN_FAMILY_NAME)
            .expect("opened with this column family")
    }

    fn property(&self, name: &rocksdb::properties::PropName) -> u64 {
        [self.default_family(), self.rev()]
            .into_iter()
            .map(|family| self.db.property_int_value_cf(family, name).ok().flatten().unwrap_or(0))
            .sum()
    }
}

fn database_options(options: &RocksOptions, create: Create) -> Options {
    let mut db = Options::default();
    db.create_if_missing(create == Create::New);
    db.create_missing_column_families(create == Create::New);
    db.set_paranoid_checks(true);
    db.set_atomic_flush(true);
    db.set_max_background_jobs(BACKGROUND_JOBS);
    db.set_max_open_files(options.open_files_max);
    db.set_db_write_buffer_size(options.write_buffers_bytes_max);
    // Files are synced piece by piece while they are written, so that the final sync does not hold
    // up the raft log on the same disk.
    db.set_bytes_per_sync(1 << 20);
    db.set_log_level(LogLevel::Warn);
    db.set_keep_log_file_num(2);
    db.set_max_log_file_size(1 << 20);
    db.set_max_manifest_file_size(16 << 20);
    db.set_stats_dump_period_sec(0);
    db.set_stats_persist_period_sec(0);
    db
}

fn family_options(options: &RocksOptions, cache: &Cache, bloom_bits: Option<f64>) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_block_size(BLOCK_BYTES);
    table.set_cache_index_and_filter_blocks(false);
    table.set_format_version(6);
    if let Some(bits) = bloom_bits {
        table.set_bloom_filter(bits, false);
        table.set_optimize_filters_for_memory(true);
    }
    let mut family = Options::default();
    family.set_block_based_table_factory(&table);
    family.set_compression_type(DBCompressionType::Lz4);
    family.set_write_buffer_size(options.write_buffer_bytes);
    family.set_max_write_buffer_number(WRITE_BUFFERS_MAX);
    family.set_level_compaction_dynamic_level_bytes(true);
    family.set_level_zero_file_num_compaction_trigger(LEVEL_0_FILES);
    family
}

impl Engine for RocksEngine {
    fn write(&self, rows: &mut dyn Iterator<Item = RowWrite>) -> io::Result<()> {
        let expected = self.batch_bytes.load(Ordering::Relaxed).min(EXPECTED_BATCH_BYTES_MAX);
        let mut batch = WriteBatch::with_capacity_bytes(expected);
        let mut prefixed = Vec::new();
        for (table, key, value) in rows {
            match (table, value) {
                (Table::Rev, Some(value)) => batch.put_cf(self.rev(), key, value),
                (Table::Rev, None) => batch.delete_cf(self.rev(), key),
                (table, value) => {
                    prefix_into(&mut prefixed, table, &key);
                    match value {
                        Some(value) => batch.put(&prefixed, value),
                        None => batch.delete(&prefixed),
                    }
                }
            }
        }
        self.batch_bytes.store(batch.size_in_bytes(), Ordering::Relaxed);
        self.db.write_opt(batch, &self.unlogged).map_err(|e| damage_or_io(&e))
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
        let families = [self.default_family(), self.rev()];
        let mut wait = FlushOptions::default();
        wait.set_wait(true);
        self.db.flush_cfs_opt(&families, &wait).map_err(|e| damage_or_io(&e))
    }

    fn checkpoint(&self, dir: &Path) -> io::Result<()> {
        let checkpoint = Checkpoint::new(&self.db).map_err(|e| damage_or_io(&e))?;
        checkpoint.create_checkpoint(dir).map_err(|e| damage_or_io(&e))
    }

    fn compact(&self) -> io::Result<()> {
        let mut options = CompactOptions::default();
        // Flushes and the compactions that keep writes going run in between.
        options.set_exclusive_manual_compaction(false);
        options.set_bottommost_level_compaction(BottommostLevelCompaction::ForceOptimized);
        for family in [self.default_family(), self.rev()] {
            self.db.compact_range_cf_opt(family, None::<&[u8]>, None::<&[u8]>, &options);
        }
        Ok(())
    }

    fn with_snapshot(&self, read: &mut dyn FnMut(&dyn Read)) {
        let snapshot = self.db.snapshot();
        read(&Snapshot { engine: self, snapshot: &snapshot });
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
    }
}

impl Read for RocksEngine {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, Halt> {
        get(self, ReadOptions::default(), table, key)
    }

    fn scan(
        &self,
        table: Table,
        start: &[u8],
        end: Option<&[u8]>,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>, Halt>,
    ) -> Result<(), Halt> {
        scan(self, ReadOptions::default(), Interval { table, start, end }, visit)
    }
}

/// The rows as of one moment.
struct Snapshot<'a> {
    engine: &'a RocksEngine,
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
        get(self.engine, self.options(), table, key)
    }

    fn scan(
        &self,
        table: Table,
        start: &[u8],
        end: Option<&[u8]>,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>, Halt>,
    ) -> Result<(), Halt> {
        let mut options = self.options();
        // Reads as of a moment are long ones; they must not push the hot blocks out of the cache.
        options.fill_cache(false);
        scan(self.engine, options, Interval { table, start, end }, visit)
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

type Visit<'a> = dyn FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>, Halt> + 'a;

struct Interval<'a> {
    table: Table,
    start: &'a [u8],
    end: Option<&'a [u8]>,
}

fn scan(
    engine: &RocksEngine,
    mut options: ReadOptions,
    interval: Interval<'_>,
    visit: &mut Visit<'_>,
) -> Result<(), Halt> {
    let Interval { table, start, end } = interval;
    if table == Table::Rev {
        if let Some(end) = end {
            options.set_iterate_upper_bound(end);
        }
        let rows = engine.db.raw_iterator_cf_opt(engine.rev(), options);
        return visit_rows(rows, start, 0, visit);
    }
    let upper = match end {
        Some(end) => prefixed(table, end),
        None => vec![table as u8 + 1],
    };
    options.set_iterate_upper_bound(upper);
    let rows = engine.db.raw_iterator_opt(options);
    visit_rows(rows, &prefixed(table, start), 1, visit)
}

/// Visits from `start` to the iterator's bound; `prefix` bytes of each stored key are not shown.
fn visit_rows<D: DBAccess>(
    mut rows: DBRawIteratorWithThreadMode<'_, D>,
    start: &[u8],
    prefix: usize,
    visit: &mut Visit<'_>,
) -> Result<(), Halt> {
    rows.seek(start);
    while let Some((key, value)) = rows.item() {
        if visit(&key[prefix..], value)?.is_break() {
            return Ok(());
        }
        rows.next();
    }
    rows.status().map_err(halt)
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

fn halt(error: rocksdb::Error) -> Halt {
    Halt::Storage(Box::new(damage_or_io(&error)))
}

/// A database that should be there and is not, or not all of it, is damage too.
fn open_error(error: &rocksdb::Error, create: Create) -> io::Error {
    let text = error.as_ref();
    let is_missing = matches!(error.kind(), ErrorKind::InvalidArgument | ErrorKind::NotFound)
        || text.contains("No such file");
    if create != Create::New && is_missing {
        return io::Error::new(io::ErrorKind::InvalidData, text.to_owned());
    }
    damage_or_io(error)
}

fn damage_or_io(error: &rocksdb::Error) -> io::Error {
    explained(error.kind(), error.as_ref().to_owned())
}

fn explained(kind: ErrorKind, text: String) -> io::Error {
    match kind {
        ErrorKind::Corruption => io::Error::new(io::ErrorKind::InvalidData, text),
        _ if text.starts_with(NO_SPACE) => {
            let text = format!(
                "no space left for the state: nothing acknowledged is lost; free space and start \
                 again ({text})"
            );
            io::Error::new(io::ErrorKind::StorageFull, text)
        }
        _ => io::Error::other(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &'static str, value: &'static str) -> RowWrite {
        (Table::Key, Bytes::from_static(key.as_bytes()), Some(Bytes::from_static(value.as_bytes())))
    }

    #[test]
    fn a_full_disk_is_told_apart_with_advice() {
        let text = "IO error: No space left on device: While appending to file: /d/1.sst";
        let full = explained(ErrorKind::IOError, text.to_owned());
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        let advice = "nothing acknowledged is lost; free space and start again";
        assert!(full.to_string().contains(advice) && full.to_string().contains(text), "{full}");
        let other = explained(ErrorKind::IOError, "IO error: Input/output error".to_owned());
        assert_eq!(other.kind(), io::ErrorKind::Other);
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
