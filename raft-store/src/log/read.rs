//! Reads entries: from the tail cache, otherwise from segment files.
//!
//! What to read is decided under the lock, at one moment; files are read afterwards. In between, a
//! purge may free a segment for new records. So a stored record is accepted only with the right
//! checksum, segment and sequence, and a mismatch is an error only if the entry should still exist.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::disk::DiskFile;
use super::format;
use super::index::{Slot, Source};
use super::shared::Shared;

/// Records within a span of this length are read at once.
const SPAN_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Entries to read, and the files for them.
pub(super) struct Plan {
    first: u64,
    sources: Vec<Source>,
    files: BTreeMap<u64, Arc<dyn DiskFile>>,
}

impl Plan {
    /// Decides what to read of `range`: see [`super::index::Index::select`].
    pub(super) fn new(shared: &Shared, range: Range<u64>, bytes_max: usize) -> Self {
        let state = shared.state();
        let first = range.start.max(state.index.range().start);
        let sources = state.index.select(range, bytes_max);
        let mut files = BTreeMap::new();
        for source in &sources {
            if let Source::Stored(slot) = source
                && !files.contains_key(&slot.segment)
                && let Some(file) = state.files.get(&slot.segment)
            {
                files.insert(slot.segment, file.clone());
            }
        }
        Self { first, sources, files }
    }

    /// The encoded entries, if no file is needed for them.
    pub(super) fn cached(&self) -> Option<Vec<Bytes>> {
        let cached = self.sources.iter().map(|source| match source {
            Source::Cached(bytes) => Some(bytes.clone()),
            Source::Stored(_) => None,
        });
        cached.collect()
    }

    /// The encoded entries. Blocks on files. Entries that were purged meanwhile are left out.
    pub(super) fn read(&self, shared: &Shared, seed: u32) -> io::Result<Vec<Bytes>> {
        let mut entries = Vec::with_capacity(self.sources.len());
        let mut at = 0;
        while at < self.sources.len() {
            let stored = self.stored_span(at);
            if stored.is_empty() {
                if let Source::Cached(bytes) = &self.sources[at] {
                    entries.push(bytes.clone());
                }
                at += 1;
                continue;
            }
            let read = self.read_span(&stored, seed);
            let last = self.first + (at + stored.len() - 1) as u64;
            at += stored.len();
            match read {
                Ok(span) => entries.extend(span),
                Err(_) if shared.state().purged.is_some_and(|id| id.index >= last) => {
                    // Purged meanwhile, with everything before it.
                    entries.clear();
                }
                Err(error) => return Err(error),
            }
        }
        Ok(entries)
    }

    /// The stored entries from `at` on that are close to each other in one segment.
    fn stored_span(&self, at: usize) -> Vec<Slot> {
        let mut span: Vec<Slot> = Vec::new();
        for source in &self.sources[at..] {
            let Source::Stored(slot) = source else { break };
            if let (Some(first), Some(last)) = (span.first(), span.last()) {
                let is_near = slot.segment == first.segment
                    && slot.offset > last.offset
                    && end(slot) - u64::from(first.offset) <= SPAN_BYTES_MAX;
                if !is_near {
                    break;
                }
            }
            span.push(*slot);
        }
        span
    }

    fn read_span(&self, span: &[Slot], seed: u32) -> io::Result<Vec<Bytes>> {
        let (Some(first), Some(last)) = (span.first(), span.last()) else { return Ok(Vec::new()) };
        let file = self.files.get(&first.segment).ok_or(io::ErrorKind::NotFound)?;
        let mut buffer = vec![0; (end(last) - u64::from(first.offset)) as usize];
        file.read_exact_at(&mut buffer, u64::from(first.offset))?;
        let buffer = Bytes::from(buffer);
        let bodies = span.iter().map(|slot| {
            let at = (slot.offset - first.offset) as usize;
            format::read_record(&buffer, at, seed, slot.segment)
                .filter(|found| found.header.sequence == slot.sequence)
                .map(|found| buffer.slice(found.body))
                .ok_or_else(|| damaged(slot))
        });
        bodies.collect()
    }
}

fn end(slot: &Slot) -> u64 {
    u64::from(slot.offset) + format::record_bytes(slot.body_bytes as usize) as u64
}

fn damaged(slot: &Slot) -> io::Error {
    let name = super::segments::name(slot.segment);
    let reason = format!(
        "raft log is damaged: {name} at byte {}: record {} is unreadable although it was written",
        slot.offset, slot.sequence
    );
    io::Error::new(io::ErrorKind::InvalidData, reason)
}
