//! `Lease` and `LeaseKey` rows: id -> TTL, and which keys are attached to which lease.

use bytes::Bytes;

use super::{RowReader, RowWriter};
use crate::response::Halt;

const FORM: u8 = 1;

/// A lease as granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseRow {
    /// Seconds.
    pub ttl: i64,
}

impl LeaseRow {
    pub(crate) fn encode(self) -> Bytes {
        let mut row = RowWriter::new(FORM);
        row.int(self.ttl);
        row.finish()
    }

    /// # Errors
    /// [`Halt::CorruptRow`] if the bytes are not such a row.
    pub(crate) fn decode(row: &[u8]) -> Result<LeaseRow, Halt> {
        let mut row = RowReader::new("lease", row);
        match row.form()? {
            FORM => Ok(LeaseRow { ttl: row.int()? }),
            _ => Err(row.corrupt("unknown form")),
        }
    }
}

/// Key of a `Lease` row and prefix of its `LeaseKey` rows.
pub(crate) fn row_key(id: i64) -> [u8; 8] {
    id.to_be_bytes()
}

/// Reads back what [`row_key`] made.
///
/// # Errors
/// [`Halt::CorruptRow`] if the bytes are not such a key.
pub(crate) fn id(row_key: &[u8]) -> Result<i64, Halt> {
    let bytes = row_key.try_into().map_err(|_| Halt::CorruptRow {
        table: "lease",
        detail: format!("key of {} bytes", row_key.len()),
    })?;
    Ok(i64::from_be_bytes(bytes))
}

/// Key of the `LeaseKey` row that attaches `key` to lease `id`.
pub(crate) fn attachment_key(id: i64, key: &[u8]) -> Bytes {
    Bytes::from([&row_key(id), key].concat())
}

/// First key behind all attachments of lease `id`; `None` if there can be none.
pub(crate) fn attachments_end(id: i64) -> Option<[u8; 8]> {
    id.cast_unsigned().checked_add(1).map(u64::to_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_round_trip() {
        let row = LeaseRow { ttl: 9_000_000_000 };
        assert_eq!(LeaseRow::decode(&row.encode()).unwrap(), row);
        assert!(LeaseRow::decode(&[]).is_err());
        assert_eq!(id(&row_key(-5)).unwrap(), -5);
        assert!(id(b"short").is_err());
    }

    #[test]
    fn attachments_of_one_lease_are_together() {
        for id in [1, 255, i64::MAX, -2] {
            let key = attachment_key(id, b"\xff\xff");
            assert!(row_key(id).as_slice() < key.as_ref());
            assert!(key.as_ref() < attachments_end(id).unwrap().as_slice());
        }
        assert_eq!(attachments_end(-1), None, "the last id has no next one");
    }
}
