//! The encoding on disk: identity file, segment header, record.
//!
//! ```text
//! identity         magic 8 | version 4 | 0 4 | node 8 | salt 8 | crc32c 4
//! %016x.segment    header 512 | record | record | ... | zeros or stale bytes
//! header           magic 8 | version 4 | crc32c 4 | node 8 | segment 8 | first sequence 8
//!                  | vote 24 | purged 24 | committed 24 | 0 ...
//! record           crc32c 4 | body bytes 4 | segment 8 | sequence 8 | position 4 | kind 1 | 0 3
//!                  | body | 0 up to a multiple of 8
//! ```
//! All integers are little-endian. A recycled segment is full of valid old records, so a record
//! counts only with its own segment's number and the expected sequence. Checksums are seeded with
//! the salt, a random number of this log, so that no client can place a valid record in a value.
//!
//! `position` counts the records since the last completed sync. Hence `sequence - position` is the
//! first record that was not yet durable when this one was written. This distinguishes damage (an
//! earlier record is unreadable although it was durable) from a torn tail (it never was durable).
//!
//! | module | what |
//! |---|---|
//! | `header` | the identity file and segment headers |
//! | `scan` | what follows the last readable record |

mod header;
mod scan;

use std::ops::Range;

use conclave_proto::internal;

use crate::codec;
use crate::types::LogId;

pub(super) use header::{Checkpoint, HeaderError, Identity, SegmentHeader};
pub(super) use scan::{Remains, scan};

/// Version of this format.
pub(super) const VERSION: u32 = 1;
/// Bytes of a segment header: one sector, so that it is written completely or not at all.
pub(super) const SEGMENT_HEADER_BYTES: u64 = 512;
/// Bytes before the body of a record.
pub(super) const RECORD_HEADER_BYTES: usize = 32;
/// Records begin at multiples of this.
const ALIGNMENT: usize = 8;

/// What a record contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// Body: `internal::Vote`.
    Vote = 1,
    /// Body: `internal::Entry`.
    Entry = 2,
    /// Entries after a log id are removed. Body: [`encode_log_id`].
    Truncate = 3,
    /// Entries up to a log id are purged. Body: [`encode_log_id`].
    Purge = 4,
    /// Entries up to a log id are committed. A hint, never synced for its own sake. Body:
    /// [`encode_log_id`].
    Committed = 5,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Vote,
            2 => Self::Entry,
            3 => Self::Truncate,
            4 => Self::Purge,
            5 => Self::Committed,
            _ => return None,
        })
    }
}

/// The fixed part of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RecordHeader {
    pub(super) segment: u64,
    pub(super) sequence: u64,
    /// Records since the last completed sync.
    pub(super) position: u32,
    pub(super) kind: Kind,
}

impl RecordHeader {
    /// Sequence of the first record that was not durable when this one was written.
    pub(super) fn first_undurable(&self) -> u64 {
        self.sequence.saturating_sub(u64::from(self.position))
    }
}

/// Bytes of a record with a body of this length.
pub(super) fn record_bytes(body_bytes: usize) -> usize {
    (RECORD_HEADER_BYTES + body_bytes).next_multiple_of(ALIGNMENT)
}

/// Appends a record to `out`, whose length must be a multiple of 8. The body must be below 4 GiB.
pub(super) fn append_record(out: &mut Vec<u8>, seed: u32, header: &RecordHeader, body: &[u8]) {
    let start = out.len();
    let body_bytes = u32::try_from(body.len()).expect("bodies are bounded when they are queued");
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&body_bytes.to_le_bytes());
    out.extend_from_slice(&header.segment.to_le_bytes());
    out.extend_from_slice(&header.sequence.to_le_bytes());
    out.extend_from_slice(&header.position.to_le_bytes());
    out.extend_from_slice(&[header.kind as u8, 0, 0, 0]);
    out.extend_from_slice(body);
    let crc = crc32c::crc32c_append(seed, &out[start + 4..]);
    out[start..start + 4].copy_from_slice(&crc.to_le_bytes());
    out.resize(start + record_bytes(body.len()), 0);
}

/// A record found in `bytes`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) header: RecordHeader,
    /// Range of its body in `bytes`.
    pub(super) body: Range<usize>,
    /// Offset of the next record.
    pub(super) end: usize,
}

