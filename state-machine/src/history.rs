//! Events of the past, for watchers that start in it or fell behind.

use std::ops::ControlFlow;

use bytes::Bytes;

use crate::live::{self, Arena, Live};
use crate::read::{Read, Table};
use crate::response::{Cause, Event, EventKind, Halt, KeyValue};
use crate::revision::Revision;
use crate::rows::rev::RevRow;

/// Reads the events of revisions `from..=to`, in order, with the state before each where it still
/// exists.
///
/// Ends early, but never within a revision, once `max_revisions` revisions or `max_bytes` bytes of
/// keys and values are read; at least one revision is always read whole. To go on, ask from the last
/// event's `mod_revision` + 1; an empty answer means that there is nothing up to `to`.
///
/// The caller checks that `from` is not below the compacted revision, before and (if `rows` is a live
/// store) after: compacted events are just not there.
///
/// # Errors
/// [`Halt`] if the storage fails or a row is damaged.
pub fn events<R: Read>(
    rows: &R,
    from: i64,
    to: i64,
    max_revisions: usize,
    max_bytes: usize,
) -> Result<Vec<Event>, Halt> {
    let start = Revision::first_of(from.max(0)).row_key();
    let end = Revision::after(to).row_key();
    let mut arena = Arena::default();
    let mut events: Vec<Event> = Vec::new();
    let (mut last_main, mut revisions, mut bytes) = (None, 0_usize, 0_usize);
    if to < from.max(0) {
        return Ok(events);
    }
    rows.scan(Table::Rev, &start, Some(&end), &mut |row_key, row| {
        let at = Revision::from_row_key(row_key).ok_or_else(|| Halt::CorruptRow {
            table: "rev",
            detail: format!("key of {} bytes", row_key.len()),
        })?;
        if last_main != Some(at.main) {
            if last_main.is_some() && (revisions >= max_revisions || bytes >= max_bytes) {
                return Ok(ControlFlow::Break(()));
            }
            last_main = Some(at.main);
            revisions = revisions.saturating_add(1);
        }
        let event = event(rows, &mut arena, at, row)?;
        bytes = bytes.saturating_add(size(&event));
        events.push(event);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(events)
}

/// Why the keys that begin with `prefix` and were deleted at `revision` were, in no particular order. The
/// condition on compaction is that of [`events`].
///
/// # Errors
/// [`Halt`] if the storage fails or a row is damaged.
pub fn causes<R: Read>(
    rows: &R,
    revision: i64,
    prefix: &[u8],
) -> Result<Vec<(Bytes, Cause)>, Halt> {
    let mut causes = Vec::new();
    let start = Revision::first_of(revision.max(0));
    let end = Revision::after(revision);
    rows.scan(Table::Rev, &start.row_key(), Some(&end.row_key()), &mut |_, row| {
        // No link of a row of this revision leads beyond it.
        let row = RevRow::decode(end, row)?;
        if row.state.is_none() && row.key.starts_with(prefix) {
            causes.push((Bytes::copy_from_slice(row.key), row.cause));
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(causes)
}

fn event<R: Read>(rows: &R, arena: &mut Arena, at: Revision, row: &[u8]) -> Result<Event, Halt> {
    let row = RevRow::decode(at, row)?;
    let (kind, kv) = match row.state {
        Some(state) => {
            let live = Live { key: row.key, mod_revision: at.main, state, row: None };
            (EventKind::Put, live.to_key_value(arena, true))
        }
        None => {
            let key = arena.copy(row.key);
            (EventKind::Delete, KeyValue { key, mod_revision: at.main, ..KeyValue::default() })
        }
    };
    let prev_kv = match row.replaced_put() {
        Some(put) => before_revision(rows, at.main, put, &kv.key)?,
        None => None,
    };
    Ok(Event { kind, kv, prev_kv })
}

/// Follows the links from `link` to the state that `key` had before revision `main`.
fn before_revision<R: Read>(
    rows: &R,
    main: i64,
    link: Revision,
    key: &Bytes,
) -> Result<Option<KeyValue>, Halt> {
    let mut link = Some(link);
    while let Some(at) = link {
        let Some(row) = rows.get(Table::Rev, &at.row_key())? else { break };
        let decoded = RevRow::decode(at, &row)?;
        if at.main < main {
            return Ok(decoded.state.map(|state| live::key_value(key, at.main, &row, state)));
        }
        link = decoded.previous;
    }
    Ok(None)
}

fn size(event: &Event) -> usize {
    let prev_bytes = event.prev_kv.as_ref().map_or(0, |kv| kv.value.len());
    event.kv.key.len().saturating_add(event.kv.value.len()).saturating_add(prev_bytes)
}
