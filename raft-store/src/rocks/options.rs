//! How the database is set up: our bounds, and RocksDB's settings.

use rocksdb::{BlockBasedOptions, Cache, DBCompressionType, LogLevel, Options};

use crate::engine::Create;

const BLOCK_BYTES: usize = 8 << 10;
pub(super) const BLOOM_BITS: f64 = 10.0;
/// One flush and one compaction at a time: the log writer and raft need the other core.
const BACKGROUND_JOBS: i32 = 2;
const WRITE_BUFFERS_MAX: i32 = 3;
/// Flushed files that are merged into the next level together; each merge rewrites much of that
/// level.
const LEVEL_0_FILES: i32 = 8;

/// Bounds of a RocksDB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RocksOptions {
    /// Size of the cache of uncompressed data blocks.
    pub cache_bytes: usize,
    /// Size at which a write buffer is flushed; each of the two column families has at most three.
    pub write_buffer_bytes: usize,
    /// Total size of all write buffers at which they are flushed early.
    pub write_buffers_bytes_max: usize,
    /// Maximum number of open files.
    pub open_files_max: i32,
    /// Rows that gather in memory before they are passed on to the write buffers together.
    pub recent_rows_max: usize,
    /// Bytes that gather there before they are passed on.
    pub recent_bytes_max: usize,
}

impl Default for RocksOptions {
    fn default() -> Self {
        Self {
            cache_bytes: 64 << 20,
            // Inserts into a small buffer cause fewer misses in the processor's caches.
            write_buffer_bytes: 8 << 20,
            write_buffers_bytes_max: 32 << 20,
            open_files_max: 512,
            // Enough that most short-lived rows never reach RocksDB; few enough that passing them
            // on is not noticed.
            recent_rows_max: 2_048,
            recent_bytes_max: 1 << 20,
        }
    }
}

pub(super) fn database_options(options: &RocksOptions, create: Create) -> Options {
    let mut db = Options::default();
    db.create_if_missing(create == Create::New);
    db.create_missing_column_families(create == Create::New);
    db.set_paranoid_checks(true);
    db.set_atomic_flush(true);
    db.set_max_background_jobs(BACKGROUND_JOBS);
    db.set_max_open_files(options.open_files_max);
    db.set_db_write_buffer_size(options.write_buffers_bytes_max);
    // Syncs files gradually while they are written, so that the final sync does not delay the raft
    // log on the same disk.
    db.set_bytes_per_sync(1 << 20);
    db.set_log_level(LogLevel::Warn);
    db.set_keep_log_file_num(2);
    db.set_max_log_file_size(1 << 20);
    db.set_max_manifest_file_size(16 << 20);
    db.set_stats_dump_period_sec(0);
    db.set_stats_persist_period_sec(0);
    db
}

pub(super) fn family_options(
    options: &RocksOptions,
    cache: &Cache,
    bloom_bits: Option<f64>,
) -> Options {
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
