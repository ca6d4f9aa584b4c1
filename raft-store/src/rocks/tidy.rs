//! Removes the tombstones of deleted keys from the files soon.
//!
//! A deleted row stays in RocksDB as a tombstone (mark) until its files are merged with the level
//! below, and a scan of the keys around has to step over every mark. RocksDB by itself merges when
//! enough was written, of whatever kind. So once many keys were deleted, the files that overlap
//! their range are merged: on a separate thread, after a moment in which the rest of a sweep
//! arrives, and at most every few seconds. No more bytes are merged than the marks are worth; so in
//! a large state more marks are gathered first, unless they are close together.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};
use rocksdb::{CompactOptions, DB};

use super::default_family;

/// Most bytes of files to merge per deleted key.
const BYTES_PER_MARK: u64 = 2 << 10;

/// When to merge.
#[derive(Clone, Copy)]
pub(super) struct Pace {
    /// Fewer marks than this are not noticeable.
    pub(super) marks_min: u64,
    /// How long to wait, once there are enough marks, for the rest of a sweep.
    pub(super) settle: Duration,
    /// How long to wait after a merge before the next one: each merge flushes, which competes with
    /// the raft log for the disk.
    pub(super) pause: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { marks_min: 4_096, settle: Duration::from_secs(1), pause: Duration::from_secs(10) }
    }
}

/// Number and key range of deleted rows.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Marks {
    deleted: u64,
    first: Vec<u8>,
    last: Vec<u8>,
}

impl Marks {
    pub(super) fn note(&mut self, key: &[u8]) {
        self.widen(key, key);
        self.deleted += 1;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.deleted == 0
    }

    fn add(&mut self, other: &Self) {
        if other.deleted > 0 {
            self.widen(&other.first, &other.last);
            self.deleted += other.deleted;
        }
    }

    fn widen(&mut self, first: &[u8], last: &[u8]) {
        if self.deleted == 0 || first < &self.first[..] {
            self.first = first.to_vec();
        }
        if self.deleted == 0 || last > &self.last[..] {
            self.last = last.to_vec();
        }
    }

    /// Whether the marks justify merging files of this size.
    fn are_worth(&self, bytes: u64) -> bool {
        bytes <= self.deleted.saturating_mul(BYTES_PER_MARK)
    }
}

/// Merges files in the background.
pub(super) struct Tidier {
    shared: Arc<Shared>,
}

struct Shared {
    pace: Pace,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    marks: Marks,
    /// Number of marks from which on the files are looked at.
    looks_at: u64,
    is_running: bool,
    is_closing: bool,
    thread: Option<JoinHandle<()>>,
}

impl Tidier {
    pub(super) fn new(pace: Pace) -> Self {
        let state = State { looks_at: pace.marks_min, ..State::default() };
        Self {
            shared: Arc::new(Shared { pace, state: Mutex::new(state), changed: Condvar::new() }),
        }
    }

    /// Adds marks that were written; starts a merge if there are enough of them.
    pub(super) fn note(&self, db: &Arc<DB>, marks: &Marks) {
        let mut state = self.shared.state.lock();
        state.marks.add(marks);
        if state.is_running || state.is_closing || !state.is_due(db, self.shared.pace) {
            return;
        }
        // The previous thread is about to end: it no longer counts as running.
        if state.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::debug!("deleted rows were not taken out of the files");
        }
        let (shared, db) = (Arc::clone(&self.shared), Arc::clone(db));
        let thread = std::thread::Builder::new().name("state-tidy".into());
        match thread.spawn(move || shared.run(&db)) {
            Ok(thread) => {
                state.is_running = true;
                state.thread = Some(thread);
            }
            Err(error) => tracing::debug!(%error, "deleted rows stay in the files for now"),
        }
    }

    /// Starts no more merges. The caller, which closes the database, must stop a running one and
    /// join the returned thread.
    pub(super) fn close(&self) -> Option<JoinHandle<()>> {
        let mut state = self.shared.state.lock();
        state.is_closing = true;
        self.shared.changed.notify_all();
        state.thread.take()
    }

    #[cfg(test)]
    pub(super) fn wait_until_done(&self) {
        let mut state = self.shared.state.lock();
        self.shared.changed.wait_while(&mut state, |state| state.is_running);
    }
}

