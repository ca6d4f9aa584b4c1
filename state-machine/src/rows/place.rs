//! `Place` rows: which leased keys are children of which name, in the order in which they were
//! created.
//!
//! A lock or election `name` is the queue of the keys `name/x` that were created with a lease,
//! where `x` has no `/`: those of etcd's recipes, and ours. The share that a place asks for is in
//! the key's value. Its row only has the streams that wait for it, which watchers of the key should
//! not see. A name with places has one more row, its [`Front`], which says where they begin: rows
//! deleted before that point still slow down the engine's scans, and a busy lock leaves many of
//! them behind.

use bytes::Bytes;

use super::{RowReader, RowWriter};
use crate::response::Halt;

const LENGTH_BYTES: usize = 4;
const REVISION_BYTES: usize = 8;
/// First byte of the row of a place that has waiting streams.
const FORM_ATTEMPTS: u8 = 1;
/// First byte of a [`Front`].
const FORM_FRONT: u8 = 2;
/// First byte after the prefix in other rows: revisions are positive, so their first byte is
/// smaller.
const AFTER_REVISIONS: u8 = 0x80;

/// The stream that last asked for one of the requests of a place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attempt {
    /// Request id; empty for a candidacy without a number.
    pub(crate) request: Bytes,
    /// The stream; 0: no stream may give the request up any more.
    pub(crate) stream: u64,
    /// The client's number of it; 0: none.
    pub(crate) number: u64,
}

/// Splits a key at its last `/`, if there is something on both sides.
pub(crate) fn parent(key: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = key.iter().rposition(|byte| *byte == b'/')?;
    let (parent, child) = (key.get(..at)?, key.get(at.saturating_add(1)..)?);
    (!parent.is_empty() && !child.is_empty()).then_some((parent, child))
}

/// Prefix of the rows of one name, and key of its [`Front`]. The length comes first, so that no
/// prefix is a prefix of another.
pub(crate) fn prefix(name: &[u8]) -> Vec<u8> {
    let length = u32::try_from(name.len()).unwrap_or(u32::MAX);
    let mut prefix = Vec::with_capacity(LENGTH_BYTES.saturating_add(name.len()));
    prefix.extend_from_slice(&length.to_be_bytes());
    prefix.extend_from_slice(name);
    prefix
}

/// Whether these bytes are exactly a [`prefix`].
pub(crate) fn is_prefix(row_key: &[u8]) -> bool {
    let Some((length, name)) = row_key.split_first_chunk() else { return false };
    usize::try_from(u32::from_be_bytes(*length)) == Ok(name.len())
}

/// Key of the row of the place `child`.
pub(crate) fn row_key(prefix: &[u8], create_revision: i64, child: &[u8]) -> Bytes {
    Bytes::from([prefix, &create_revision.to_be_bytes(), child].concat())
}

/// Bounds of the rows of places that were created at revision `first` or later.
pub(crate) fn bounds(prefix: &[u8], first: i64) -> (Vec<u8>, Vec<u8>) {
    ([prefix, &first.to_be_bytes()].concat(), [prefix, &[AFTER_REVISIONS]].concat())
}

/// Key of the row that leads from a session's request to its place, if the place's key does not
/// contain the request. The value of that row is the child.
pub(crate) fn entered_key(prefix: &[u8], session: i64, request: &[u8]) -> Bytes {
    Bytes::from([prefix, &[AFTER_REVISIONS], &session.to_be_bytes()[..], request].concat())
}

/// Value of the row of a place: the streams that wait for it; empty for none.
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

/// Create revision and key of a place with waiting streams; `None` for any other row.
///
/// # Errors
/// [`Halt::CorruptRow`] if the bytes are not such a key.
pub(crate) fn of_attempts(row_key: &[u8], row: &[u8]) -> Result<Option<(i64, Bytes)>, Halt> {
    if row.first() != Some(&FORM_ATTEMPTS) || is_prefix(row_key) {
        return Ok(None);
    }
    let Some((length, rest)) = row_key.split_first_chunk() else { return Ok(None) };
    let name_bytes = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
    // Otherwise it is a row that leads from a request to its place.
    let is_place = rest.get(name_bytes).is_some_and(|byte| *byte < AFTER_REVISIONS);
    is_place.then(|| place(row_key, LENGTH_BYTES.saturating_add(name_bytes))).transpose()
}

