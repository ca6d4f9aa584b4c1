//! Live keys at a revision: the basis of ranges, compares, deletes and counts.
//!
//! The `Key` row of a key holds its newest state. If that is newer than the wanted revision, the
//! links to the changes before it, which are `Rev` rows, lead to the wanted one. So reading at a
//! revision needs no snapshot of the store: rows that are written meanwhile are skipped. A large
//! value is fetched from the `Rev` row of its put.

use std::ops::ControlFlow;

use bytes::{Bytes, BytesMut};

use crate::read::{Read, Table};
use crate::response::{Halt, KeyValue};
use crate::revision::Revision;
use crate::rows::State;
use crate::rows::key::KeyRow;
use crate::rows::rev::RevRow;
use crate::rows::skips;
use crate::span::Span;

/// Whether the visitor of keys needs their values; each large value costs a look-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Values {
    Wanted,
    /// Values may be given or left empty.
    Ignored,
}

/// One live key at the wanted revision.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Live<'a> {
    pub(crate) key: &'a [u8],
    pub(crate) mod_revision: i64,
    pub(crate) state: State<'a>,
    /// The row that holds the value, if it was read for this key alone.
    pub(crate) row: Option<&'a Bytes>,
}

impl Live<'_> {
    /// Copies it, with or without the value.
    pub(crate) fn to_key_value(self, arena: &mut Arena, with_value: bool) -> KeyValue {
        KeyValue {
            key: arena.copy(self.key),
            create_revision: self.state.create_revision,
            mod_revision: self.mod_revision,
            version: self.state.version,
            value: if with_value { self.value(arena) } else { Bytes::new() },
            lease: self.state.lease,
        }
    }

    fn value(self, arena: &mut Arena) -> Bytes {
        match self.row {
            Some(row) => row.slice_ref(self.state.value),
            None => arena.copy(self.state.value),
        }
    }
}

