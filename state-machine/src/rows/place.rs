//! `Place` rows: which leased keys are children of which name, in the order in which they were created.
//!
//! A lock or election `name` is the queue of the keys `name/x` that were created with a lease, where `x`
//! has no `/`: those that etcd's recipes make, and ours. What a place wants is in the key's value; its
//! row only says which stream waits for it, which is nothing that a watcher of the key should see.
//! A name with places has one row more, its [`Front`]. It says where they begin: what was deleted before them
//! is still there for the engine's scans, and a lock that is used a lot leaves a lot of it.

use bytes::Bytes;

use super::{RowReader, RowWriter};
use crate::response::Halt;

const LENGTH_BYTES: usize = 4;
const REVISION_BYTES: usize = 8;
/// First byte of the row of a place that says which streams wait.
const FORM_ATTEMPTS: u8 = 1;

/// Which stream asked last for one of the requests that a place is for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attempt {
    /// Empty for a candidate, which is asked for without one.
    pub(crate) request: Bytes,
    /// The stream; 0: none gives the request up any more.
    pub(crate) stream: u64,
    /// What the client numbered it with; 0: nothing.
    pub(crate) number: u64,
}

/// Splits a key at its last `/`, if there is something on both sides.
pub(crate) fn parent(key: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = key.iter().rposition(|byte| *byte == b'/')?;
    let (parent, child) = (key.get(..at)?, key.get(at.saturating_add(1)..)?);
    (!parent.is_empty() && !child.is_empty()).then_some((parent, child))
}

/// Prefix of the rows of one name, and key of its [`Front`]. The length
/// comes first, so that no name is a prefix of another.
pub(crate) fn prefix(name: &[u8]) -> Vec<u8> {
    let length = u32::try_from(name.len()).unwrap_or(u32::MAX);
    let mut prefix = Vec::with_capacity(LENGTH_BYTES.saturating_add(name.len()));
    prefix.extend_from_slice(&length.to_be_bytes());
    prefix.extend_from_slice(name);
    prefix
}

/// Key of the row of the place `child`.
pub(crate) fn row_key(prefix: &[u8], create_revision: i64, child: &[u8]) -> Bytes {
    Bytes::from([prefix, &create_revision.to_be_bytes(), child].concat())
}

/// Bounds of the rows of the places that were created in revision `first` and later.
pub(crate) fn bounds(prefix: &[u8], first: i64) -> (Vec<u8>, Vec<u8>) {
    // Revisions are positive, so that their first byte is below this.
    ([prefix, &first.to_be_bytes()].concat(), [prefix, &[0x80]].concat())
}

/// Value of the row of a place: which streams wait for it, nothing for none.
pub(crate) fn encode_attempts(attempts: &[Attempt]) -> Bytes {
    if attempts.is_empty() {
        return Bytes::new();
    }
    let mut row = RowWriter::new(FORM_ATTEMPTS);
    for attempt in attempts {
        row.bytes(&attempt.request);
        row.uint(attempt.stream);
        row.uint(attempt.number);
    }
    row.finish()
}

/// # Errors
/// [`Halt::CorruptRow`] if the bytes are not such a row.
pub(crate) fn decode_attempts(row: &[u8]) -> Result<Vec<Attempt>, Halt> {
    let mut attempts = Vec::new();
    if row.is_empty() {
        return Ok(attempts);
    }
    let mut row = RowReader::new("place", row);
    if row.form()? != FORM_ATTEMPTS {
        return Err(row.corrupt("unknown form"));
    }
    while !row.is_empty() {
        let request = Bytes::copy_from_slice(row.bytes()?);
        attempts.push(Attempt { request, stream: row.uint()?, number: row.uint()? });
    }
    Ok(attempts)
}

/// What is kept about the places of a name as long as there are any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Front {
    /// Create revision of the first.
    pub(crate) first: i64,
    /// Highest create revision of those that went while others stayed; 0: none did.
    pub(crate) gone: i64,
}

impl Front {
    pub(crate) fn encode(&self) -> Bytes {
        Bytes::from([self.first.to_be_bytes(), self.gone.to_be_bytes()].concat())
    }

    /// # Errors
    /// [`Halt::CorruptRow`] if the bytes are not such a row.
    pub(crate) fn decode(row: &[u8]) -> Result<Front, Halt> {
        let broken =
            || Halt::CorruptRow { table: "place", detail: format!("row of {} bytes", row.len()) };
        let (first, gone) = row.split_at_checked(REVISION_BYTES).ok_or_else(broken)?;
        let first = first.try_into().map_err(|_| broken())?;
        let gone = gone.try_into().map_err(|_| broken())?;
        Ok(Front { first: i64::from_be_bytes(first), gone: i64::from_be_bytes(gone) })
    }
}

/// Create revision and key of a place, from its row's key and the length of its [`prefix`].
///
/// # Errors
/// [`Halt::CorruptRow`] if the bytes are not such a key.
pub(crate) fn place(row_key: &[u8], prefix_bytes: usize) -> Result<(i64, Bytes), Halt> {
    let broken = || Halt::CorruptRow { table: "place", detail: format!("{} bytes", row_key.len()) };
    let (prefix, rest) = row_key.split_at_checked(prefix_bytes).ok_or_else(broken)?;
    let (revision, child) = rest.split_at_checked(REVISION_BYTES).ok_or_else(broken)?;
    let name = prefix.get(LENGTH_BYTES..).ok_or_else(broken)?;
    let revision = revision.try_into().map_err(|_| broken())?;
    Ok((i64::from_be_bytes(revision), Bytes::from([name, b"/", child].concat())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_one_name_are_together_and_in_order() {
        let (own, deeper) = (prefix(b"a"), prefix(b"a/b"));
        let early = row_key(&own, 9, b"z");
        let late = row_key(&own, 300, b"b");
        let other = row_key(&deeper, 1, b"c");
        let (start, end) = bounds(&own, 9);
        assert!(own < start && start.as_slice() < early.as_ref() && early < late);
        assert!(late.as_ref() < end.as_slice());
        assert!(!(start.as_slice()..end.as_slice()).contains(&other.as_ref()));
        assert_eq!(place(&late, own.len()).unwrap(), (300, Bytes::from_static(b"a/b")));
        assert_eq!(place(&other, deeper.len()).unwrap().1, "a/b/c");
        assert!(place(&late, late.len()).is_err());
        let front = Front { first: 7, gone: 9 };
        assert_eq!(Front::decode(&front.encode()).unwrap(), front);
        assert!(Front::decode(b"short").is_err() && Front::decode(&[0; 12]).is_err());
        let attempt = |request: &'static str, stream| Attempt {
            request: request.into(),
            stream,
            number: stream / 2,
        };
        for attempts in
            [vec![], vec![attempt("", u64::MAX)], vec![attempt("r", 0), attempt("s", 9)]]
        {
            assert_eq!(decode_attempts(&encode_attempts(&attempts)).unwrap(), attempts);
        }
        assert!(decode_attempts(b"\x01\x09").is_err(), "cut short");
        assert!(decode_attempts(b"other").is_err());
    }

    #[test]
    fn only_children_are_places() {
        for key in ["plain", "/child", "name/", "/"] {
            assert_eq!(parent(key.as_bytes()), None, "{key}");
        }
        assert_eq!(parent(b"a/b/c"), Some((&b"a/b"[..], &b"c"[..])));
    }
}
