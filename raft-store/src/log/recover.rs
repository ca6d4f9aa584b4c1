//! Reads a log back when it is opened, and decides what its end is.
//!
//! Records are followed by sequence number from the oldest segment on. Where record `s` is not found,
//! the log ends, unless something later proves that `s` was durable: a record written when `s` was
//! already synced, or a segment that begins after it. Then the log is damaged and is refused. Without
//! a proof the end is torn: whatever lies behind was never acknowledged and is erased, because records
//! of the same numbers will be written there.
//!
//! One case cannot be told apart: damage in the very last group of a log that stopped right after it, or
//! everything gone from some record on. It looks like a torn end. The leader tells such a member, which
//! then leaves a note here that refuses every later start.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::disk::{Disk, DiskFile};
use super::error::OpenError;
use super::format::{
    self, Found, HeaderError, Identity, Kind, RecordHeader, Remains, SegmentHeader,
};
use super::index::{Index, Slot};
use super::options::LogOptions;
use super::segments::{self, Prepared};
use super::shared::up_to;
use super::writer::{Tail, Used};
use crate::codec;
use crate::types::{LogId, Vote};

const IDENTITY: &str = "identity";
/// Says why the log must not be used any more.
const CONDEMNED: &str = "condemned";
/// Small files are read up to here.
const NOTE_BYTES_MAX: u64 = 4096;

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
    /// Segments after the last used one that can be written.
    pub(super) ready: VecDeque<Prepared>,
    /// Number of the first segment that does not exist.
    pub(super) next_segment: u64,
}

/// Opens the log on `disk`, or creates it if there is none.
pub(super) fn recover(disk: &dyn Disk, options: &LogOptions) -> Result<Recovered, OpenError> {
    // A killed process may have left names that are not durable yet, and records will be acknowledged
    // in what is found under them.
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

/// The consecutive numbers up to the largest, and those before a gap: purged segments whose removal
/// was interrupted.
fn last_run(mut segments: Vec<u64>) -> (Vec<u64>, Vec<u64>) {
    segments.sort_unstable();
    let gap = segments.windows(2).rposition(|pair| pair[0] + 1 != pair[1]);
    let run = segments.split_off(gap.map_or(0, |at| at + 1));
    (run, segments)
}

/// Where the following of records ended.
struct End {
    /// Position in the list of segments.
    at: usize,
    file: Arc<dyn DiskFile>,
    bytes: Bytes,
    offset: usize,
}

struct Replay<'a> {
    disk: &'a dyn Disk,
    options: &'a LogOptions,
    seed: u32,
    checkpoint: format::Checkpoint,
    last: Option<LogId>,
    index: Index,
    files: BTreeMap<u64, Arc<dyn DiskFile>>,
    used: VecDeque<Used>,
    next_sequence: u64,
    /// Where the last group begins in the segment that is being followed: its records may have been
    /// read from the page cache only.
    group_offset: usize,
    group_sequence: u64,
}

impl<'a> Replay<'a> {
    fn new(disk: &'a dyn Disk, options: &'a LogOptions, seed: u32) -> Self {
        Self {
            disk,
            options,
            seed,
            checkpoint: format::Checkpoint::default(),
            last: None,
            index: Index::new(options.tail_cache_bytes),
            files: BTreeMap::new(),
            used: VecDeque::new(),
            next_sequence: 1,
            group_offset: 0,
            group_sequence: 1,
        }
    }

    /// Follows all records; `None` if not even the first segment was begun.
    fn follow(&mut self, segments: &[u64]) -> Result<Option<End>, OpenError> {
        let mut end: Option<End> = None;
        for (at, segment) in segments.iter().copied().enumerate() {
            let (file, bytes) = self.load(segment)?;
            match self.decode_header(&bytes, segment)? {
                Some(header) if end.is_none() || header.first_sequence == self.next_sequence => {
                    if end.is_none() {
                        self.begin(&header);
                    }
                    self.files.insert(segment, file.clone());
                    self.used.push_back(Used { segment, last_index: None });
                    self.group_offset = 0;
                    self.group_sequence = self.next_sequence;
                    let offset = self.follow_segment(&bytes, segment)?;
                    end = Some(End { at, file, bytes, offset });
                }
                Some(header) => {
                    let reason = format!(
                        "record {} is unreadable, but was durable: {} begins after it",
                        self.next_sequence,
                        segments::name(header.segment)
                    );
                    let (at, offset) = end.map_or((0, 0), |end| (end.at, end.offset));
                    return Err(damaged(self.disk, segments[at], offset as u64, reason));
                }
                None if at == 0 && segment > 1 => {
                    let reason = "the header of the oldest segment is unreadable".to_owned();
                    return Err(damaged(self.disk, segment, 0, reason));
                }
                None => break,
            }
        }
        Ok(end)
    }

