//! Prepares segment files ahead of the writer, on its own thread.
//!
//! A segment is ready when all its blocks are written (with zeros, or with the stale records of a
//! purged segment) and its name is durable. Then a sync of it flushes only data and no file system
//! metadata, which was measured to take half as long as for a file that grows or is merely
//! allocated.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

use super::disk::{Disk, DiskFile};
use super::options::LogFailure;

/// Number of prepared segments that the thread keeps ready.
const READY_SEGMENTS: usize = 1;
/// Zeros are synced in steps of this size, so that preparing never floods the disk while the log
/// syncs.
const ZERO_SYNC_BYTES: u64 = 4 * 1024 * 1024;
/// Zeros are written block by block. After one large write the page cache would keep the segment in
/// large folios, and a small record written later would dirty a whole folio: measured on Linux 6.18
/// with ext4, 400 KB accounted as written for a put of 300 bytes.
const ZEROS: [u8; 4096] = [0; 4096];
const SUFFIX: &str = ".segment";
/// A file with this suffix is incomplete and can be deleted.
const UNFINISHED_SUFFIX: &str = ".tmp";

/// Name of the file of a segment.
pub(super) fn name(segment: u64) -> String {
    format!("{segment:016x}{SUFFIX}")
}

/// The number of the segment in a file; `None` if it is not a segment file.
pub(super) fn parse_name(file: &str) -> Option<u64> {
    let digits = file.strip_suffix(SUFFIX)?;
    let segment = u64::from_str_radix(digits, 16).ok()?;
    (name(segment) == file).then_some(segment)
}

/// Name of `file` while it is being written.
pub(super) fn unfinished(file: &str) -> String {
    format!("{file}{UNFINISHED_SUFFIX}")
}

/// Whether a file was left by an interrupted preparation.
pub(super) fn is_unfinished(file: &str) -> bool {
    file.ends_with(UNFINISHED_SUFFIX)
}

/// A segment that can be written to.
#[derive(Clone)]
pub(super) struct Prepared {
    pub(super) segment: u64,
    pub(super) file: Arc<dyn DiskFile>,
}

/// Creates the file of `segment`, full of zeros; content and name are durable.
///
/// # Errors
/// Any error of the file system; `Interrupted` if `is_wanted` became false.
pub(super) fn create(
    disk: &dyn Disk,
    segment: u64,
    segment_bytes: u64,
    is_wanted: impl Fn() -> bool,
) -> io::Result<Prepared> {
    let name = name(segment);
    let unfinished = unfinished(&name);
    let filled = disk.create(&unfinished).and_then(|file| fill(&*file, segment_bytes, is_wanted));
    if let Err(error) = filled {
        // Whether or not removing succeeds, the first error is the one to report.
        drop(disk.remove(&unfinished));
        return Err(error);
    }
    disk.rename(&unfinished, &name)?;
    disk.sync_dir()?;
    Ok(Prepared { segment, file: disk.open(&name)? })
}

fn fill(file: &dyn DiskFile, segment_bytes: u64, is_wanted: impl Fn() -> bool) -> io::Result<()> {
    let mut at = 0;
    while at < segment_bytes {
        if !is_wanted() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let end = segment_bytes.min(at + ZERO_SYNC_BYTES);
        while at < end {
            let step = (end - at).min(ZEROS.len() as u64);
            file.write_all_at(&ZEROS[..step as usize], at)?;
            at += step;
        }
        file.sync()?;
    }
    Ok(())
}

/// Turns a purged segment into `segment`; its stale records have the old number, so they do not
/// count. `None` if the file has an older, smaller segment size: growing it would defeat the
/// purpose.
fn recycle(
    disk: &dyn Disk,
    purged: u64,
    segment: u64,
    segment_bytes: u64,
) -> io::Result<Option<Prepared>> {
    let (old, new) = (name(purged), name(segment));
    if disk.open(&old)?.bytes()? < segment_bytes {
        disk.remove(&old)?;
        disk.sync_dir()?;
        return Ok(None);
    }
    disk.rename(&old, &new)?;
    disk.sync_dir()?;
    let file = disk.open(&new)?;
    if file.bytes()? > segment_bytes {
        // Only after the rename: under its old name it is part of the log until it is removed.
        file.set_bytes(segment_bytes)?;
        file.sync()?;
    }
    Ok(Some(Prepared { segment, file }))
}

struct PoolState {
    ready: VecDeque<Prepared>,
    /// Purged segments, oldest first, still under their old names.
    purged: VecDeque<u64>,
    /// Number of the next segment to prepare.
    next: u64,
    /// Why the last preparation failed. It is retried when a segment is needed or another one was
    /// purged.
    failure: Option<(PathBuf, io::Error)>,
    is_retry_wanted: bool,
    closing: bool,
}

