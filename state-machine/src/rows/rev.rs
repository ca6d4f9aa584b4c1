//! `Rev` rows: revision -> event. The history for watches and reads of old revisions.

use bytes::Bytes;

use super::{FORM_PUT, FORM_TOMBSTONE, FieldWriter, RowReader, State};
use crate::response::{Cause, Halt};
use crate::revision::Revision;

/// A decoded `Rev` row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RevRow<'a> {
    /// Revision of the key's change before, if there was one; its row may be compacted.
    pub(crate) previous: Option<Revision>,
    /// Links to earlier changes; see [`super::skips`].
    pub(crate) skips: &'a [u8],
    /// Bytes of the value at `previous`, so that compaction need not read its row.
    pub(crate) previous_value_bytes: usize,
    /// User key.
    pub(crate) key: &'a [u8],
    /// State after a put; `None` for a delete.
    pub(crate) state: Option<State<'a>>,
    /// Why the key was deleted; meaningless for a put.
    pub(crate) cause: Cause,
}

/// First byte of the row of a delete: it includes the cause, which so takes no extra byte.
fn tombstone_form(cause: Cause) -> u8 {
    FORM_TOMBSTONE.saturating_add(cause.number())
}

impl<'a> RevRow<'a> {
    pub(crate) fn encode(&self) -> Bytes {
        let form = if self.state.is_some() { FORM_PUT } else { tombstone_form(self.cause) };
        let mut row = FieldWriter::new(form, self.skips);
        row.previous(self.previous);
        row.size(self.previous_value_bytes);
        if let Some(state) = self.state {
            state.encode_fields(&mut row);
        }
        row.size(self.key.len());
        row.finish(self.key, self.state.map_or(&[], |state| state.value))
    }

    /// Decodes the row stored at `at`.
    ///
    /// # Errors
    /// [`Halt::CorruptRow`] if the bytes are not such a row.
    pub(crate) fn decode(at: Revision, row: &'a [u8]) -> Result<RevRow<'a>, Halt> {
        let mut row = RowReader::new("rev", row);
        let (form, skips) = row.form_and_skips()?;
        let previous = row.previous()?;
        if previous.is_some_and(|previous| previous >= at) {
            return Err(row.corrupt("previous revision is not older"));
        }
        let previous_value_bytes = row.size()?;
        let cause = form.checked_sub(FORM_TOMBSTONE).and_then(Cause::from_number);
        let fields = match (form, cause) {
            (FORM_PUT, _) => Some(State::decode_fields(&mut row)?),
            (_, Some(_)) => None,
            (_, None) => return Err(row.corrupt("unknown form")),
        };
        let cause = cause.unwrap_or_default();
        let key = row.bytes()?;
        let state = fields.map(|fields| State { value: row.tail(), ..fields });
        Ok(RevRow { previous, skips, previous_value_bytes, key, state, cause })
    }

    /// Revision of the put that this event replaced, if it did not replace a tombstone or nothing.
    pub(crate) fn replaced_put(&self) -> Option<Revision> {
        let replaces_put = self.state.is_none_or(|state| state.version > 1);
        self.previous.filter(|_| replaces_put)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_round_trip() {
        let at = Revision { main: 9, sub: 0 };
        let previous = Some(Revision { main: 3, sub: 9 });
        let state = State { create_revision: 9, version: 1, lease: 77, value: b"value" };
        let cause = Cause::Deleted;
        let (previous_value_bytes, state, key) = (0, Some(state), &b"key"[..]);
        let put = RevRow { previous, skips: b"", previous_value_bytes, key, state, cause };
        let delete = RevRow { previous_value_bytes: 300, state: None, ..put };
        let deletes = Cause::ALL.map(|cause| RevRow { cause, ..delete });
        let skipping = [put, delete].map(|row| RevRow { skips: b"links", ..row });
        for row in deletes.into_iter().chain(skipping).chain([put]) {
            let bytes = row.encode();
            assert_eq!(RevRow::decode(at, &bytes).unwrap(), row);
        }
        assert_eq!(delete.encode()[0], FORM_TOMBSTONE, "as before there were causes");
        assert!(RevRow::decode(at, &[1, 0, 0, 9, b'k']).is_err(), "cut short");
    }

    #[test]
    fn only_a_live_predecessor_counts_as_replaced() {
        let previous = Some(Revision { main: 3, sub: 0 });
        let state = State { create_revision: 3, version: 2, lease: 0, value: b"" };
        let cause = Cause::Deleted;
        let (previous_value_bytes, key) = (0, &b"key"[..]);
        let row =
            RevRow { previous, skips: b"", previous_value_bytes, key, state: Some(state), cause };
        assert_eq!(row.replaced_put(), previous);
        assert_eq!(RevRow { state: None, ..row }.replaced_put(), previous, "a delete");
        let recreated = State { version: 1, ..state };
        assert_eq!(RevRow { state: Some(recreated), ..row }.replaced_put(), None, "a tombstone");
    }
}