    fn begin(&mut self, header: &SegmentHeader) {
        self.checkpoint = header.checkpoint;
        self.next_sequence = header.first_sequence;
        self.last = header.checkpoint.purged;
    }

    /// Follows the records of one segment; returns where the first one that is not there would be.
    fn follow_segment(&mut self, bytes: &Bytes, segment: u64) -> Result<usize, OpenError> {
        let mut at = format::SEGMENT_HEADER_BYTES as usize;
        while let Some(found) = format::read_record(bytes, at, self.seed, segment)
            .filter(|found| found.header.sequence == self.next_sequence)
        {
            let end = found.end;
            if found.header.first_undurable() != self.group_sequence {
                self.group_sequence = found.header.first_undurable();
                self.group_offset = at;
            }
            self.apply(bytes, at, &found)
                .map_err(|reason| damaged(self.disk, segment, at as u64, reason))?;
            self.next_sequence += 1;
            at = end;
        }
        Ok(at)
    }

    fn apply(&mut self, bytes: &Bytes, at: usize, found: &Found) -> Result<(), String> {
        let body = bytes.slice(found.body.clone());
        let unreadable = || format!("record {} has no meaning", found.header.sequence);
        let log_id = || format::decode_log_id(&body).ok_or_else(unreadable);
        match found.header.kind {
            Kind::Vote => {
                let vote = <conclave_proto::internal::Vote as prost::Message>::decode(body.clone())
                    .map_err(|_| unreadable())?;
                self.checkpoint.vote = Some(codec::vote(&vote));
            }
            Kind::Committed => {
                // One that points beyond the end was void when it was written.
                self.checkpoint.committed = up_to(log_id()?, self.last);
            }
            Kind::Purge => {
                let upto = log_id()?.ok_or_else(unreadable)?;
                self.index.purge(upto.index + 1);
                self.checkpoint.purged = Some(upto);
                if self.index.is_empty() {
                    self.last = Some(upto);
                }
            }
            Kind::Truncate => {
                let kept = log_id()?;
                self.index.truncate(kept.map_or(0, |id| id.index + 1));
                self.checkpoint.committed = up_to(self.checkpoint.committed, kept);
                self.last = if self.index.is_empty() { self.checkpoint.purged } else { kept };
            }
            Kind::Entry => {
                let body_bytes = u32::try_from(body.len()).map_err(|_| unreadable())?;
                let entry = codec::decode_entry(body).map_err(|e| e.to_string())?;
                let offset = u32::try_from(at).map_err(|_| unreadable())?;
                let RecordHeader { segment, sequence, .. } = found.header;
                let slot = Slot { sequence, segment, offset, body_bytes };
                self.push(entry.log_id, slot)?;
            }
        }
        Ok(())
    }

    fn push(&mut self, id: LogId, slot: Slot) -> Result<(), String> {
        // An empty index takes any entry: those before it may be in segments that are gone, and the
        // purge that covers them comes later. `check` looks at the result.
        let next = self.index.range().end;
        if !self.index.is_empty() && id.index != next {
            return Err(format!("entry {id} follows entry {}", next - 1));
        }
        self.index.push_slot(id.index, slot);
        self.last = Some(id);
        self.used.back_mut().expect("records are in a segment").note(id.index);
        Ok(())
    }