/// The combined share of the first places of a name, which all hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    /// Create revision of the last of them; 0: nothing is known.
    pub(crate) to: i64,
    /// Sum of their permits.
    pub(crate) used: u64,
    /// Smallest of their limits.
    pub(crate) limit: u32,
    /// How many of them have that limit.
    pub(crate) at_limit: u32,
    /// Number of these places.
    pub(crate) places: u32,
}

impl Default for Held {
    fn default() -> Held {
        Held { to: 0, used: 0, limit: u32::MAX, at_limit: 0, places: 0 }
    }
}

impl Held {
    /// The share after one more place was admitted.
    pub(crate) fn with(self, (permits, limit): (u32, u32)) -> Held {
        let before = if limit < self.limit { 0 } else { self.at_limit };
        Held {
            to: self.to,
            used: self.used.saturating_add(u64::from(permits)),
            limit: limit.min(self.limit),
            at_limit: before.saturating_add(u32::from(limit <= self.limit)),
            places: self.places.saturating_add(1),
        }
    }

    /// The share after a place with this share was deleted. Nothing is known if no other place had
    /// the smallest limit.
    pub(crate) fn without(self, (permits, limit): (u32, u32)) -> Held {
        let at_limit = self.at_limit.saturating_sub(u32::from(limit <= self.limit));
        if at_limit == 0 {
            return Held::default();
        }
        let used = self.used.saturating_sub(u64::from(permits));
        Held { used, at_limit, places: self.places.saturating_sub(1), ..self }
    }
}

/// Summary of the places of a name, stored while there are any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Front {
    /// Create revision of the first place.
    pub(crate) first: i64,
    /// Highest create revision of the places that were deleted while others stayed; 0: none was.
    pub(crate) gone: i64,
    pub(crate) held: Held,
    /// The first place is certainly the only one.
    pub(crate) is_single: bool,
    /// Certainly, no place has lost its lease while its key stayed.
    pub(crate) is_unbroken: bool,
    pub(crate) turn: Turn,
}

/// When the first place of a name became first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Turn {
    /// In milliseconds since 1970, by a member's clock; 0: not known.
    pub(crate) unix_ms: i64,
    /// Revision at which a place was last deleted or asked for another share; 0: never.
    pub(crate) changed: i64,
    /// The first place has certainly held since then, and not before.
    pub(crate) is_whole: bool,
    /// The last such change was the one by which it became first.
    pub(crate) is_last: bool,
}

impl Turn {
    /// Nothing is known.
    pub(crate) const UNKNOWN: Turn =
        Turn { unix_ms: 0, changed: i64::MAX, is_whole: false, is_last: false };

    /// The turn of a place that enters an empty queue.
    pub(crate) fn at_once(unix_ms: i64) -> Turn {
        Turn { unix_ms, changed: 0, is_whole: true, is_last: false }
    }
}

/// Flag bits of a [`Front`].
const SINGLE: u8 = 1;
const UNBROKEN: u8 = 2;
const WHOLE_TURN: u8 = 4;
const LAST_TURN: u8 = 8;

impl Front {
    /// The summary of a queue that `first` enters, which was empty.
    pub(crate) fn new(first: i64, unix_ms: i64) -> Front {
        let (held, turn) = (Held::default(), Turn::at_once(unix_ms));
        Front { first, gone: 0, held, is_single: true, is_unbroken: true, turn }
    }

    pub(crate) fn encode(&self) -> Bytes {
        let Held { to, used, limit, at_limit, places } = self.held;
        let mut row = RowWriter::new(FORM_FRONT);
        row.int(self.first);
        row.int(self.gone);
        row.int(to);
        row.uint(used);
        [limit, at_limit, places].into_iter().for_each(|number| row.uint(u64::from(number)));
        let certain = [
            (self.is_single, SINGLE),
            (self.is_unbroken, UNBROKEN),
            (self.turn.is_whole, WHOLE_TURN),
            (self.turn.is_last, LAST_TURN),
        ];
        row.byte(certain.iter().filter(|(is_so, _)| *is_so).fold(0, |all, (_, bit)| all | bit));
        row.int(self.turn.unix_ms);
        row.int(self.turn.changed);
        row.finish()
    }

