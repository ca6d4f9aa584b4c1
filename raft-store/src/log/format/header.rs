//! Metadata of a log: the identity file, and the first bytes of each segment.

use conclave_proto::internal;

use super::{SEGMENT_HEADER_BYTES, VERSION, u32_at, u64_at};
use crate::codec;
use crate::types::{LogId, Vote};

const IDENTITY_MAGIC: [u8; 8] = *b"conclLOG";
const SEGMENT_MAGIC: [u8; 8] = *b"conclSEG";
const IDENTITY_BYTES: usize = 36;

/// Why a header cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::log) enum HeaderError {
    /// Not one of ours, of another segment, or damaged.
    Invalid,
    /// Valid, but of a version that this program does not know.
    Version(u32),
}

/// The identity of a log; written once, when the log is created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::log) struct Identity {
    /// Member whose log this is.
    pub(in crate::log) node: u64,
    /// Random; seeds all checksums.
    pub(in crate::log) salt: u64,
}

impl Identity {
    pub(in crate::log) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(IDENTITY_BYTES);
        out.extend_from_slice(&IDENTITY_MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.node.to_le_bytes());
        out.extend_from_slice(&self.salt.to_le_bytes());
        out.extend_from_slice(&crc32c::crc32c(&out).to_le_bytes());
        out
    }

    pub(in crate::log) fn decode(bytes: &[u8]) -> Result<Self, HeaderError> {
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
    pub(in crate::log) fn seed(&self) -> u32 {
        crc32c::crc32c(&self.salt.to_le_bytes())
    }
}

/// The combined effect of all earlier segments, so that they can be deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::log) struct Checkpoint {
    pub(in crate::log) vote: Option<Vote>,
    pub(in crate::log) purged: Option<LogId>,
    pub(in crate::log) committed: Option<LogId>,
}

/// First bytes of a segment. Written together with the segment's first records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::log) struct SegmentHeader {
    pub(in crate::log) node: u64,
    pub(in crate::log) segment: u64,
    /// Sequence of the segment's first record; the segment before ends with the previous sequence.
    pub(in crate::log) first_sequence: u64,
    pub(in crate::log) checkpoint: Checkpoint,
}

impl SegmentHeader {
    pub(in crate::log) fn encode(&self, seed: u32) -> Vec<u8> {
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
    pub(in crate::log) fn decode(
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

fn put_u64(out: &mut [u8], at: usize, value: u64) {
    out[at..at + 8].copy_from_slice(&value.to_le_bytes());
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
}
