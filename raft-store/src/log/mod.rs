//! The raft log: our own segment files, one writer thread, one sync for everything queued.
//!
//! ```text
//! RaftCore ── append, save_vote, truncate, purge ──► State + queue (one lock) ──► writer ──► segment files
//!                                                      ▲     │                      ▲
//! replication, apply ◄── tail cache, else files ───────┘     └─ bounded in bytes    └── segments: prepared ahead
//! ```
//! | module | |
//! |---|---|
//! | `format` | the encoding on disk |
//! | `disk`, `direct`, `sim` | file operations, real and simulated; writes past the page cache |
//! | `recover` | opens a log: where it ends, and what is damage |
//! | `shared`, `index` | the log in memory, the queue |
//! | `writer`, `segments` | the two threads |
//! | `read`, `storage` | reading, openraft's traits |
//! | `options`, `error` | settings; why a log does not open |
//!
//! Guarantees: what was acknowledged is durable; records reach the disk in the order of the calls;
//! an entry is readable when `append` returns; a torn tail is cut off; any other damage is
//! rejected. A sector of 512 bytes is assumed to be written completely or not at all. A log cannot
//! detect by itself that its very end is lost: a leader that knows better has it condemned
//! ([`LogStore::condemn`]).

mod direct;
mod disk;
mod error;
mod format;
mod index;
mod options;
mod read;
mod recover;
mod segments;
mod shared;
pub mod sim;
mod storage;
mod writer;

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

use bytes::Bytes;
use parking_lot::Mutex;

pub use self::disk::{Disk, DiskFile, RealDisk};
pub use self::error::OpenError;
pub use self::options::{
    DurationObserver, FailureHook, LogFailure, LogOptions, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN,
    WriteObserver,
};
use self::read::Plan;
use self::segments::Pool;
use self::shared::{Shared, State};
use self::writer::Writer;
use crate::types::{LogId, NodeId, Vote};

/// A handle of the log; clones share it. Dropping the last one writes out what is queued.
#[derive(Clone)]
pub struct LogStore {
    owner: Arc<Owner>,
}

struct Owner {
    shared: Arc<Shared>,
    options: Arc<LogOptions>,
    disk: Arc<dyn Disk>,
    seed: u32,
    writer: Mutex<Option<JoinHandle<()>>>,
}

/// Statistics of a log at one moment, for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogStats {
    /// Index of the first entry in the log.
    pub first_index: u64,
    /// Index after the last entry.
    pub next_index: u64,
    /// Segments in use, without prepared and spare ones.
    pub segments: u64,
    /// Bytes waiting for the writer.
    pub queued_bytes: u64,
    /// Groups written since the log was opened.
    pub groups_total: u64,
    /// Syncs since the log was opened.
    pub syncs_total: u64,
    /// Records written since the log was opened.
    pub records_total: u64,
    /// Bytes written since the log was opened, without the zeros of prepared segments.
    pub written_bytes_total: u64,
}

impl LogStore {
    /// Opens the log in `dir`; creates it if the directory is absent or empty. Blocks while the
    /// whole log is read and verified.
    ///
    /// # Errors
    /// [`OpenError`]; with [`OpenError::Damaged`] the member must be replaced.
    pub fn open(dir: &Path, options: LogOptions) -> Result<Self, OpenError> {
        let disk = RealDisk::open(dir).map_err(|source| {
            let path = dir.to_owned();
            if source.kind() == io::ErrorKind::WouldBlock {
                OpenError::InUse { path }
            } else {
                OpenError::Io { path, source }
            }
        })?;
        Self::open_on(Arc::new(disk), options)
    }

