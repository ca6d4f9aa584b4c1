//! The bytes on disk: identity file, segment header, record.
//!
//! ```text
//! identity         magic 8 | version 4 | 0 4 | node 8 | salt 8 | crc32c 4
//! %016x.segment    header 512 | record | record | ... | zeros or stale bytes
//! header           magic 8 | version 4 | crc32c 4 | node 8 | segment 8 | first sequence 8
//!                  | vote 24 | purged 24 | committed 24 | 0 ...
//! record           crc32c 4 | body bytes 4 | segment 8 | sequence 8 | position 4 | kind 1 | 0 3
//!                  | body | 0 up to a multiple of 8
//! ```
//! All integers are little-endian. A recycled segment is full of valid old records: a record counts
//! only with its own segment's number and the expected sequence. Checksums are seeded with the salt,
//! a random number of this log, so that no client can place a valid record in a value.
//!
//! `position` counts the records since the last completed sync. Hence `sequence - position` is the
//! first record that was not yet durable when this one was written, which tells damage (an earlier
//! record is unreadable although it was durable) from a torn tail (it never was).

use std::ops::Range;

use conclave_proto::internal;

use crate::codec;
use crate::types::{LogId, Vote};

/// Version of everything here.
pub(super) const VERSION: u32 = 1;
/// Bytes of a segment header: one sector, so that it is written whole or not at all.
pub(super) const SEGMENT_HEADER_BYTES: u64 = 512;
/// Bytes before the body of a record.
pub(super) const RECORD_HEADER_BYTES: usize = 32;
/// Records begin at multiples of this.
const ALIGNMENT: usize = 8;
const IDENTITY_MAGIC: [u8; 8] = *b"conclLOG";
const SEGMENT_MAGIC: [u8; 8] = *b"conclSEG";
const IDENTITY_BYTES: usize = 36;

/// Why a header is not usable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HeaderError {
    /// Not one of ours, of another segment, or damaged.
    Invalid,
    /// Sound, but of a version that this program does not know.
    Version(u32),
}

/// Which log this is; written once, when it is created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    /// Member whose log this is.
    pub(super) node: u64,
    /// Random; seeds all checksums.
    pub(super) salt: u64,
}

impl Identity {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(IDENTITY_BYTES);
        out.extend_from_slice(&IDENTITY_MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.node.to_le_bytes());
        out.extend_from_slice(&self.salt.to_le_bytes());
        out.extend_from_slice(&crc32c::crc32c(&out).to_le_bytes());
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, HeaderError> {
        let sound = bytes.len() == IDENTITY_BYTES
            && bytes.starts_with(&IDENTITY_MAGIC)
            && crc32c::crc32c(&bytes[..32]) == u32_at(bytes, 32);
        if !sound {
            return Err(HeaderError::Invalid);
        }
        match u32_at(bytes, 8) {
            VERSION => Ok(Self { node: u64_at(bytes, 16), salt: u64_at(bytes, 24) }),
            other => Err(HeaderError::Version(other)),
        }
    }

    /// Seed of all checksums of this log.
    pub(super) fn seed(&self) -> u32 {
        crc32c::crc32c(&self.salt.to_le_bytes())
    }
}

/// What all earlier segments add up to, so that they can go away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Checkpoint {
    pub(super) vote: Option<Vote>,
    pub(super) purged: Option<LogId>,
    pub(super) committed: Option<LogId>,
}

/// First bytes of a segment. Written together with the segment's first records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) node: u64,
    pub(super) segment: u64,
    /// Sequence of the segment's first record: the segment before ends with the one before it.
    pub(super) first_sequence: u64,
    pub(super) checkpoint: Checkpoint,
}