impl Shared {
    fn run(&self, db: &Arc<DB>) {
        let mut state = self.rest(self.state.lock(), self.pace.settle);
        while !state.is_closing && state.is_due(db, self.pace) {
            let marks = std::mem::take(&mut state.marks);
            state.looks_at = self.pace.marks_min;
            drop(state);
            merge(db, &marks);
            state = self.rest(self.state.lock(), self.pace.pause);
        }
        state.is_running = false;
        self.changed.notify_all();
    }

    /// Waits for `duration`, or until the database is closed.
    fn rest<'a>(
        &self,
        mut state: MutexGuard<'a, State>,
        duration: Duration,
    ) -> MutexGuard<'a, State> {
        let is_open = |state: &mut State| !state.is_closing;
        self.changed.wait_while_for(&mut state, is_open, duration);
        state
    }
}

impl State {
    /// Whether there are enough marks for the size of the files that contain them.
    fn is_due(&mut self, db: &DB, pace: Pace) -> bool {
        if self.marks.deleted < self.looks_at {
            return false;
        }
        let is_worth = self.marks.are_worth(bytes_between(db, &self.marks));
        if !is_worth {
            self.looks_at = self.marks.deleted.saturating_add(pace.marks_min);
        }
        is_worth
    }
}

/// Size of the files that overlap the range of `marks`.
fn bytes_between(db: &DB, marks: &Marks) -> u64 {
    let files = db.live_files().unwrap_or_default();
    let is_there = |file: &&rocksdb::LiveFile| {
        file.column_family_name == rocksdb::DEFAULT_COLUMN_FAMILY_NAME
            && file.start_key.as_ref().is_none_or(|start| *start <= marks.last)
            && file.end_key.as_ref().is_none_or(|end| *end >= marks.first)
    };
    files.iter().filter(is_there).map(|file| file.size as u64).sum()
}

/// Merges the files that overlap the range, after flushing it from memory. Writes continue
/// meanwhile.
fn merge(db: &DB, marks: &Marks) {
    let mut options = CompactOptions::default();
    // Like RocksDB's own compactions, which continue meanwhile.
    options.set_exclusive_manual_compaction(false);
    let (first, last) = (Some(&marks.first), Some(&marks.last));
    db.compact_range_cf_opt(default_family(db), first, last, &options);
    tracing::debug!(deleted = marks.deleted, "took deleted rows out of the files");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks(keys: &[&[u8]]) -> Marks {
        let mut marks = Marks::default();
        keys.iter().for_each(|key| marks.note(key));
        marks
    }

    #[test]
    fn marks_know_where_they_are() {
        let mut some = marks(&[b"d", b"b", b"c"]);
        let expected = |deleted, first: &[u8], last: &[u8]| Marks {
            deleted,
            first: first.to_vec(),
            last: last.to_vec(),
        };
        assert_eq!(some, expected(3, b"b", b"d"));
        some.add(&Marks::default());
        assert_eq!(some, expected(3, b"b", b"d"), "nothing is nowhere");
        some.add(&marks(&[b"a", b"c"]));
        assert_eq!(some, expected(5, b"a", b"d"));
        let mut none = Marks::default();
        none.add(&some);
        assert_eq!(none, some);
    }

    #[test]
    fn few_marks_are_not_worth_merging_large_files() {
        let some = marks(&[b"a", b"b"]);
        assert!(some.are_worth(2 * BYTES_PER_MARK));
        assert!(!some.are_worth(2 * BYTES_PER_MARK + 1));
    }
}