    /// As [`LogStore::open`], on any [`Disk`].
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open_on(disk: Arc<dyn Disk>, options: LogOptions) -> Result<Self, OpenError> {
        let bytes = options.segment_bytes;
        if !(SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&bytes) {
            let (min, max) = (SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX);
            return Err(OpenError::SegmentBytes { bytes, min, max });
        }
        let found = recover::recover(&*disk, &options)?;
        let state = State {
            vote: found.vote,
            committed: found.committed,
            purged: found.purged,
            last: found.last,
            index: found.index,
            files: found.files,
            next_sequence: found.tail.first_undurable,
            queue: std::collections::VecDeque::new(),
            queued_bytes: 0,
            closing: false,
            failure: None,
        };
        let shared = Arc::new(Shared::new(state, options.queue_bytes_max));
        let options = Arc::new(options);
        let thread_error = |source| OpenError::Io { path: disk.path(""), source };
        let spare = options.spare_segments_max;
        let pool = Pool::start(disk.clone(), bytes, spare, found.ready, found.next_segment)
            .map_err(thread_error)?;
        let tail = (found.seed, found.tail);
        let writer = Writer::new(shared.clone(), options.clone(), disk.clone(), pool, tail);
        let writer = std::thread::Builder::new()
            .name("raft-log-write".into())
            .spawn(move || writer.run())
            .map_err(thread_error)?;
        let writer = Mutex::new(Some(writer));
        Ok(Self { owner: Arc::new(Owner { shared, options, disk, seed: found.seed, writer }) })
    }

    /// Records durably that the log lost records which this member had acknowledged, so that every
    /// later start is rejected; `reason` says how that is known. Blocks. Returns the error of those
    /// starts.
    ///
    /// # Errors
    /// Any error of the file system.
    pub fn condemn(&self, reason: &str) -> io::Result<OpenError> {
        recover::condemn(&*self.owner.disk, reason)
    }

    /// Makes an empty log continue after `first`, which a restored state has applied, with a vote
    /// for `node` in that term. Durable when it returns. Blocks; must not be called on a thread of
    /// an async runtime.
    ///
    /// # Errors
    /// If the log has failed.
    pub fn begin_behind(&self, first: LogId, node: NodeId) -> io::Result<()> {
        let shared = &self.owner.shared;
        shared.purge(first)?;
        // Records are written in order, so when the vote is durable, the purge is, too.
        let saved = shared.save_vote(Vote::new(first.leader_id.term, node))?;
        saved.blocking_recv().map_err(|_| io::Error::other("the raft log failed"))
    }

    /// Statistics of the log at this moment.
    #[must_use]
    pub fn stats(&self) -> LogStats {
        let state = self.owner.shared.state();
        let range = state.index.range();
        let counters = &self.owner.shared.counters;
        let is_empty = state.index.is_empty();
        let next_index = state.last.map_or(0, |id| id.index + 1);
        LogStats {
            first_index: if is_empty { next_index } else { range.start },
            next_index,
            segments: state.files.len() as u64,
            queued_bytes: state.queued_bytes as u64,
            groups_total: counters.groups.load(Ordering::Relaxed),
            syncs_total: counters.syncs.load(Ordering::Relaxed),
            records_total: counters.records.load(Ordering::Relaxed),
            written_bytes_total: counters.bytes.load(Ordering::Relaxed),
        }
    }

    /// The first index of a tail that ends before `end` and has at most this many entries and
    /// bytes.
    #[must_use]
    pub fn tail_start(&self, end: u64, entries_max: u64, bytes_max: u64) -> u64 {
        self.owner.shared.state().index.tail_start(end, entries_max, bytes_max)
    }

    /// The encoded `internal::Entry` of each existing entry in `range`, from the first on: at least
    /// one, then as many as stay within `bytes_max`. They share their bytes with the cache, so
    /// sending them needs no encoding.
    ///
    /// # Errors
    /// Any error of the file system; `InvalidData` if a stored entry is damaged.
    pub async fn encoded(&self, range: Range<u64>, bytes_max: usize) -> io::Result<Vec<Bytes>> {
        let plan = Plan::new(&self.owner.shared, range, bytes_max);
        if let Some(entries) = plan.cached() {
            return Ok(entries);
        }
        let owner = self.owner.clone();
        tokio::task::spawn_blocking(move || plan.read(&owner.shared, owner.seed))
            .await
            .map_err(io::Error::other)?
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.close();
        if let Some(writer) = self.writer.lock().take() {
            // A panic of that thread was already reported by the panic hook.
            drop(writer.join());
        }
    }
}
