//! The thread that writes the log.
//!
//! Everything queued during the last sync becomes one group: one write, one sync, then the answers.
//! There is no timer: an idle log syncs at once, and a busy one forms groups by itself. Records
//! that nobody waits for (the committed log id) are written with the next group that somebody waits
//! for. A record that does not fit goes to the next segment. The old segment is synced before the
//! new one is written, so a segment with a valid header proves that the one before is complete.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use openraft::storage::IOFlushed;

use super::disk::{Disk, DiskFile};
use super::format::{self, Checkpoint, RecordHeader, SEGMENT_HEADER_BYTES, SegmentHeader};
use super::index::Slot;
use super::options::{LogFailure, LogOptions};
use super::segments::{self, Pool, Prepared};
use super::shared::{Content, Record, Shared, Step, Waiter};
use crate::types::TypeConfig;

/// Bytes after which a group is written although more is queued: bounds the buffer, and how long
/// the first record waits.
const GROUP_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Bytes that nobody waits for after which they are written nevertheless.
const UNAWAITED_BYTES_MAX: usize = 64 * 1024;
/// A larger buffer, left by one large group, is freed afterwards.
const BUFFER_BYTES_KEPT: usize = 2 * 1024 * 1024;

/// A segment that is part of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Used {
    pub(super) segment: u64,
    /// Largest index of the entries in it, including removed ones.
    pub(super) last_index: Option<u64>,
}

impl Used {
    pub(super) fn note(&mut self, index: u64) {
        self.last_index = self.last_index.max(Some(index));
    }
}

/// The end of the log.
pub(super) struct Tail {
    /// All segments of the log, oldest first; the last one is being written.
    pub(super) used: VecDeque<Used>,
    pub(super) file: Arc<dyn DiskFile>,
    /// Offset of the next record; 0 if even the header is not written.
    pub(super) offset: u64,
    /// Sequence of the first record that is not durable.
    pub(super) first_undurable: u64,
    pub(super) checkpoint: Checkpoint,
}

/// What is written next, and who waits for it.
#[derive(Default)]
struct Group {
    buffer: Vec<u8>,
    slots: Vec<(u64, Slot)>,
    records: u64,
    /// Bytes of the queue that it contains.
    queue_bytes: usize,
    must_sync: bool,
    waiters: Vec<Waiter>,
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    options: Arc<LogOptions>,
    disk: Arc<dyn Disk>,
    pool: Pool,
    seed: u32,
    tail: Tail,
    group: Group,
    /// Sequence of the last record put into a group.
    last_sequence: u64,
    /// Whether older segments may be freed after the next sync.
    may_free: bool,
}

impl Writer {
    pub(super) fn new(
        shared: Arc<Shared>,
        options: Arc<LogOptions>,
        disk: Arc<dyn Disk>,
        pool: Pool,
        tail: (u32, Tail),
    ) -> Self {
        let (seed, tail) = tail;
        Self {
            shared,
            options,
            disk,
            pool,
            seed,
            last_sequence: tail.first_undurable - 1,
            tail,
            group: Group::default(),
            may_free: true,
        }
    }

    /// Writes until the log is closed or fails.
    pub(super) fn run(mut self) {
        while let Some(mut steps) = self.shared.take(GROUP_BYTES_MAX) {
            if let Err(failure) = self.commit(&mut steps) {
                // Called before any waiter learns of the failure, because the last log line must
                // say why the process ends.
                (self.options.on_failure)(&failure);
                self.shared.fail(failure.to_string());
                return;
            }
        }
        // An orderly shutdown also keeps what a crash may lose.
        self.group.must_sync = true;
        if let Err(failure) = self.flush() {
            (self.options.on_failure)(&failure);
        }
    }

    fn commit(&mut self, steps: &mut VecDeque<Step>) -> Result<(), LogFailure> {
        while let Some(step) = steps.pop_front() {
            match step {
                Step::Write(record) => self.place(&record)?,
                Step::Wake(waiter) => {
                    self.group.must_sync = true;
                    self.group.waiters.push(waiter);
                }
            }
        }
        self.group.must_sync |= self.group.buffer.len() > UNAWAITED_BYTES_MAX;
        if self.group.must_sync { self.flush() } else { Ok(()) }
    }

    /// Adds a record to the group; first starts a new segment if the record does not fit.
    fn place(&mut self, record: &Record) -> Result<(), LogFailure> {
        let bytes = format::record_bytes(record.body.len());
        let end = self.tail.offset + (self.group.buffer.len() + bytes) as u64;
        let holds_records =
            self.tail.offset + self.group.buffer.len() as u64 > SEGMENT_HEADER_BYTES;
        // A record larger than a segment gets a segment of its own, which grows.
        if end > self.options.segment_bytes && holds_records {
            self.group.must_sync = true;
            self.flush()?;
            self.rotate()?;
        }
        if self.tail.offset == 0 && self.group.buffer.is_empty() {
            self.start_segment(record.sequence);
        }
        let segment = self.active().segment;
        let at = self.tail.offset + self.group.buffer.len() as u64;
        let offset = u32::try_from(at).expect("segments are below 4 GiB");
        let position = u32::try_from(record.sequence - self.tail.first_undurable)
            .expect("fewer records than that fit into an unsynced group");
        let kind = record.content.kind();
        let header = RecordHeader { segment, sequence: record.sequence, position, kind };
        format::append_record(&mut self.group.buffer, self.seed, &header, &record.body);
        self.group.records += 1;
        self.group.queue_bytes += bytes;
        self.last_sequence = record.sequence;
        self.note(record, segment, offset);
        Ok(())
    }