    /// Makes the end durable, erases what was torn, and sorts the segments.
    fn finish(
        mut self,
        end: Option<End>,
        segments: &[u64],
        stale: &[u64],
    ) -> Result<Recovered, OpenError> {
        let unused = end.as_ref().map_or(0, |end| end.at + 1);
        if let Some(end) = &end {
            self.check(segments[0])?;
            self.settle(end, segments[end.at])?;
        }
        let mut ready = self.unused(&segments[unused..])?;
        for segment in stale {
            self.remove(*segment)?;
        }

        let next_segment =
            ready.back().map(|p| p.segment).or(self.used.back().map(|u| u.segment)).unwrap_or(0)
                + 1;
        let (file, offset, next_segment) = match end {
            Some(end) => (end.file, end.offset as u64, next_segment),
            None => {
                let (first, next_segment) = self.first_segment(ready.pop_front(), next_segment)?;
                (first.file, 0, next_segment)
            }
        };
        self.checkpoint.committed = up_to(self.checkpoint.committed, self.last);
        let tail = Tail {
            used: self.used,
            file,
            offset,
            first_undurable: self.next_sequence,
            checkpoint: self.checkpoint,
        };
        Ok(Recovered {
            seed: self.seed,
            vote: self.checkpoint.vote,
            committed: self.checkpoint.committed,
            purged: self.checkpoint.purged,
            last: self.last,
            index: self.index,
            files: self.files,
            tail,
            ready,
            next_segment,
        })
    }

    /// The entries must follow the purged ones without a hole.
    fn check(&self, oldest: u64) -> Result<(), OpenError> {
        let first = self.index.range().start;
        // Raft's first entry has index 0. With the very first segment nothing is missing before it.
        let begin = if oldest == 1 { first } else { 0 };
        let expected = self.checkpoint.purged.map_or(begin, |purged| purged.index + 1);
        if self.index.is_empty() || first == expected {
            return Ok(());
        }
        let reason = format!("the oldest entry has index {first}, but {expected} must be there");
        Err(damaged(self.disk, oldest, 0, reason))
    }

    /// Looks for proof that the end is not the end, then makes it so.
    fn settle(&mut self, end: &End, segment: u64) -> Result<(), OpenError> {
        let missing = self.next_sequence;
        let remains = format::scan(&end.bytes, end.offset, self.seed, segment, missing);
        if let Remains::Proof(at) = remains {
            let reason = format!(
                "record {missing} is unreadable, but was durable: a record written after it is at \
                 byte {at}"
            );
            return Err(damaged(self.disk, segment, end.offset as u64, reason));
        }
        let path = segments::name(segment);
        let io = |e| io_error(self.disk, &path, e);
        // The last group may have been read from the page cache after a sync failed or never ran.
        // Writing it again makes the kernel write it again.
        end.file
            .write_all_at(&end.bytes[self.group_offset..end.offset], self.group_offset as u64)
            .map_err(io)?;
        if let Remains::Torn(torn_end) = remains {
            let zeros = vec![0; torn_end - end.offset];
            tracing::warn!(
                path = %self.disk.path(&path).display(),
                offset = end.offset,
                bytes = zeros.len(),
                "the raft log ends in a record that was never durable as a whole; cutting it off"
            );
            end.file.write_all_at(&zeros, end.offset as u64).map_err(io)?;
        }
        end.file.sync().map_err(io)
    }

    /// Sorts the segments after the end: those without a trace of use can be written, others go.
    fn unused(&mut self, segments: &[u64]) -> Result<VecDeque<Prepared>, OpenError> {
        let mut ready = VecDeque::new();
        let mut unusable = Vec::new();
        let mut may_keep = true;
        for segment in segments.iter().copied() {
            let (file, bytes) = self.load(segment)?;
            let missing = self.next_sequence;
            let late_header = self.decode_header(&bytes, segment)?;
            let remains = format::scan(&bytes, 0, self.seed, segment, missing);
            let proof = match (late_header, remains) {
                (Some(header), _) if header.first_sequence > missing => Some(0),
                (_, Remains::Proof(at)) => Some(at),
                _ => None,
            };
            if let Some(at) = proof {
                let reason = format!(
                    "record {missing} is unreadable, but was durable: what begins at byte {at} \
                     was written after it"
                );
                return Err(damaged(self.disk, segment, 0, reason));
            }
            let is_clean = late_header.is_none() && remains == Remains::Nothing;
            let is_whole = bytes.len() as u64 == self.options.segment_bytes;
            may_keep &= is_clean && is_whole;
            if may_keep {
                ready.push_back(Prepared { segment, file });
            } else {
                unusable.push(segment);
            }
        }
        // From the end, so that a crash never leaves a gap that looks like lost segments.
        for segment in unusable.into_iter().rev() {
            self.remove(segment)?;
        }
        Ok(ready)
    }