/// Visits the live keys of `span` at revision `at`, in key order, until `visit` breaks.
///
/// A compaction may run meanwhile. What it deletes appears as never written, so the caller must
/// check afterwards that `at` was not compacted meanwhile.
///
/// # Errors
/// [`Halt`] if the storage fails or a row is damaged; any error that `visit` returns.
pub(crate) fn visit<R: Read>(
    rows: &R,
    at: i64,
    span: Span<'_>,
    values: Values,
    visit: &mut dyn FnMut(Live<'_>) -> Result<ControlFlow<()>, Halt>,
) -> Result<(), Halt> {
    let mut visit_row = |key: &[u8], row: &[u8]| {
        let row = KeyRow::decode(row)?;
        if row.modified.main > at {
            return visit_older(rows, at, key, &row, visit);
        }
        let Some(state) = row.state else { return Ok(ControlFlow::Continue(())) };
        let mod_revision = row.modified.main;
        if row.is_apart && values == Values::Wanted {
            let rev_row = apart(rows, row.modified)?;
            let state = put_state(row.modified, &rev_row)?;
            return visit(Live { key, mod_revision, state, row: Some(&rev_row) });
        }
        visit(Live { key, mod_revision, state, row: None })
    };
    match span {
        Span::One(key) => match rows.get(Table::Key, key)? {
            Some(row) => visit_row(key, &row).map(|_| ()),
            None => Ok(()),
        },
        Span::Keys { end: Some(end), start } if end <= start => Ok(()),
        Span::Keys { start, end } => rows.scan(Table::Key, start, end, &mut visit_row),
    }
}

/// Counts the live keys of `span` at revision `at`, under the same conditions as [`visit`].
///
/// # Errors
/// [`Halt`] if the storage fails or a row is damaged.
pub(crate) fn count<R: Read>(rows: &R, at: i64, span: Span<'_>) -> Result<i64, Halt> {
    let mut count = 0_i64;
    let mut count_live = |_: Live<'_>| {
        count = count.saturating_add(1);
        Ok(ControlFlow::Continue(()))
    };
    let (start, end) = match span {
        Span::One(_) => {
            visit(rows, at, span, Values::Ignored, &mut count_live)?;
            return Ok(count);
        }
        Span::Keys { end: Some(end), start } if end <= start => return Ok(0),
        Span::Keys { start, end } => (start, end),
    };
    let mut known = 0_i64;
    rows.scan(Table::Key, start, end, &mut |key, row| {
        match KeyRow::lives_at(row, at)? {
            Some(lives) => known = known.saturating_add(i64::from(lives)),
            None => {
                return visit_older(rows, at, key, &KeyRow::decode(row)?, &mut count_live);
            }
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(count.saturating_add(known))
}

/// Visits all keys of `[start, end)` that have a row, in key order, until `visit` breaks, and tells
/// for each whether it is live at revision `at`. Same conditions as [`visit`].
///
/// # Errors
/// [`Halt`] if the storage fails or a row is damaged.
pub(crate) fn visit_rows<R: Read>(
    rows: &R,
    at: i64,
    (start, end): (&[u8], Option<&[u8]>),
    visit: &mut dyn FnMut(&[u8], bool) -> ControlFlow<()>,
) -> Result<(), Halt> {
    rows.scan(Table::Key, start, end, &mut |key, row| {
        let lives = match KeyRow::lives_at(row, at)? {
            Some(lives) => lives,
            None => {
                let mut lives = false;
                let mut note = |_: Live<'_>| {
                    lives = true;
                    Ok(ControlFlow::Continue(()))
                };
                // `note` never breaks.
                visit_older(rows, at, key, &KeyRow::decode(row)?, &mut note).map(drop)?;
                lives
            }
        };
        Ok(visit(key, lives))
    })
}

/// Visits the state at `at` of a key whose row is newer, if it was live then.
fn visit_older<R: Read>(
    rows: &R,
    at: i64,
    key: &[u8],
    newest: &KeyRow<'_>,
    visit: &mut dyn FnMut(Live<'_>) -> Result<ControlFlow<()>, Halt>,
) -> Result<ControlFlow<()>, Halt> {
    let Some((revision, rev_row)) = older(rows, at, newest)? else {
        return Ok(ControlFlow::Continue(()));
    };
    let (mod_revision, row) = (revision.main, Some(&rev_row));
    match RevRow::decode(revision, &rev_row)?.state {
        Some(state) => visit(Live { key, mod_revision, state, row }),
        None => Ok(ControlFlow::Continue(())),
    }
}

/// Follows the links of a key, whose row is newer than `at`, to the `Rev` row of its newest change
/// at or before `at`.
fn older<R: Read>(
    rows: &R,
    at: i64,
    newest: &KeyRow<'_>,
) -> Result<Option<(Revision, Bytes)>, Halt> {
    // The newest change may itself be the last of a level of skip links: then its own `Rev` row has
    // the links.
    let mut from = newest.modified.next();
    let mut link = skips::of_key(newest.skips, at)?.or(newest.previous);
    while let Some(revision) = link {
        if revision >= from {
            let detail = format!("a link of revision {} leads to a newer one", from.main);
            return Err(Halt::CorruptRow { table: "rev", detail });
        }
        let Some(row) = rows.get(Table::Rev, &revision.row_key())? else { break };
        if revision.main <= at {
            return Ok(Some((revision, row)));
        }
        let decoded = RevRow::decode(revision, &row)?;
        link = skips::of_change(decoded.skips, at)?.or(decoded.previous);
        from = revision;
    }
    Ok(None)
}

/// The `Rev` row of a live key's newest put, which holds a large value. Compaction keeps this row.
fn apart<R: Read>(rows: &R, modified: Revision) -> Result<Bytes, Halt> {
    rows.get(Table::Rev, &modified.row_key())?.ok_or_else(|| {
        let Revision { main, sub } = modified;
        let detail = format!("the value of a live key is missing: revision {main}, change {sub}");
        Halt::CorruptRow { table: "rev", detail }
    })
}

fn put_state(modified: Revision, rev_row: &Bytes) -> Result<State<'_>, Halt> {
    RevRow::decode(modified, rev_row)?.state.ok_or_else(|| Halt::CorruptRow {
        table: "rev",
        detail: format!("revision {} deletes a key that lives", modified.main),
    })
}

/// The state in the `Key` row of `key`, with the value wherever it is stored; `decoded` must come
/// from `row`.
///
/// # Errors
/// [`Halt`] if the storage fails or a row is damaged.
pub(crate) fn newest<R: Read>(
    rows: &R,
    key: &Bytes,
    row: &Bytes,
    decoded: &KeyRow<'_>,
) -> Result<Option<KeyValue>, Halt> {
    let Some(state) = decoded.state else { return Ok(None) };
    let modified = decoded.modified;
    if decoded.is_apart {
        let rev_row = apart(rows, modified)?;
        let state = put_state(modified, &rev_row)?;
        return Ok(Some(key_value(key, modified.main, &rev_row, state)));
    }
    Ok(Some(key_value(key, modified.main, row, state)))
}

/// Reads one key at revision `at`; the value shares the row's buffer.
///
/// # Errors
/// [`Halt`] if the storage fails or a row is damaged.
pub(crate) fn get<R: Read>(rows: &R, at: i64, key: &Bytes) -> Result<Option<KeyValue>, Halt> {
    let Some(row) = rows.get(Table::Key, key)? else { return Ok(None) };
    let decoded = KeyRow::decode(&row)?;
    if decoded.modified.main <= at {
        return newest(rows, key, &row, &decoded);
    }
    let Some((revision, row)) = older(rows, at, &decoded)? else { return Ok(None) };
    let state = RevRow::decode(revision, &row)?.state;
    Ok(state.map(|state| key_value(key, revision.main, &row, state)))
}

/// `state` must have been decoded from `row`.
pub(crate) fn key_value(key: &Bytes, mod_revision: i64, row: &Bytes, state: State<'_>) -> KeyValue {
    KeyValue {
        key: key.clone(),
        create_revision: state.create_revision,
        mod_revision,
        version: state.version,
        value: row.slice_ref(state.value),
        lease: state.lease,
    }
}

/// Copies many small byte strings into few buffers.
#[derive(Debug)]
pub(crate) struct Arena {
    buffer: BytesMut,
    next_bytes: usize,
}

/// First buffer of an arena; each later one is twice as large, up to the maximum.
const ARENA_BYTES_MIN: usize = 512;
const ARENA_BYTES_MAX: usize = 64 * 1_024;

impl Default for Arena {
    fn default() -> Arena {
        Arena { buffer: BytesMut::new(), next_bytes: ARENA_BYTES_MIN }
    }
}

impl Arena {
    pub(crate) fn copy(&mut self, bytes: &[u8]) -> Bytes {
        if bytes.is_empty() {
            return Bytes::new();
        }
        if bytes.len() >= ARENA_BYTES_MAX {
            return Bytes::copy_from_slice(bytes);
        }
        if self.buffer.capacity() < bytes.len() {
            self.buffer = BytesMut::with_capacity(self.next_bytes.max(bytes.len()));
            self.next_bytes = self.next_bytes.saturating_mul(2).min(ARENA_BYTES_MAX);
        }
        self.buffer.extend_from_slice(bytes);
        self.buffer.split().freeze()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::change::{Before, Change};
    use crate::events::Events;
    use crate::head::Head;
    use crate::memory::MemoryRows;

    /// Rows that count look-ups.
    struct Counted<'a>(&'a MemoryRows, Cell<usize>);

    impl Read for Counted<'_> {
        fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, Halt> {
            self.1.set(self.1.get() + 1);
            self.0.get(table, key)
        }

        fn scan(
            &self,
            table: Table,
            start: &[u8],
            end: Option<&[u8]>,
            visit: &mut dyn FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>, Halt>,
        ) -> Result<(), Halt> {
            self.0.scan(table, start, end, visit)
        }
    }

    /// Puts `key` thousands of times, twice at some revisions, and deletes it now and then. Returns
    /// its value at each revision.
    fn change_often(rows: &mut MemoryRows, key: &Bytes) -> Vec<Option<Bytes>> {
        let mut head = Head::default();
        let mut states = vec![None; usize::try_from(head.revision).unwrap() + 1];
        for round in 0_u32..5_000 {
            let mut events = Events::default();
            let mut value = None;
            rows.update(|overlay| {
                let mut change = Change::begin(overlay, &mut head, &mut events)?;
                for step in 0..1 + u32::from(round % 7 == 0) {
                    let before = Before::load(change.rows, key)?;
                    if round % 97 == 96 {
                        value = None;
                        change.delete(key, before)?;
                    } else {
                        let text = Bytes::from(format!("{round} {step}"));
                        change.put(key, before, &text, 0)?;
                        value = Some(text);
                    }
                }
                Ok::<_, Halt>(())
            })
            .unwrap();
            states.resize(usize::try_from(head.revision).unwrap(), None);
            states.push(value);
        }
        states
    }

    #[test]
    fn any_state_of_a_key_that_changed_often_is_found_in_few_steps() {
        let key = Bytes::from_static(b"key");
        let mut rows = MemoryRows::default();
        let states = change_often(&mut rows, &key);
        for (at, expected) in states.iter().enumerate() {
            let counted = Counted(&rows, Cell::new(0));
            let found = get(&counted, i64::try_from(at).unwrap(), &key).unwrap();
            assert_eq!(found.map(|kv| kv.value), *expected, "revision {at}");
            // At most 16 links at each of 4 levels, and the key's own row.
            assert!(counted.1.get() <= 1 + 4 * 16, "{} look-ups at {at}", counted.1.get());
        }
    }
}