    fn note(&mut self, record: &Record, segment: u64, offset: u32) {
        match record.content {
            Content::Entry(index) => {
                let body_bytes =
                    u32::try_from(record.body.len()).expect("bodies are bounded when queued");
                let slot = Slot { sequence: record.sequence, segment, offset, body_bytes };
                self.group.slots.push((index, slot));
                self.active().note(index);
            }
            Content::Vote(vote) => self.tail.checkpoint.vote = Some(vote),
            Content::Committed(id) | Content::Truncate(id) => self.tail.checkpoint.committed = id,
            Content::Purge(id) => {
                self.tail.checkpoint.purged = Some(id);
                self.group.must_sync = true;
                self.may_free = true;
            }
        }
    }

    fn active(&mut self) -> &mut Used {
        self.tail.used.back_mut().expect("a log always has a segment being written")
    }

    fn start_segment(&mut self, first_sequence: u64) {
        let header = SegmentHeader {
            node: self.options.node,
            segment: self.active().segment,
            first_sequence,
            checkpoint: self.tail.checkpoint,
        };
        self.group.buffer.extend_from_slice(&header.encode(self.seed));
    }

    fn rotate(&mut self) -> Result<(), LogFailure> {
        let Prepared { segment, file } = self.pool.take()?;
        self.shared.state().files.insert(segment, file.clone());
        self.tail.used.push_back(Used { segment, last_index: None });
        self.tail.file = file;
        self.tail.offset = 0;
        self.may_free = true;
        Ok(())
    }

    /// Writes the group, syncs it, and answers the waiters.
    fn flush(&mut self) -> Result<(), LogFailure> {
        if !self.group.buffer.is_empty() {
            let bytes = self.group.buffer.len() as u64;
            let begin = Instant::now();
            self.tail
                .file
                .write_end_at(&self.group.buffer, self.tail.offset)
                .map_err(|source| LogFailure::write(self.active_path(), source))?;
            if let Some(observe) = &self.options.on_write {
                observe(begin.elapsed(), bytes);
            }
            self.tail.offset += bytes;
            self.shared.written(&self.group.slots, self.group.queue_bytes);
            self.shared.count(self.group.records, bytes);
            self.sync()?;
            self.tail.first_undurable = self.last_sequence + 1;
        }
        answer(std::mem::take(&mut self.group.waiters));
        self.group.reset();
        if self.may_free {
            self.free_segments();
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), LogFailure> {
        let begin = Instant::now();
        self.tail
            .file
            .sync()
            .map_err(|source| LogFailure::Sync { path: self.active_path(), source })?;
        self.shared.counters.syncs.fetch_add(1, Ordering::Relaxed);
        if let Some(observe) = &self.options.on_sync {
            observe(begin.elapsed());
        }
        Ok(())
    }

    /// Frees segments whose entries are all purged. Called only right after a sync of the active
    /// segment, which then durably contains the purge and, in its header, the combined effect of
    /// older segments.
    fn free_segments(&mut self) {
        self.may_free = false;
        if self.tail.offset == 0 {
            self.may_free = true;
            return;
        }
        let purged = self.tail.checkpoint.purged.map(|id| id.index);
        while self.tail.used.len() > 1 && self.tail.used[0].last_index <= purged {
            let Used { segment, .. } = self.tail.used.pop_front().expect("longer than one");
            self.shared.state().files.remove(&segment);
            self.pool.purge(segment);
        }
    }

    fn active_path(&self) -> std::path::PathBuf {
        let active = self.tail.used.back().expect("a log always has a segment being written");
        self.disk.path(&segments::name(active.segment))
    }
}

impl Group {
    fn reset(&mut self) {
        self.buffer.clear();
        self.buffer.shrink_to(BUFFER_BYTES_KEPT);
        self.slots.clear();
        self.records = 0;
        self.queue_bytes = 0;
        self.must_sync = false;
    }
}

/// Answers everyone who waits for a group. Of raft's append callbacks only the last is called,
/// because it is a watermark that covers the others.
fn answer(waiters: Vec<Waiter>) {
    let mut watermark: Option<IOFlushed<TypeConfig>> = None;
    for waiter in waiters {
        match waiter {
            Waiter::Append(IOFlushed::Noop) => {}
            Waiter::Append(notify @ IOFlushed::Notify(_)) => watermark = Some(notify),
            Waiter::Append(signal @ IOFlushed::Signal(_)) => signal.io_completed(Ok(())),
            // The caller may have gone away; then nobody relies on the vote.
            Waiter::Vote(sender) => drop(sender.send(())),
        }
    }
    if let Some(watermark) = watermark {
        watermark.io_completed(Ok(()));
    }
}
