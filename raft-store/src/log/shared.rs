//! What the handles of a log share with its writer thread: the log as raft sees it, and the queue
//! of records that are not durable yet.
//!
//! Both are behind one lock, so the order of raft's calls is the order of the queue, and a record's
//! sequence number is fixed when it is queued. Nothing is awaited and no file is accessed under the
//! lock.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use openraft::storage::IOFlushed;
use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::{Notify, oneshot};

use super::disk::DiskFile;
use super::format::{self, Kind};
use super::index::{Index, Slot};
use crate::types::{LogId, TypeConfig, Vote};

/// A caller that waits for records to be durable.
pub(super) enum Waiter {
    Append(IOFlushed<TypeConfig>),
    Vote(oneshot::Sender<()>),
}

/// A record to be written.
pub(super) struct Record {
    pub(super) sequence: u64,
    pub(super) content: Content,
    pub(super) body: Bytes,
}

/// The meaning of a record for the writer.
#[derive(Debug, Clone, Copy)]
pub(super) enum Content {
    Vote(Vote),
    /// The index of the entry.
    Entry(u64),
    /// The highest log id that is still committed.
    Truncate(Option<LogId>),
    Purge(LogId),
    Committed(Option<LogId>),
}

impl Content {
    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::Vote(_) => Kind::Vote,
            Self::Entry(_) => Kind::Entry,
            Self::Truncate(_) => Kind::Truncate,
            Self::Purge(_) => Kind::Purge,
            Self::Committed(_) => Kind::Committed,
        }
    }
}

/// One step of the queue: a record, or a waiter for all records before it.
pub(super) enum Step {
    Write(Record),
    Wake(Waiter),
}

impl Step {
    fn bytes(&self) -> usize {
        match self {
            Self::Write(record) => format::record_bytes(record.body.len()),
            Self::Wake(_) => 0,
        }
    }
}

/// The log as raft sees it: as if everything queued had been written.
pub(super) struct State {
    pub(super) vote: Option<Vote>,
    pub(super) committed: Option<LogId>,
    pub(super) purged: Option<LogId>,
    pub(super) last: Option<LogId>,
    pub(super) index: Index,
    /// Segments that may contain entries of the index.
    pub(super) files: BTreeMap<u64, Arc<dyn DiskFile>>,
    pub(super) next_sequence: u64,
    pub(super) queue: VecDeque<Step>,
    pub(super) queued_bytes: usize,
    pub(super) closing: bool,
    /// Why nothing is written any more.
    pub(super) failure: Option<String>,
}

impl State {
    fn check_alive(&self) -> io::Result<()> {
        match &self.failure {
            None => Ok(()),
            Some(reason) => Err(io::Error::other(reason.clone())),
        }
    }

    fn write(&mut self, content: Content, body: Bytes) -> u64 {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        let step = Step::Write(Record { sequence, content, body });
        self.queued_bytes += step.bytes();
        self.queue.push_back(step);
        sequence
    }
}

/// Totals since the log was opened.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) groups: AtomicU64,
    pub(super) syncs: AtomicU64,
    pub(super) records: AtomicU64,
    pub(super) bytes: AtomicU64,
}

/// What the handles of a log share with its writer thread.
pub(super) struct Shared {
    state: Mutex<State>,
    /// Signals that the queue has steps, or that the log is closing.
    work: Condvar,
    /// Signals that the queue became shorter.
    space: Notify,
    queue_bytes_max: usize,
    pub(super) counters: Counters,
}

