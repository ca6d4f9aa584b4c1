//! Settings of a log, and the hook it calls when it cannot continue.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Smallest accepted segment; a smaller one would be little more than its header.
pub const SEGMENT_BYTES_MIN: u64 = 8 * 1024;
/// Largest accepted segment; offsets within one have 32 bits.
pub const SEGMENT_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// Called with the duration of every sync, on the writer thread, so it must be quick.
pub type DurationObserver = Box<dyn Fn(Duration) + Send + Sync>;
/// Called with the duration and bytes of every write, on the writer thread, so it must be quick.
pub type WriteObserver = Box<dyn Fn(Duration, u64) + Send + Sync>;
/// Called once, on the writer thread, when the log cannot continue. The default logs the reason and
/// aborts the process. A test may return; every call on the log fails after that.
pub type FailureHook = Box<dyn Fn(&LogFailure) + Send + Sync>;

/// Settings of a log.
pub struct LogOptions {
    /// Member that owns this log; another member's log is rejected.
    pub node: u64,
    /// Size of a segment file. Segments of another size are used up and then replaced.
    pub segment_bytes: u64,
    /// Bytes of the newest entries to keep in memory, so that neither apply nor replication to a
    /// live follower reads files.
    pub tail_cache_bytes: usize,
    /// Bytes waiting for the disk above which `append` waits.
    pub queue_bytes_max: usize,
    /// Most bytes that one replication read or one step of a stream returns (a single entry may be
    /// more).
    pub read_bytes_max: usize,
    /// Segments freed by a purge to keep for reuse; more are deleted.
    pub spare_segments_max: usize,
    /// Called with the duration of every sync.
    pub on_sync: Option<DurationObserver>,
    /// Called with every write.
    pub on_write: Option<WriteObserver>,
    /// Called when the log cannot continue.
    pub on_failure: FailureHook,
}

impl LogOptions {
    /// The defaults for member `node`.
    #[must_use]
    pub fn new(node: u64) -> Self {
        Self {
            node,
            segment_bytes: 8 * 1024 * 1024,
            tail_cache_bytes: 64 * 1024 * 1024,
            queue_bytes_max: 64 * 1024 * 1024,
            read_bytes_max: 2 * 1024 * 1024,
            spare_segments_max: 16,
            on_sync: None,
            on_write: None,
            on_failure: Box::new(abort),
        }
    }
}

impl fmt::Debug for LogOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogOptions")
            .field("node", &self.node)
            .field("segment_bytes", &self.segment_bytes)
            .field("tail_cache_bytes", &self.tail_cache_bytes)
            .field("queue_bytes_max", &self.queue_bytes_max)
            .field("read_bytes_max", &self.read_bytes_max)
            .field("spare_segments_max", &self.spare_segments_max)
            .finish_non_exhaustive()
    }
}

/// Why the log cannot continue. Nothing that was acknowledged is lost by it.
#[derive(Debug, thiserror::Error)]
pub enum LogFailure {
    /// No space for the next records.
    #[error(
        "no space left for the raft log at {path}: nothing acknowledged is lost; free space and \
         start again ({source})"
    )]
    NoSpace {
        /// The file that could not grow or be created.
        path: PathBuf,
        /// The error.
        #[source]
        source: io::Error,
    },
    /// A write failed.
    #[error("cannot write the raft log at {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// The error.
        #[source]
        source: io::Error,
    },
    /// A sync failed. It must not be repeated: the kernel may have dropped the pages and report
    /// success the second time.
    #[error("cannot sync the raft log at {path}, so its latest records are in doubt: {source}")]
    Sync {
        /// The file.
        path: PathBuf,
        /// The error.
        #[source]
        source: io::Error,
    },
}

impl LogFailure {
    /// The failure for an error of writing or preparing `path`.
    pub(super) fn write(path: PathBuf, source: io::Error) -> Self {
        let full = matches!(
            source.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
        );
        if full { Self::NoSpace { path, source } } else { Self::Write { path, source } }
    }
}

fn abort(failure: &LogFailure) {
    tracing::error!(%failure, "the raft log failed; the process ends");
    std::process::abort();
}