impl SegmentHeader {
    pub(super) fn encode(&self, seed: u32) -> Vec<u8> {
        let mut out = vec![0; SEGMENT_HEADER_BYTES as usize];
        out[..8].copy_from_slice(&SEGMENT_MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        put_u64(&mut out, 16, self.node);
        put_u64(&mut out, 24, self.segment);
        put_u64(&mut out, 32, self.first_sequence);
        if let Some(vote) = &self.checkpoint.vote {
            put_u64(&mut out, 40, if vote.committed { 2 } else { 1 });
            put_u64(&mut out, 48, vote.leader_id.term);
            put_u64(&mut out, 56, vote.leader_id.voted_for);
        }
        for (at, id) in [(64, self.checkpoint.purged), (88, self.checkpoint.committed)] {
            if let Some(id) = id {
                put_u64(&mut out, at, 1);
                put_u64(&mut out, at + 8, id.leader_id.term);
                put_u64(&mut out, at + 16, id.index);
            }
        }
        let crc = crc32c::crc32c_append(seed, &out[16..]);
        out[12..16].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads the header of `segment` of member `node`.
    pub(super) fn decode(
        bytes: &[u8],
        seed: u32,
        node: u64,
        segment: u64,
    ) -> Result<Self, HeaderError> {
        let bytes = bytes.get(..SEGMENT_HEADER_BYTES as usize).ok_or(HeaderError::Invalid)?;
        let sound = bytes.starts_with(&SEGMENT_MAGIC)
            && crc32c::crc32c_append(seed, &bytes[16..]) == u32_at(bytes, 12)
            && u64_at(bytes, 16) == node
            && u64_at(bytes, 24) == segment;
        if !sound {
            return Err(HeaderError::Invalid);
        }
        let version = u32_at(bytes, 8);
        if version != VERSION {
            return Err(HeaderError::Version(version));
        }
        let log_id = |at: usize| {
            let message = internal::LogId {
                term: u64_at(bytes, at + 8),
                leader: 0,
                index: u64_at(bytes, at + 16),
            };
            (u64_at(bytes, at) == 1).then(|| codec::log_id(&message))
        };
        let vote = internal::Vote {
            term: u64_at(bytes, 48),
            leader: u64_at(bytes, 56),
            committed: u64_at(bytes, 40) == 2,
        };
        let vote = (u64_at(bytes, 40) != 0).then(|| codec::vote(&vote));
        let checkpoint = Checkpoint { vote, purged: log_id(64), committed: log_id(88) };
        Ok(Self { node, segment, first_sequence: u64_at(bytes, 32), checkpoint })
    }
}

/// What a record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// Body: `internal::Vote`.
    Vote = 1,
    /// Body: `internal::Entry`.
    Entry = 2,
    /// Entries after a log id are void. Body: [`encode_log_id`].
    Truncate = 3,
    /// Entries up to a log id are gone. Body: [`encode_log_id`].
    Purge = 4,
    /// The cluster committed up to a log id. A hint, never synced for itself. Body: [`encode_log_id`].
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

/// Bytes that a record with such a body takes.
pub(super) fn record_bytes(body_bytes: usize) -> usize {
    (RECORD_HEADER_BYTES + body_bytes).next_multiple_of(ALIGNMENT)
}

/// Adds a record to `out`, whose length must be a multiple of 8. The body is below 4 GiB.
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
    /// Where its body is in `bytes`.
    pub(super) body: Range<usize>,
    /// Where the next record begins.
    pub(super) end: usize,
}

/// Reads the record of `segment` that begins at `at`; `None` if there is no sound one.
pub(super) fn read_record(bytes: &[u8], at: usize, seed: u32, segment: u64) -> Option<Found> {
    let head = bytes.get(at..at.checked_add(RECORD_HEADER_BYTES)?)?;
    // First, because in stale bytes it is nearly always wrong and costs nothing.
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

/// What lies in a segment behind its last readable record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Remains {
    /// Nothing of this segment.
    Nothing,
    /// Records of a group that was never durable as a whole, or the begin of one, up to this offset.
    Torn(usize),
    /// At this offset a record which proves that record `missing` was durable.
    Proof(usize),
}

impl Remains {
    fn up_to(self, end: usize) -> Self {
        match self {
            Self::Nothing if end == 0 => Self::Nothing,
            Self::Nothing => Self::Torn(end),
            Self::Torn(before) => Self::Torn(before.max(end)),
            Self::Proof(at) => Self::Proof(at),
        }
    }
}

/// Where record `missing`, whose begin is at `at`, would have ended; 0 if that is not its begin.
fn torn_end(bytes: &[u8], at: usize, missing: u64) -> usize {
    let Some(head) = bytes.get(at..at + RECORD_HEADER_BYTES) else { return 0 };
    if u64_at(head, 16) != missing {
        return 0;
    }
    (at + record_bytes(u32_at(head, 4) as usize)).min(bytes.len())
}

/// Looks behind `from` for records of `segment` later than `missing`.
pub(super) fn scan(bytes: &[u8], from: usize, seed: u32, segment: u64, missing: u64) -> Remains {
    let mut remains = Remains::Nothing;
    let begin = from.next_multiple_of(ALIGNMENT);
    for (block, words) in bytes.get(begin..).unwrap_or_default().chunks(BLOCK_BYTES).enumerate() {
        // Most of a segment is zeros, and comparing all of them at once is fast.
        if words == &ZEROS[..words.len()] {
            continue;
        }
        for at in candidates(words, segment).map(|word| begin + block * BLOCK_BYTES + word) {
            // The second word of a record is the segment's number.
            let Some(start) = at.checked_sub(8).filter(|start| *start >= begin) else { continue };
            match read_record(bytes, start, seed, segment) {
                Some(found) if found.header.first_undurable() > missing => {
                    return Remains::Proof(start);
                }
                Some(found) => remains = remains.up_to(found.end),
                None if start == begin => {
                    remains = remains.up_to(torn_end(bytes, start, missing));
                }
                None => {}
            }
        }
    }
    remains
}

const BLOCK_BYTES: usize = 4096;
const ZEROS: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];

