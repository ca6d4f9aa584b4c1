//! What follows the last readable record of a log: nothing, a torn tail, or proof that something is
//! damaged.

use super::{ALIGNMENT, RECORD_HEADER_BYTES, read_record, record_bytes, u32_at, u64_at};

const BLOCK_BYTES: usize = 4096;
const ZEROS: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];

/// What follows the last readable record in a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::log) enum Remains {
    /// No record of this segment.
    Nothing,
    /// Records of a group that was never durable as a whole, or the beginning of one, up to this
    /// offset.
    Torn(usize),
    /// At this offset, a record which proves that record `missing` was durable.
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

/// Where record `missing` would have ended if its beginning is at `at`; 0 if that is not its
/// beginning.
fn torn_end(bytes: &[u8], at: usize, missing: u64) -> usize {
    let Some(head) = bytes.get(at..at + RECORD_HEADER_BYTES) else { return 0 };
    if u64_at(head, 16) != missing {
        return 0;
    }
    (at + record_bytes(u32_at(head, 4) as usize)).min(bytes.len())
}

/// Searches from `from` on for records of `segment` later than `missing`.
pub(in crate::log) fn scan(
    bytes: &[u8],
    from: usize,
    seed: u32,
    segment: u64,
    missing: u64,
) -> Remains {
    let mut remains = Remains::Nothing;
    let begin = from.next_multiple_of(ALIGNMENT);
    for (block, words) in bytes.get(begin..).unwrap_or_default().chunks(BLOCK_BYTES).enumerate() {
        // Most of a segment is zeros, and comparing a whole block of them is fast.
        if words == &ZEROS[..words.len()] {
            continue;
        }
        for at in candidates(words, segment).map(|word| begin + block * BLOCK_BYTES + word) {
            // The second word of a record is the number of its segment.
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

/// Offsets of the words in `bytes` that are equal to `number`.
fn candidates(bytes: &[u8], number: u64) -> impl Iterator<Item = usize> {
    let words = bytes.chunks_exact(ALIGNMENT).enumerate();
    let wanted = number.to_le_bytes();
    words.filter(move |(_, word)| *word == wanted).map(|(at, _)| at * ALIGNMENT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::format::{Kind, RecordHeader, append_record};

    #[test]
    fn later_records_prove_durability_only_if_written_after_a_sync() {
        let mut bytes = vec![0; 64];
        let header = RecordHeader { segment: 1, sequence: 12, position: 3, kind: Kind::Vote };
        append_record(&mut bytes, 0, &header, b"");
        // When record 12 was written, 9 was the first that was not durable.
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
        // The beginning of a stale record, or bytes of a value, are not.
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
