//! Completes the end of a log: looks for proof that records are missing, makes the end durable,
//! erases a torn tail, and classifies the segments.

use std::collections::VecDeque;

use super::replay::{End, Replay};
use super::{Recovered, damaged, io_error};
use crate::log::error::OpenError;
use crate::log::format::{self, Remains};
use crate::log::segments::{self, Prepared};
use crate::log::shared::up_to;
use crate::log::writer::{Tail, Used};

impl Replay<'_> {
    /// Makes the end durable, erases a torn tail, and classifies the segments.
    pub(super) fn finish(
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

    /// Checks that the entries follow the purged ones without a gap.
    fn check(&self, oldest: u64) -> Result<(), OpenError> {
        let first = self.index.range().start;
        // Raft's first entry has index 0. If the very first segment exists, nothing is missing
        // before it.
        let begin = if oldest == 1 { first } else { 0 };
        let expected = self.checkpoint.purged.map_or(begin, |purged| purged.index + 1);
        if self.index.is_empty() || first == expected {
            return Ok(());
        }
        let reason = format!("the oldest entry has index {first}, but {expected} must be there");
        Err(damaged(self.disk, oldest, 0, reason))
    }

    /// Looks for proof that records are missing after the end, then makes the end durable.
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
        // The last group may have been read from the page cache after a sync that failed or never
        // ran. Writing it again makes the kernel write it to disk again.
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

    /// Classifies the segments after the end: those without a trace of use can be reused, others
    /// are deleted.
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
        // From the end, so that a crash never leaves a gap that looks like a lost segment.
        for segment in unusable.into_iter().rev() {
            self.remove(segment)?;
        }
        Ok(ready)
    }

    /// The segment that a new log begins with.
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

    fn remove(&self, segment: u64) -> Result<(), OpenError> {
        let name = segments::name(segment);
        let removed = self.disk.remove(&name).and_then(|()| self.disk.sync_dir());
        removed.map_err(|e| io_error(self.disk, &name, e))
    }
}