/// Where the words of `bytes` are equal to `number`.
fn candidates(bytes: &[u8], number: u64) -> impl Iterator<Item = usize> {
    let words = bytes.chunks_exact(ALIGNMENT).enumerate();
    let wanted = number.to_le_bytes();
    words.filter(move |(_, word)| *word == wanted).map(|(at, _)| at * ALIGNMENT)
}

/// Body of a record about a log id; none is not the same as the first.
pub(super) fn encode_log_id(id: Option<LogId>) -> Vec<u8> {
    let Some(id) = id else { return vec![0] };
    let mut out = vec![1];
    prost::Message::encode(&codec::log_id_message(&id), &mut out)
        .expect("a vector grows as far as needed");
    out
}

/// The log id of such a body; `None` if it is not one.
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

fn put_u64(out: &mut [u8], at: usize, value: u64) {
    out[at..at + 8].copy_from_slice(&value.to_le_bytes());
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

    #[test]
    fn headers_return_from_their_bytes_and_notice_every_flipped_bit() {
        let identity = Identity { node: 7, salt: 99 };
        assert_eq!(Identity::decode(&identity.encode()), Ok(identity));

        let vote = codec::vote(&internal::Vote { term: 3, leader: 2, committed: true });
        let checkpoint =
            Checkpoint { vote: Some(vote), purged: Some(id(0, 0)), committed: Some(id(2, 9)) };
        let header = SegmentHeader { node: 7, segment: 5, first_sequence: 77, checkpoint };
        let bytes = header.encode(1);
        assert_eq!(SegmentHeader::decode(&bytes, 1, 7, 5), Ok(header));
        assert_eq!(SegmentHeader::decode(&bytes, 1, 7, 6), Err(HeaderError::Invalid));
        assert_eq!(SegmentHeader::decode(&bytes, 2, 7, 5), Err(HeaderError::Invalid));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(SegmentHeader::decode(&damaged, 1, 7, 5).is_err(), "bit {bit}");
        }
        let empty = SegmentHeader { checkpoint: Checkpoint::default(), ..header };
        assert_eq!(SegmentHeader::decode(&empty.encode(1), 1, 7, 5), Ok(empty));
    }

    /// A changed digest is a changed format: raise [`VERSION`] and keep reading the old one.
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

    #[test]
    fn later_records_prove_durability_only_if_written_after_a_sync() {
        let mut bytes = vec![0; 64];
        let header = RecordHeader { segment: 1, sequence: 12, position: 3, kind: Kind::Vote };
        append_record(&mut bytes, 0, &header, b"");
        // Record 12 was written when 9 was the first that was not durable.
        assert_eq!(scan(&bytes, 0, 0, 1, 9), Remains::Torn(96));
        assert_eq!(scan(&bytes, 0, 0, 1, 8), Remains::Proof(64));
        assert_eq!(scan(&bytes, 0, 0, 2, 8), Remains::Nothing);
        assert_eq!(scan(&bytes, 64, 0, 1, 8), Remains::Proof(64));
        assert_eq!(scan(&bytes, 65, 0, 1, 8), Remains::Nothing);
        assert_eq!(scan(&bytes, 1000, 0, 1, 8), Remains::Nothing);
    }

    #[test]
    fn the_begin_of_the_missing_record_is_a_torn_one() {
        let mut bytes = vec![0; 64];
        let header = RecordHeader { segment: 1, sequence: 12, position: 3, kind: Kind::Entry };
        append_record(&mut bytes, 0, &header, &[7; 100]);
        let end = bytes.len();
        bytes.resize(4096, 0);
        bytes[64 + 60..].fill(0);
        assert_eq!(scan(&bytes, 64, 0, 1, 12), Remains::Torn(end));
        // A stale record, or bytes of a value, are not.
        assert_eq!(scan(&bytes, 64, 0, 1, 11), Remains::Nothing);
        assert_eq!(scan(&bytes, 64, 0, 2, 12), Remains::Nothing);
        assert_eq!(scan(&bytes[..100], 64, 0, 1, 12), Remains::Torn(100));
    }

    #[test]
    fn a_scan_finds_records_anywhere_in_a_large_segment() {
        let header = RecordHeader { segment: 1, sequence: 12, position: 3, kind: Kind::Entry };
        for at in (8..3 * BLOCK_BYTES).step_by(ALIGNMENT) {
            let mut bytes = vec![0; at];
            append_record(&mut bytes, 0, &header, b"body");
            bytes.resize(5 * BLOCK_BYTES, 0);
            assert_eq!(scan(&bytes, 8, 0, 1, 8), Remains::Proof(at));
        }
    }
}
