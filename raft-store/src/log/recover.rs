//! Reads a log when it is opened, and decides where it ends.
//!
//! Records are followed by sequence number, from the oldest segment on. Where record `s` is not
//! found, the log ends, unless something later proves that `s` was durable: a record written after
//! `s` was synced, or a segment that begins after it. Then the log is damaged and is rejected.
//! Without such proof the tail is torn: whatever follows was never acknowledged, and is erased,
//! because records with the same numbers will be written there.
//!
//! One case cannot be distinguished from a torn tail: damage in the very last group of a log that
//! stopped right after it, or the loss of everything from some record on. The leader tells such a
//! member, which then leaves a note here that makes every later start fail.
//!
//! | module | what |
//! |---|---|
//! | `replay` | follows the records |
//! | `finish` | completes the end of the log |
//! | `note` | small files: the owner of the log; why it must not be used |

mod finish;
mod note;
mod replay;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;

use self::note::{CONDEMNED, IDENTITY, create_identity, lost, read, read_identity};
use self::replay::Replay;
use super::disk::{Disk, DiskFile};
use super::error::OpenError;
use super::format;
use super::index::Index;
use super::options::LogOptions;
use super::segments::{self, Prepared};
use super::writer::Tail;
use crate::types::{LogId, Vote};

pub(super) use note::condemn;

/// A log as found on disk.
pub(super) struct Recovered {
    pub(super) seed: u32,
    pub(super) vote: Option<Vote>,
    pub(super) committed: Option<LogId>,
    pub(super) purged: Option<LogId>,
    pub(super) last: Option<LogId>,
    pub(super) index: Index,
    pub(super) files: BTreeMap<u64, Arc<dyn DiskFile>>,
    pub(super) tail: Tail,
    /// Unused segments after the last used one that can be written to.
    pub(super) ready: VecDeque<Prepared>,
    /// Number of the first segment that does not exist.
    pub(super) next_segment: u64,
}

/// Opens the log on `disk`, or creates it if there is none.
pub(super) fn recover(disk: &dyn Disk, options: &LogOptions) -> Result<Recovered, OpenError> {
    // A killed process may have left names that are not durable yet, and records will be
    // acknowledged in the files found under them.
    disk.sync_dir().map_err(|e| io_error(disk, "", e))?;
    let names = disk.list().map_err(|e| io_error(disk, "", e))?;
    for name in names.iter().filter(|name| segments::is_unfinished(name)) {
        disk.remove(name).map_err(|e| io_error(disk, name, e))?;
    }
    if names.iter().any(|name| name == CONDEMNED) {
        let reason = read(disk, CONDEMNED).map_err(|e| io_error(disk, CONDEMNED, e))?;
        return Err(lost(disk, String::from_utf8_lossy(&reason).into_owned()));
    }
    let found: Vec<u64> = names.iter().filter_map(|name| segments::parse_name(name)).collect();
    let has_identity = names.iter().any(|name| name == IDENTITY);
    let identity = match (has_identity, found.first()) {
        (true, _) => read_identity(disk, options.node)?,
        (false, None) => {
            create_identity(disk, options.node).map_err(|e| io_error(disk, IDENTITY, e))?
        }
        (false, Some(segment)) => {
            let reason = "the identity file of this log is missing".to_owned();
            return Err(damaged(disk, *segment, 0, reason));
        }
    };
    let (segments, stale) = last_run(found);
    let mut replay = Replay::new(disk, options, identity.seed());
    let end = replay.follow(&segments)?;
    replay.finish(end, &segments, &stale)
}

/// Splits the numbers into the last consecutive run, and those before a gap: purged segments whose
/// removal was interrupted.
fn last_run(mut segments: Vec<u64>) -> (Vec<u64>, Vec<u64>) {
    segments.sort_unstable();
    let gap = segments.windows(2).rposition(|pair| pair[0] + 1 != pair[1]);
    let run = segments.split_off(gap.map_or(0, |at| at + 1));
    (run, segments)
}

fn io_error(disk: &dyn Disk, name: &str, source: io::Error) -> OpenError {
    OpenError::Io { path: disk.path(name), source }
}

fn version(disk: &dyn Disk, name: &str, found: u32) -> OpenError {
    OpenError::Version { path: disk.path(name), found, known: format::VERSION }
}

fn damaged(disk: &dyn Disk, segment: u64, offset: u64, reason: String) -> OpenError {
    OpenError::Damaged { path: disk.path(&segments::name(segment)), offset, reason }
}