    /// The segment to begin a log with.
    fn first_segment(
        &mut self,
        ready: Option<Prepared>,
        next: u64,
    ) -> Result<(Prepared, u64), OpenError> {
        let (first, next) = match ready {
            Some(ready) => (ready, next),
            None => {
                let created =
                    segments::create(self.disk, next, self.options.segment_bytes, || true);
                let path = segments::name(next);
                (created.map_err(|e| io_error(self.disk, &path, e))?, next + 1)
            }
        };
        self.files.insert(first.segment, first.file.clone());
        self.used.push_back(Used { segment: first.segment, last_index: None });
        Ok((first, next))
    }

    fn load(&self, segment: u64) -> Result<(Arc<dyn DiskFile>, Bytes), OpenError> {
        let name = segments::name(segment);
        let load = || {
            let file = self.disk.open(&name)?;
            let mut bytes = vec![0; usize::try_from(file.bytes()?).map_err(io::Error::other)?];
            file.read_exact_at(&mut bytes, 0)?;
            io::Result::Ok((file, Bytes::from(bytes)))
        };
        load().map_err(|e| io_error(self.disk, &name, e))
    }

    fn decode_header(
        &self,
        bytes: &[u8],
        segment: u64,
    ) -> Result<Option<SegmentHeader>, OpenError> {
        match SegmentHeader::decode(bytes, self.seed, self.options.node, segment) {
            Ok(header) => Ok(Some(header)),
            Err(HeaderError::Invalid) => Ok(None),
            Err(HeaderError::Version(found)) => {
                Err(version(self.disk, &segments::name(segment), found))
            }
        }
    }

    fn remove(&self, segment: u64) -> Result<(), OpenError> {
        let name = segments::name(segment);
        let removed = self.disk.remove(&name).and_then(|()| self.disk.sync_dir());
        removed.map_err(|e| io_error(self.disk, &name, e))
    }
}

/// Refuses every later start.
pub(super) fn condemn(disk: &dyn Disk, reason: &str) -> io::Result<OpenError> {
    let refusal = lost(disk, reason.to_owned());
    publish(disk, CONDEMNED, reason.as_bytes())?;
    Ok(refusal)
}

fn lost(disk: &dyn Disk, reason: String) -> OpenError {
    OpenError::Lost { path: disk.path(""), reason }
}

fn read(disk: &dyn Disk, name: &str) -> io::Result<Vec<u8>> {
    let file = disk.open(name)?;
    let bytes = usize::try_from(file.bytes()?.min(NOTE_BYTES_MAX)).map_err(io::Error::other)?;
    let mut bytes = vec![0; bytes];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// Creates a small file, durable and complete or not at all.
fn publish(disk: &dyn Disk, name: &str, content: &[u8]) -> io::Result<()> {
    let unfinished = segments::unfinished(name);
    let file = disk.create(&unfinished)?;
    file.write_all_at(content, 0)?;
    file.sync()?;
    disk.rename(&unfinished, name)?;
    disk.sync_dir()
}

fn read_identity(disk: &dyn Disk, node: u64) -> Result<Identity, OpenError> {
    let bytes = read(disk, IDENTITY).map_err(|e| io_error(disk, IDENTITY, e))?;
    let path = disk.path(IDENTITY);
    match Identity::decode(&bytes) {
        Ok(identity) if identity.node == node => Ok(identity),
        Ok(identity) => Err(OpenError::OtherMember { path, found: identity.node, expected: node }),
        Err(HeaderError::Version(found)) => Err(version(disk, IDENTITY, found)),
        Err(HeaderError::Invalid) => {
            Err(OpenError::Damaged { path, offset: 0, reason: "not an identity file".to_owned() })
        }
    }
}

fn create_identity(disk: &dyn Disk, node: u64) -> io::Result<Identity> {
    // The standard library's hash keys are random numbers of the operating system.
    let salt = std::hash::RandomState::new().build_hasher().finish();
    let identity = Identity { node, salt };
    publish(disk, IDENTITY, &identity.encode())?;
    Ok(identity)
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