/// Reads the record of `segment` at `at`; `None` if there is no valid one.
pub(super) fn read_record(bytes: &[u8], at: usize, seed: u32, segment: u64) -> Option<Found> {
    let head = bytes.get(at..at.checked_add(RECORD_HEADER_BYTES)?)?;
    // Checked first, because in stale bytes it is nearly always wrong and the check is cheap.
    if u64_at(head, 8) != segment {
        return None;
    }
    let kind = Kind::from_byte(head[28])?;
    let body_start = at + RECORD_HEADER_BYTES;
    let body = body_start..body_start.checked_add(u32_at(head, 4) as usize)?;
    let checked = bytes.get(at + 4..body.end)?;
    if crc32c::crc32c_append(seed, checked) != u32_at(head, 0) {
        return None;
    }
    let end = at + record_bytes(body.len());
    let header =
        RecordHeader { segment, sequence: u64_at(head, 16), position: u32_at(head, 24), kind };
    (end <= bytes.len()).then_some(Found { header, body, end })
}

/// Encodes the body of a record about a log id. `None` differs from the first log id.
pub(super) fn encode_log_id(id: Option<LogId>) -> Vec<u8> {
    let Some(id) = id else { return vec![0] };
    let mut out = vec![1];
    prost::Message::encode(&codec::log_id_message(&id), &mut out)
        .expect("a vector grows as far as needed");
    out
}

/// Decodes such a body; `None` if it is not one.
pub(super) fn decode_log_id(body: &[u8]) -> Option<Option<LogId>> {
    match body.split_first()? {
        (0, []) => Some(None),
        (1, rest) => {
            let message = <internal::LogId as prost::Message>::decode(rest).ok()?;
            Some(Some(codec::log_id(&message)))
        }
        _ => None,
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::CommittedLeaderId;

    fn id(term: u64, index: u64) -> LogId {
        LogId::new(CommittedLeaderId::new(term), index)
    }

    /// If the digest changes, so did the format: raise [`VERSION`] and keep reading the old one.
    #[test]
    fn the_bytes_of_version_1_never_change() {
        let vote = codec::vote(&internal::Vote { term: 3, leader: 2, committed: true });
        let checkpoint =
            Checkpoint { vote: Some(vote), purged: Some(id(1, 8)), committed: Some(id(2, 9)) };
        let segment = SegmentHeader { node: 7, segment: 5, first_sequence: 77, checkpoint };
        let mut bytes = Identity { node: 7, salt: 99 }.encode();
        bytes.resize(40, 0);
        bytes.extend(segment.encode(1));
        let header = RecordHeader { segment: 5, sequence: 77, position: 1, kind: Kind::Truncate };
        append_record(&mut bytes, 1, &header, &encode_log_id(Some(id(2, 6))));
        let payload = crate::types::EntryPayload::Normal(crate::types::Batch {
            bytes: bytes::Bytes::from_static(b"batch"),
        });
        let entry = crate::types::Entry { log_id: id(2, 7), payload };
        bytes.extend_from_slice(&codec::encode_entry(&entry));
        assert_eq!((bytes.len(), crc32c::crc32c(&bytes)), (605, 2_954_625_749));
    }

    #[test]
    fn a_record_notices_every_flipped_bit() {
        let header = RecordHeader { segment: 4, sequence: 10, position: 3, kind: Kind::Entry };
        let mut bytes = Vec::new();
        append_record(&mut bytes, 5, &header, b"hello");
        assert_eq!(bytes.len(), record_bytes(5));
        let found = read_record(&bytes, 0, 5, 4).unwrap();
        assert_eq!((found.header, &bytes[found.body.clone()]), (header, &b"hello"[..]));
        assert_eq!(found.end, bytes.len());
        for bit in 0..(RECORD_HEADER_BYTES + 5) * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(read_record(&damaged, 0, 5, 4), None, "bit {bit}");
        }
        assert_eq!(read_record(&bytes, 0, 6, 4), None, "another log's salt");
        assert_eq!(read_record(&bytes[..bytes.len() - 4], 0, 5, 4), None, "cut short");
    }

    #[test]
    fn no_log_id_differs_from_the_first() {
        for value in [None, Some(id(0, 0)), Some(id(u64::MAX, u64::MAX))] {
            assert_eq!(decode_log_id(&encode_log_id(value)), Some(value));
        }
        assert_eq!(decode_log_id(&[]), None);
        assert_eq!(decode_log_id(&[2]), None);
        assert_eq!(decode_log_id(&[0, 0]), None);
    }
}
