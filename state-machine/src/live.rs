//! Live keys as of a revision: what ranges, compares, deletes and counts are made of.
//!
//! The `Key` row of a key holds its newest state. A state newer than the wanted revision is left
//! through the links to the changes before it, which are `Rev` rows. So reading at a revision needs
//! no snapshot of the store: rows that are written meanwhile are stepped over.

use std::ops::ControlFlow;

use bytes::{Bytes, BytesMut};

use crate::read::{Read, Table};
use crate::response::{Halt, KeyValue};
use crate::revision::Revision;
use crate::rows::State;
use crate::rows::key::KeyRow;
use crate::rows::rev::RevRow;
use crate::span::Span;

/// One live key as of the wanted revision.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Live<'a> {
    pub(crate) key: &'a [u8],
    pub(crate) mod_revision: i64,
    pub(crate) state: State<'a>,
}

impl Live<'_> {
    /// Copies out, with or without the value.
    pub(crate) fn to_key_value(self, arena: &mut Arena, with_value: bool) -> KeyValue {
        KeyValue {
            key: arena.copy(self.key),
            create_revision: self.state.create_revision,
            mod_revision: self.mod_revision,
            version: self.state.version,
            value: if with_value { arena.copy(self.state.value) } else { Bytes::new() },
            lease: self.state.lease,
        }
    }
}

/// Visits the live keys of `span` as of revision `at`, in key order, until `visit` breaks.
///
/// Compaction may go on below: what it deletes counts as never written, and the caller must check
/// afterwards that `at` was not compacted meanwhile.
///
/// # Errors
/// [`Halt`] if the storage fails or a row is damaged; whatever `visit` returns as an error.
pub(crate) fn visit<R: Read>(
    rows: &R,
    at: i64,
    span: Span<'_>,
    visit: &mut dyn FnMut(Live<'_>) -> Result<ControlFlow<()>, Halt>,
) -> Result<(), Halt> {
    let mut visit_row = |key: &[u8], row: &[u8]| {
        let row = KeyRow::decode(row)?;
        if row.modified.main > at {
            return visit_older(rows, at, key, row.previous, visit);
        }
        match row.state {
            Some(state) => visit(Live { key, mod_revision: row.modified.main, state }),
            None => Ok(ControlFlow::Continue(())),
        }
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

/// Counts the live keys of `span` as of revision `at`, under the same conditions as [`visit`].
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
            visit(rows, at, span, &mut count_live)?;
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
                let previous = KeyRow::decode(row)?.previous;
                return visit_older(rows, at, key, previous, &mut count_live);
            }
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(count.saturating_add(known))
}

/// Follows the links from `from` to the newest change not after `at`.
fn visit_older<R: Read>(
    rows: &R,
    at: i64,
    key: &[u8],
    from: Option<Revision>,
    visit: &mut dyn FnMut(Live<'_>) -> Result<ControlFlow<()>, Halt>,
) -> Result<ControlFlow<()>, Halt> {
    let mut link = from;
    // Ends: decoding refuses a link that does not lead to an older revision.
    while let Some(revision) = link {
        let Some(row) = rows.get(Table::Rev, &revision.row_key())? else { break };
        let row = RevRow::decode(revision, &row)?;
        if revision.main > at {
            link = row.previous;
            continue;
        }
        return match row.state {
            Some(state) => visit(Live { key, mod_revision: revision.main, state }),
            None => Ok(ControlFlow::Continue(())),
        };
    }
    Ok(ControlFlow::Continue(()))
}

/// Reads one key as of revision `at`; the value shares the row's buffer.
///
/// # Errors
/// [`Halt`] if the storage fails or a row is damaged.
pub(crate) fn get<R: Read>(rows: &R, at: i64, key: &Bytes) -> Result<Option<KeyValue>, Halt> {
    let Some(row) = rows.get(Table::Key, key)? else { return Ok(None) };
    let decoded = KeyRow::decode(&row)?;
    if decoded.modified.main <= at {
        return Ok(decoded.state.map(|state| key_value(key, decoded.modified.main, &row, state)));
    }
    let mut link = decoded.previous;
    while let Some(revision) = link {
        let Some(row) = rows.get(Table::Rev, &revision.row_key())? else { break };
        let decoded = RevRow::decode(revision, &row)?;
        if revision.main <= at {
            return Ok(decoded.state.map(|state| key_value(key, revision.main, &row, state)));
        }
        link = decoded.previous;
    }
    Ok(None)
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

/// First buffer of an arena; each later one is double, up to the most.
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
