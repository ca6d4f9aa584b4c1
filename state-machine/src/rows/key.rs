//! `Key` rows: user key -> its newest state, or a tombstone until compaction passes it.

use bytes::Bytes;

use super::{FORM_PUT, FORM_TOMBSTONE, FieldWriter, RowReader, State};
use crate::response::Halt;
use crate::revision::Revision;

/// A decoded `Key` row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KeyRow<'a> {
    /// When the key changed last.
    pub(crate) modified: Revision,
    /// The change before, if there was one; its `Rev` row may be compacted.
    pub(crate) previous: Option<Revision>,
    /// The live state, `None` for a tombstone.
    pub(crate) state: Option<State<'a>>,
}

impl<'a> KeyRow<'a> {
    pub(crate) fn encode(&self) -> Bytes {
        let form = if self.state.is_some() { FORM_PUT } else { FORM_TOMBSTONE };
        let mut row = FieldWriter::new(form);
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
        let form = row.form()?;
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
            FORM_TOMBSTONE => None,
            _ => return Err(row.corrupt("unknown form")),
        };
        Ok(KeyRow { modified, previous, state })
    }

    /// Reads no more than whether the key lives as of `at`; `None` if its row is newer than that.
    ///
    /// # Errors
    /// [`Halt::CorruptRow`] if the bytes are not such a row.
    pub(crate) fn lives_at(row: &[u8], at: i64) -> Result<Option<bool>, Halt> {
        let mut row = RowReader::new("key", row);
        let form = row.form()?;
        if row.int()? > at {
            return Ok(None);
        }
        match form {
            FORM_PUT => Ok(Some(true)),
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
            KeyRow { modified, previous, state: Some(state) },
            KeyRow { modified, previous: None, state: Some(State { value: b"", ..state }) },
            KeyRow { modified, previous, state: None },
        ] {
            let bytes = row.encode();
            assert_eq!(KeyRow::decode(&bytes).unwrap(), row);
        }
    }

    #[test]
    fn damage_is_an_error() {
        let modified = Revision { main: 3, sub: 0 };
        let loops = KeyRow { modified, previous: Some(modified), state: None };
        assert!(KeyRow::decode(&loops.encode()).is_err(), "links must lead to older revisions");
        assert!(KeyRow::decode(b"").is_err());
        assert!(KeyRow::decode(&[9, 1, 0, 0]).is_err(), "unknown form");
        assert!(KeyRow::decode(&[1, 4, 0]).is_err(), "cut short");
    }
}
