//! Follows the records of a log to their end.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::{damaged, io_error, version};
use crate::codec;
use crate::log::disk::{Disk, DiskFile};
use crate::log::error::OpenError;
use crate::log::format::{self, Found, HeaderError, Kind, RecordHeader, SegmentHeader};
use crate::log::index::{Index, Slot};
use crate::log::options::LogOptions;
use crate::log::segments;
use crate::log::shared::up_to;
use crate::log::writer::Used;
use crate::types::LogId;

/// Where the records end.
pub(super) struct End {
    /// Index in the list of segments.
    pub(super) at: usize,
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) bytes: Bytes,
    pub(super) offset: usize,
}

/// The combined effect of the records so far.
pub(super) struct Replay<'a> {
    pub(super) disk: &'a dyn Disk,
    pub(super) options: &'a LogOptions,
    pub(super) seed: u32,
    pub(super) checkpoint: format::Checkpoint,
    pub(super) last: Option<LogId>,
    pub(super) index: Index,
    pub(super) files: BTreeMap<u64, Arc<dyn DiskFile>>,
    pub(super) used: VecDeque<Used>,
    pub(super) next_sequence: u64,
    /// Offset of the last group in the segment being followed. Its records may have been read from
    /// the page cache without being durable.
    pub(super) group_offset: usize,
    pub(super) group_sequence: u64,
}

impl<'a> Replay<'a> {
    pub(super) fn new(disk: &'a dyn Disk, options: &'a LogOptions, seed: u32) -> Self {
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

    /// Follows all records; `None` if not even the first segment was used.
    pub(super) fn follow(&mut self, segments: &[u64]) -> Result<Option<End>, OpenError> {
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

    /// Follows the records of one segment. Returns the offset at which the next record is missing.
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
                // One that points beyond the last entry was obsolete when it was written.
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
        // An empty index accepts any entry: those before it may be in segments that were deleted,
        // and the purge that covers them comes later. `check` verifies the result.
        let next = self.index.range().end;
        if !self.index.is_empty() && id.index != next {
            return Err(format!("entry {id} follows entry {}", next - 1));
        }
        self.index.push_slot(id.index, slot);
        self.last = Some(id);
        self.used.back_mut().expect("records are in a segment").note(id.index);
        Ok(())
    }

    pub(super) fn load(&self, segment: u64) -> Result<(Arc<dyn DiskFile>, Bytes), OpenError> {
        let name = segments::name(segment);
        let load = || {
            let file = self.disk.open(&name)?;
            let mut bytes = vec![0; usize::try_from(file.bytes()?).map_err(io::Error::other)?];
            file.read_exact_at(&mut bytes, 0)?;
            io::Result::Ok((file, Bytes::from(bytes)))
        };
        load().map_err(|e| io_error(self.disk, &name, e))
    }

    pub(super) fn decode_header(
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
}