struct Shared {
    state: Mutex<PoolState>,
    changed: Condvar,
    disk: Arc<dyn Disk>,
    segment_bytes: u64,
    spare_max: usize,
}

/// The thread that prepares segments, and the ones it has ready.
pub(super) struct Pool {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Pool {
    /// Starts with the segments in `ready`; `next` is the number after the last of them.
    pub(super) fn start(
        disk: Arc<dyn Disk>,
        segment_bytes: u64,
        spare_max: usize,
        ready: VecDeque<Prepared>,
        next: u64,
    ) -> io::Result<Self> {
        let state = PoolState {
            ready,
            purged: VecDeque::new(),
            next,
            failure: None,
            is_retry_wanted: false,
            closing: false,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
            disk,
            segment_bytes,
            spare_max,
        });
        let thread = std::thread::Builder::new().name("raft-log-prepare".into()).spawn({
            let shared = shared.clone();
            move || while shared.step() {}
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Takes the next segment; waits for it if necessary. Fails only if a preparation that began
    /// after this call fails, because the cause of an earlier failure may have passed.
    pub(super) fn take(&self) -> Result<Prepared, LogFailure> {
        let mut may_retry = true;
        let mut state = self.shared.state.lock();
        loop {
            if let Some(prepared) = state.ready.pop_front() {
                self.shared.changed.notify_all();
                return Ok(prepared);
            }
            if let Some((path, error)) = state.failure.take() {
                if !may_retry {
                    return Err(LogFailure::write(path, error));
                }
                may_retry = false;
                state.is_retry_wanted = true;
                self.shared.changed.notify_all();
            }
            self.shared.changed.wait(&mut state);
        }
    }

    /// Returns a segment whose content is no longer needed. Must be called in order, oldest first.
    pub(super) fn purge(&self, segment: u64) {
        let mut state = self.shared.state.lock();
        state.purged.push_back(segment);
        state.is_retry_wanted = true;
        self.shared.changed.notify_all();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.state.lock().closing = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic of that thread was already reported by the panic hook.
            drop(thread.join());
        }
    }
}

enum Task {
    Create(u64),
    Recycle { purged: u64, segment: u64 },
    Remove(u64),
}

impl Shared {
    /// Waits for a task and carries it out; false when closing.
    fn step(&self) -> bool {
        let Some(task) = self.next_task() else { return false };
        let result = match task {
            Task::Create(segment) => {
                let is_wanted = || !self.state.lock().closing;
                create(&*self.disk, segment, self.segment_bytes, is_wanted).map(Some)
            }
            Task::Recycle { purged, segment } => {
                recycle(&*self.disk, purged, segment, self.segment_bytes)
            }
            Task::Remove(purged) => {
                self.disk.remove(&name(purged)).and_then(|()| self.disk.sync_dir()).map(|()| None)
            }
        };
        let mut state = self.state.lock();
        match result {
            Ok(None) => {}
            Ok(Some(prepared)) => {
                state.next = prepared.segment + 1;
                state.ready.push_back(prepared);
            }
            Err(_) if state.closing => return false,
            Err(error) => {
                let path = self.disk.path(&name(state.next));
                tracing::warn!(path = %path.display(), %error, "cannot prepare a raft log segment");
                state.failure = Some((path, error));
            }
        }
        self.changed.notify_all();
        true
    }

    fn next_task(&self) -> Option<Task> {
        let mut state = self.state.lock();
        loop {
            if state.closing {
                return None;
            }
            let may_try = state.failure.is_none() || state.is_retry_wanted;
            if state.ready.len() < READY_SEGMENTS && may_try {
                state.is_retry_wanted = false;
                state.failure = None;
                let segment = state.next;
                return Some(match state.purged.pop_front() {
                    Some(purged) => Task::Recycle { purged, segment },
                    None => Task::Create(segment),
                });
            }
            if state.purged.len() > self.spare_max {
                return state.purged.pop_front().map(Task::Remove);
            }
            self.changed.wait(&mut state);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_sort_as_numbers_and_nothing_else_is_one() {
        assert_eq!(parse_name(&name(0x2a)), Some(0x2a));
        assert!(name(9) < name(10) && name(255) < name(256));
        for other in ["LOCK", "identity", "2a.segment", "000000000000002A.segment"] {
            assert_eq!(parse_name(other), None, "{other}");
        }
        assert!(is_unfinished(&format!("{}.tmp", name(1))));
    }
}
