//! The value of a native place: its share of the lock, its requests and its note.

use bytes::Bytes;

use crate::rows::{RowReader, RowWriter};

/// First bytes of the value of a native place. The byte 0 tells it from text.
const MAGIC: &[u8; 6] = b"\0clock";
/// Format of what follows.
const FORM: u8 = 1;

/// Most requests that share one place, so how often a session can hold it re-entrantly.
pub const REQUESTS_MAX: usize = 64;

/// The share that the value of a place asks for; a value without a claim is exclusive.
pub(crate) fn share(value: &[u8]) -> (u32, u32) {
    Claim::decode(value).map_or((1, 1), |claim| (claim.permits, claim.limit))
}

/// What a place asks for. The default is that of a key without a claim: exclusive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Share of `limit` that is requested, from 1.
    pub permits: u32,
    /// Permits that all holders together may have.
    pub limit: u32,
    /// See [`crate::command::LockAcquire::delay_seconds`].
    pub delay_seconds: u32,
    /// See [`crate::command::LockAcquire::asked_ms`].
    pub asked_ms: i64,
    /// The requests that the place belongs to. If empty, its session expired and the place only
    /// waits out the lock delay.
    pub requests: Vec<Bytes>,
    /// See [`crate::command::LockAcquire::note`].
    pub note: Bytes,
}

impl Default for Claim {
    fn default() -> Claim {
        Claim {
            permits: 1,
            limit: 1,
            delay_seconds: 0,
            asked_ms: 0,
            requests: Vec::new(),
            note: Bytes::new(),
        }
    }
}

impl Claim {
    /// Encodes the claim as the value of a key.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut row = RowWriter::new(MAGIC[0]);
        MAGIC.iter().skip(1).chain(&[FORM]).for_each(|byte| row.byte(*byte));
        row.uint(u64::from(self.permits));
        row.uint(u64::from(self.limit));
        row.uint(u64::from(self.delay_seconds));
        row.int(self.asked_ms);
        row.size(self.requests.len());
        self.requests.iter().for_each(|request| row.bytes(request));
        row.bytes(&self.note);
        row.finish()
    }

    /// Decodes the value of a place; `None` if it is not that of a native one. Any client may write
    /// such keys, so an invalid value is not an error.
    #[must_use]
    pub fn decode(value: &[u8]) -> Option<Claim> {
        let (form, rest) = value.strip_prefix(MAGIC)?.split_first()?;
        if *form != FORM {
            return None;
        }
        let mut row = RowReader::new("claim", rest);
        let claim = Claim {
            permits: row.short().ok()?,
            limit: row.short().ok()?,
            delay_seconds: row.short().ok()?,
            asked_ms: row.int().ok()?,
            // A count above the maximum is invalid, whatever follows.
            requests: (0..row.size().ok().filter(|count| *count <= REQUESTS_MAX)?)
                .map(|_| Some(Bytes::copy_from_slice(row.bytes().ok()?)))
                .collect::<Option<_>>()?,
            note: Bytes::copy_from_slice(row.bytes().ok()?),
        };
        (1..=claim.limit).contains(&claim.permits).then_some(claim)
    }

    /// Whether a holder with this claim excludes all others.
    #[must_use]
    pub fn is_exclusive(&self) -> bool {
        self.permits >= self.limit
    }

    pub(crate) fn is_for(&self, request: &Bytes) -> bool {
        self.requests.contains(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_round_trip_and_foreign_ones_are_none() {
        let claim = Claim {
            permits: 2,
            limit: 5,
            delay_seconds: 15,
            asked_ms: 1_700_000_000_000,
            requests: vec!["r1".into(), "r2".into()],
            note: "who".into(),
        };
        let value = claim.encode();
        assert_eq!(Claim::decode(&value), Some(claim.clone()));
        for end in 0..value.len() {
            assert_eq!(Claim::decode(&value[..end]), None, "cut at {end}");
        }
        for foreign in ["", "leader-1", "\0clock", "\0clock\u{2}"] {
            assert_eq!(Claim::decode(foreign.as_bytes()), None, "{foreign:?}");
        }
        let many = vec![Bytes::from_static(b"r"); REQUESTS_MAX + 1];
        assert_eq!(Claim::decode(&Claim { requests: many, ..claim.clone() }.encode()), None);
        for (permits, limit) in [(0, 1), (2, 1)] {
            let impossible = Claim { permits, limit, ..claim.clone() };
            assert_eq!(Claim::decode(&impossible.encode()), None);
        }
    }
}
