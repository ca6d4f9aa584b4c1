//! `Key` rows: user key -> its newest state, or a tombstone until compaction removes it.
//!
//! A small value is in this row and in the `Rev` row of its put, so that reads of the newest state
//! use only this table, in order. A large value is only in the `Rev` row, which compaction keeps
//! while it is the newest: so it is written once instead of twice, and not again when the rows of
//! this table are merged.

use bytes::Bytes;

use super::{FORM_PUT, FORM_PUT_APART, FORM_TOMBSTONE, FieldWriter, RowReader, State};
use crate::response::Halt;
use crate::revision::Revision;

/// Largest value that is also in the `Key` row. Above this, a second look-up costs less than a
/// second copy.
pub(crate) const VALUE_BYTES_MAX: usize = 2 << 10;

/// A decoded `Key` row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KeyRow<'a> {
    /// Revision of the key's last change.
    pub(crate) modified: Revision,
    /// Revision of the change before, if there was one; its `Rev` row may be compacted.
    pub(crate) previous: Option<Revision>,
    /// Number of changes, and links to earlier ones; see [`super::skips`].
    pub(crate) skips: &'a [u8],
    /// The live state, `None` for a tombstone; its value is empty if it is only in the `Rev` row.
    pub(crate) state: Option<State<'a>>,
    /// Whether the value is only in the `Rev` row of `modified`.
    pub(crate) is_apart: bool,
}

impl<'a> KeyRow<'a> {
    /// The row for the change at `modified`; omits a large value.
    pub(crate) fn new(
        modified: Revision,
        previous: Option<Revision>,
        skips: &'a [u8],
        state: Option<State<'a>>,
    ) -> KeyRow<'a> {
        match state {
            Some(state) if state.value.len() > VALUE_BYTES_MAX => {
                let state = Some(State { value: &[], ..state });
                KeyRow { modified, previous, skips, state, is_apart: true }
            }
            _ => KeyRow { modified, previous, skips, state, is_apart: false },
        }
    }

    pub(crate) fn encode(&self) -> Bytes {
        let form = match self.state {
            Some(_) if self.is_apart => FORM_PUT_APART,
            Some(_) => FORM_PUT,
            None => FORM_TOMBSTONE,
        };
        let mut row = FieldWriter::new(form, self.skips);
        row.int(self.modified.main);
        row.uint(u64::from(self.modified.sub));
        row.previous(self.previous);
        match self.state {
            Some(state) => {
                state.encode_fields(&mut row);
                row.finish(state.value, &[])
            }
            None => row.finish(&[], &[]),
        }
    }

    /// # Errors
    /// [`Halt::CorruptRow`] if the bytes are not such a row.
    pub(crate) fn decode(row: &'a [u8]) -> Result<KeyRow<'a>, Halt> {
        let mut row = RowReader::new("key", row);
        let (form, skips) = row.form_and_skips()?;
        let modified = Revision { main: row.int()?, sub: row.short()? };
        let previous = row.previous()?;
        if previous.is_some_and(|previous| previous >= modified) {
            return Err(row.corrupt("previous revision is not older"));
        }
        let state = match form {
            FORM_PUT => {
                let fields = State::decode_fields(&mut row)?;
                Some(State { value: row.tail(), ..fields })
            }
            FORM_PUT_APART => Some(State::decode_fields(&mut row)?),
            FORM_TOMBSTONE => None,
            _ => return Err(row.corrupt("unknown form")),
        };
        Ok(KeyRow { modified, previous, skips, state, is_apart: form == FORM_PUT_APART })
    }

    /// Reads only whether the key is live at `at`; `None` if its row is newer than that.
    ///
    /// # Errors
    /// [`Halt::CorruptRow`] if the bytes are not such a row.
    pub(crate) fn lives_at(row: &[u8], at: i64) -> Result<Option<bool>, Halt> {
        let mut row = RowReader::new("key", row);
        let (form, _) = row.form_and_skips()?;
        if row.int()? > at {
            return Ok(None);
        }
        match form {
            FORM_PUT | FORM_PUT_APART => Ok(Some(true)),
            FORM_TOMBSTONE => Ok(Some(false)),
            _ => Err(row.corrupt("unknown form")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_round_trip() {
        let state = State { create_revision: 3, version: 2, lease: -7, value: b"value" };
        let previous = Some(Revision { main: 3, sub: 9 });
        let modified = Revision { main: 300, sub: 1 };
        for row in [
            KeyRow::new(modified, previous, b"", Some(state)),
            KeyRow::new(modified, previous, b"links", Some(state)),
            KeyRow::new(modified, None, b"", Some(State { value: b"", ..state })),
            KeyRow::new(
                modified,
                previous,
                b"",
                Some(State { value: &[7; VALUE_BYTES_MAX], ..state }),
            ),
            KeyRow::new(
                modified,
                previous,
                b"links",
                Some(State { value: &[7; VALUE_BYTES_MAX + 1], ..state }),
            ),
            KeyRow::new(modified, previous, b"", None),
            KeyRow::new(modified, previous, b"links", None),
        ] {
            let bytes = row.encode();
            assert_eq!(KeyRow::decode(&bytes).unwrap(), row);
            assert_eq!(KeyRow::lives_at(&bytes, 300).unwrap(), Some(row.state.is_some()));
            assert_eq!(KeyRow::lives_at(&bytes, 299).unwrap(), None);
        }
    }

    #[test]
    fn only_a_large_value_stands_apart() {
        let modified = Revision { main: 3, sub: 0 };
        let row = |value| {
            let state = State { create_revision: 3, version: 1, lease: 0, value };
            KeyRow::new(modified, None, b"", Some(state))
        };
        let (small, large) = ([7; VALUE_BYTES_MAX], [7; VALUE_BYTES_MAX + 1]);
        assert!(!row(&small).is_apart && !row(b"").is_apart);
        assert!(row(&large).is_apart);
        assert!(row(&large).encode().len() < 16, "the value is not in the row");
    }

    #[test]
    fn damage_is_an_error() {
        let modified = Revision { main: 3, sub: 0 };
        let loops = KeyRow::new(modified, Some(modified), b"", None);
        assert!(KeyRow::decode(&loops.encode()).is_err(), "links must lead to older revisions");
        assert!(KeyRow::decode(b"").is_err());
        assert!(KeyRow::decode(&[9, 1, 0, 0]).is_err(), "unknown form");
        assert!(KeyRow::decode(&[1, 4, 0]).is_err(), "cut short");
    }
}