    /// # Errors
    /// [`Halt::CorruptRow`] if the bytes are not such a row.
    pub(crate) fn decode(row: &[u8]) -> Result<Front, Halt> {
        let mut row = RowReader::new("place", row);
        if row.form()? != FORM_FRONT {
            return Err(row.corrupt("unknown form"));
        }
        let (first, gone) = (row.int()?, row.int()?);
        let (to, used) = (row.int()?, row.uint()?);
        let (limit, at_limit, places) = (row.short()?, row.short()?, row.short()?);
        // The first version of the row had no flags, and the second had no times.
        let certain = if row.is_empty() { 0 } else { row.form()? };
        let turn = if row.is_empty() {
            Turn::UNKNOWN
        } else {
            let (unix_ms, changed) = (row.int()?, row.int()?);
            let (is_whole, is_last) = (certain & WHOLE_TURN != 0, certain & LAST_TURN != 0);
            Turn { unix_ms, changed, is_whole, is_last }
        };
        Ok(Front {
            first,
            gone,
            held: Held { to, used, limit, at_limit, places },
            is_single: certain & SINGLE != 0,
            is_unbroken: certain & UNBROKEN != 0,
            turn,
        })
    }
}

/// Create revision and key of a place, from the key of its row and the length of its [`prefix`].
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
        assert!(is_prefix(&own) && is_prefix(&deeper));
        assert!(
            ![&early[..], &other, &entered_key(&own, 1, b"r"), b"abc"].into_iter().any(is_prefix)
        );
        let held = Held { to: 8, used: 5, limit: 9, at_limit: 2, places: 3 };
        let (is_single, is_unbroken, turn) = (false, false, Turn::UNKNOWN);
        let unknown = Front { gone: 9, held, is_single, is_unbroken, turn, ..Front::new(7, 0) };
        let handed = Turn { unix_ms: 1_700_000_000_000, changed: 8, is_whole: true, is_last: true };
        for front in [
            unknown,
            Front { is_single: true, ..unknown },
            Front { is_unbroken: true, ..unknown },
            Front { turn: handed, ..unknown },
            Front { turn: Turn { is_whole: false, ..handed }, ..unknown },
            Front { turn: Turn { is_last: false, ..handed }, ..unknown },
            Front::new(7, 5),
        ] {
            assert_eq!(Front::decode(&front.encode()).unwrap(), front);
        }
        let certain =
            Front { is_single: true, is_unbroken: true, turn: Turn::at_once(0), ..unknown };
        let mut early = certain.encode();
        early.truncate(early.len() - 2);
        let timeless = Front { turn: Turn::UNKNOWN, ..certain };
        assert_eq!(
            Front::decode(&early).unwrap(),
            timeless,
            "as rows were written before they told times"
        );
        early.truncate(early.len() - 1);
        assert_eq!(Front::decode(&early).unwrap(), unknown, "as rows were written at first");
        assert!(Front::decode(b"short").is_err() && Front::decode(b"").is_err());
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
    fn what_is_held_follows_who_comes_and_goes() {
        let one = Held::default().with((1, 3));
        assert_eq!((one.used, one.limit, one.at_limit, one.places), (1, 3, 1, 1));
        let three = one.with((2, 5)).with((1, 3));
        assert_eq!((three.used, three.limit, three.at_limit, three.places), (4, 3, 2, 3));
        assert_eq!(three.without((1, 3)), one.with((2, 5)));
        assert_eq!(three.without((2, 5)), one.with((1, 3)));
        assert_eq!(one.without((1, 3)), Held::default());
        assert_eq!(one.with((2, 5)).without((1, 3)), Held::default(), "whose limit counts now?");
        let any = Held::default().with((1, u32::MAX));
        assert_eq!((any.at_limit, any.with((1, 2)).at_limit), (1, 1));
    }

    #[test]
    fn only_children_are_places() {
        for key in ["plain", "/child", "name/", "/"] {
            assert_eq!(parent(key.as_bytes()), None, "{key}");
        }
        assert_eq!(parent(b"a/b/c"), Some((&b"a/b"[..], &b"c"[..])));
    }
}
