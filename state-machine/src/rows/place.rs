//! `Place` rows: which leased keys are children of which name, in the order in which they were created.
//!
//! A lock or election `name` is the queue of the keys `name/x` that were created with a lease, where `x`
//! has no `/`: those that etcd's recipes make, and ours. What a place wants is in the key's value; its
//! row only says which stream waits for it, which is nothing that a watcher of the key should see.
//! A name with places has one row more, which says where they begin: what was deleted before them is
//! still there for the engine's scans, and a lock that is used a lot leaves a lot of it.

use bytes::Bytes;

use crate::response::Halt;

const LENGTH_BYTES: usize = 4;
const REVISION_BYTES: usize = 8;

/// Splits a key at its last `/`, if there is something on both sides.
pub(crate) fn parent(key: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = key.iter().rposition(|byte| *byte == b'/')?;
    let (parent, child) = (key.get(..at)?, key.get(at.saturating_add(1)..)?);
    (!parent.is_empty() && !child.is_empty()).then_some((parent, child))
}

/// Prefix of the rows of one name, and key of the row that says where its places begin. The length
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

/// Value of the row of a place: which stream waits for it, 0 for none.
pub(crate) fn encode_attempt(attempt: u64) -> Bytes {
    if attempt == 0 { Bytes::new() } else { Bytes::copy_from_slice(&attempt.to_be_bytes()) }
}

/// # Errors
/// [`Halt::CorruptRow`] if the bytes are not such a row.
pub(crate) fn decode_attempt(row: &[u8]) -> Result<u64, Halt> {
    if row.is_empty() { Ok(0) } else { eight(row).map(u64::from_be_bytes) }
}

/// Value of the row that says where the places begin.
pub(crate) fn encode_first(create_revision: i64) -> Bytes {
    Bytes::copy_from_slice(&create_revision.to_be_bytes())
}

/// # Errors
/// [`Halt::CorruptRow`] if the bytes are not such a row.
pub(crate) fn decode_first(row: &[u8]) -> Result<i64, Halt> {
    eight(row).map(i64::from_be_bytes)
}

fn eight(row: &[u8]) -> Result<[u8; 8], Halt> {
    row.try_into().map_err(|_| Halt::CorruptRow {
        table: "place",
        detail: format!("row of {} bytes", row.len()),
    })
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
        assert_eq!(decode_first(&encode_first(7)).unwrap(), 7);
        assert!(decode_first(b"short").is_err());
        for attempt in [0, 1, u64::MAX] {
            assert_eq!(decode_attempt(&encode_attempt(attempt)).unwrap(), attempt);
        }
        assert!(decode_attempt(b"short").is_err());
    }

    #[test]
    fn only_children_are_places() {
        for key in ["plain", "/child", "name/", "/"] {
            assert_eq!(parent(key.as_bytes()), None, "{key}");
        }
        assert_eq!(parent(b"a/b/c"), Some((&b"a/b"[..], &b"c"[..])));
    }
}