impl Shared {
    pub(super) fn new(state: State, queue_bytes_max: usize) -> Self {
        Self {
            state: Mutex::new(state),
            work: Condvar::new(),
            space: Notify::new(),
            queue_bytes_max,
            counters: Counters::default(),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Waits until the queue is below its limit. A single caller may then exceed it by what it
    /// adds.
    pub(super) async fn space(&self) {
        loop {
            let freed = self.space.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            {
                let state = self.state();
                if state.queued_bytes < self.queue_bytes_max || state.failure.is_some() {
                    return;
                }
            }
            freed.await;
        }
    }

    /// Appends encoded entries; they are readable on return, and durable when `flushed` is called.
    pub(super) fn append(
        &self,
        entries: Vec<(LogId, Bytes)>,
        flushed: IOFlushed<TypeConfig>,
    ) -> io::Result<()> {
        let mut state = self.state();
        state.check_alive()?;
        for (id, body) in entries {
            check_next(&state, &id, body.len())?;
            let sequence = state.write(Content::Entry(id.index), body.clone());
            state.index.push(id.index, sequence, body);
            state.last = Some(id);
        }
        state.queue.push_back(Step::Wake(Waiter::Append(flushed)));
        drop(state);
        self.work.notify_one();
        Ok(())
    }

    /// Saves a vote; it is durable when the receiver gets its message.
    pub(super) fn save_vote(&self, vote: Vote) -> io::Result<oneshot::Receiver<()>> {
        let body = prost::Message::encode_to_vec(&crate::codec::vote_message(&vote));
        let (sender, receiver) = oneshot::channel();
        let mut state = self.state();
        state.check_alive()?;
        state.vote = Some(vote);
        state.write(Content::Vote(vote), body.into());
        state.queue.push_back(Step::Wake(Waiter::Vote(sender)));
        drop(state);
        self.work.notify_one();
        Ok(receiver)
    }

    /// Removes all entries after `kept`; all entries if that is `None`.
    pub(super) fn truncate_after(&self, kept: Option<LogId>) -> io::Result<()> {
        let mut state = self.state();
        state.check_alive()?;
        let first_void = kept.map_or(0, |id| id.index + 1);
        if first_void >= state.index.range().end {
            return Ok(());
        }
        let committed = up_to(state.committed, kept);
        state.committed = committed;
        state.write(Content::Truncate(committed), format::encode_log_id(kept).into());
        state.index.truncate(first_void);
        state.last = if state.index.is_empty() { state.purged } else { kept };
        drop(state);
        self.work.notify_one();
        Ok(())
    }

    /// Removes all entries up to `upto`, which may be beyond the last.
    pub(super) fn purge(&self, upto: LogId) -> io::Result<()> {
        let mut state = self.state();
        state.check_alive()?;
        if state.purged.is_some_and(|purged| purged.index >= upto.index) {
            return Ok(());
        }
        state.write(Content::Purge(upto), format::encode_log_id(Some(upto)).into());
        state.index.purge(upto.index + 1);
        state.purged = Some(upto);
        if state.index.is_empty() {
            state.last = Some(upto);
        }
        drop(state);
        self.work.notify_one();
        Ok(())
    }

    /// Saves the committed log id; a crash may lose it. It is written with the next record, or when
    /// the log closes: it alone is not worth waking the writer.
    pub(super) fn save_committed(&self, committed: Option<LogId>) -> io::Result<()> {
        let mut state = self.state();
        state.check_alive()?;
        // After a crash, an id beyond the last entry would claim that later entries are committed.
        let committed = up_to(committed, state.last);
        state.committed = committed;
        state.write(Content::Committed(committed), format::encode_log_id(committed).into());
        Ok(())
    }

    /// Waits for steps and takes them, up to about `bytes_max`; `None` when the log is closing and
    /// all is done.
    pub(super) fn take(&self, bytes_max: usize) -> Option<VecDeque<Step>> {
        let mut state = self.state();
        while state.queue.is_empty() {
            if state.closing {
                return None;
            }
            self.work.wait(&mut state);
        }
        if state.queued_bytes <= bytes_max {
            return Some(std::mem::take(&mut state.queue));
        }
        let mut bytes = 0;
        let mut count = 0;
        for step in &state.queue {
            bytes += step.bytes();
            if bytes > bytes_max && count > 0 {
                break;
            }
            count += 1;
        }
        Some(state.queue.drain(..count).collect())
    }

    /// Records where entries were written, and how many bytes of the queue that were.
    pub(super) fn written(&self, slots: &[(u64, Slot)], bytes: usize) {
        let mut state = self.state();
        for (index, slot) in slots {
            state.index.written(*index, *slot);
        }
        state.index.evict();
        state.queued_bytes = state.queued_bytes.saturating_sub(bytes);
        drop(state);
        self.space.notify_waiters();
    }

    /// Lets the writer end once the queue is empty.
    pub(super) fn close(&self) {
        self.state().closing = true;
        self.work.notify_one();
    }

    /// Makes every later call fail. Waiters are dropped without an answer.
    pub(super) fn fail(&self, reason: String) {
        let mut state = self.state();
        state.failure = Some(reason);
        state.queue.clear();
        state.queued_bytes = 0;
        drop(state);
        self.space.notify_waiters();
    }

    pub(super) fn count(&self, records: u64, bytes: u64) {
        self.counters.groups.fetch_add(1, Ordering::Relaxed);
        self.counters.records.fetch_add(records, Ordering::Relaxed);
        self.counters.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// `committed`, unless it is beyond the log, which ends with `last`.
pub(super) fn up_to(committed: Option<LogId>, last: Option<LogId>) -> Option<LogId> {
    committed.filter(|id| Some(id.index) <= last.map(|last| last.index))
}

fn check_next(state: &State, id: &LogId, body_bytes: usize) -> io::Result<()> {
    // An empty log may start anywhere: raft's first entry has index 0, but those of openraft's test
    // suite do not.
    let next = state.last.map_or(id.index, |last| last.index + 1);
    let reason = if id.index != next {
        format!("entry {id} would leave a hole: the next index is {next}")
    } else if body_bytes > ENTRY_BYTES_MAX {
        format!("entry {id} has {body_bytes} bytes, the log takes up to {ENTRY_BYTES_MAX}")
    } else {
        return Ok(());
    };
    Err(io::Error::new(io::ErrorKind::InvalidInput, reason))
}

/// Largest encoded entry in bytes; offsets and lengths in a segment have 32 bits.
const ENTRY_BYTES_MAX: usize = 1024 * 1024 * 1024;
