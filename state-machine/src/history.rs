//! Reads past events, for watchers that start in the past or fell behind.

use std::ops::ControlFlow;

use bytes::Bytes;

use crate::live::{self, Arena, Live};
use crate::read::{Read, Table};
use crate::response::{Cause, Event, EventKind, Halt, KeyValue};
use crate::revision::Revision;
use crate::rows::rev::RevRow;

/// Which events to read.
#[derive(Clone, Copy, Debug)]
pub struct EventSpan<'a> {
    /// First revision.
    pub from: i64,
    /// Last revision.
    pub to: i64,
    /// Maximum number of revisions.
    pub revisions_max: usize,
    /// Approximate maximum of bytes of keys and values; a revision is never cut.
    pub bytes_max: usize,
    /// Events of keys with this prefix come with the previous key-value, where it still exists;
    /// `None`: no event does.
    pub prev_of: Option<&'a [u8]>,
}

impl EventSpan<'_> {
    /// All of the revisions `from..=to`, without bounds.
    #[must_use]
    pub fn whole(from: i64, to: i64) -> Self {
        let (revisions_max, bytes_max) = (usize::MAX, usize::MAX);
        EventSpan { from, to, revisions_max, bytes_max, prev_of: Some(&[]) }
    }
}

/// Bytes of previous key-values that one call of [`events`] returns. Further events come without
/// them, as if they were compacted: this bounds the memory for a revision that replaces more.
const PREV_READ_BYTES_MAX: usize = 256 << 20;

/// Reads events in order.
///
/// Ends early once a bound is reached, but never within a revision: at least one revision is read
/// whole. To continue, ask from the last event's `mod_revision` + 1. An empty answer means that
/// there are no events up to `to`.
///
/// The caller checks that `from` is not below the compacted revision, before and (if `rows` is a
/// live store) after the call: compacted events are silently missing.
///
/// # Errors
/// [`Halt`] if the storage fails or a row is damaged.
pub fn events<R: Read>(rows: &R, span: EventSpan<'_>) -> Result<Vec<Event>, Halt> {
    let start = Revision::first_of(span.from.max(0)).row_key();
    let end = Revision::after(span.to).row_key();
    let mut arena = Arena::default();
    let mut events: Vec<Event> = Vec::new();
    let (mut last_main, mut revisions) = (None, 0_usize);
    let (mut bytes, mut prev_bytes) = (0_usize, 0_usize);
    if span.to < span.from.max(0) {
        return Ok(events);
    }
    rows.scan(Table::Rev, &start, Some(&end), &mut |row_key, row| {
        let at = Revision::from_row_key(row_key).ok_or_else(|| Halt::CorruptRow {
            table: "rev",
            detail: format!("key of {} bytes", row_key.len()),
        })?;
        if last_main != Some(at.main) {
            let read = bytes.saturating_add(prev_bytes);
            if last_main.is_some() && (revisions >= span.revisions_max || read >= span.bytes_max) {
                return Ok(ControlFlow::Break(()));
            }
            last_main = Some(at.main);
            revisions = revisions.saturating_add(1);
        }
        let row = RevRow::decode(at, row)?;
        let mut event = event(&mut arena, at, &row);
        let is_wanted = span.prev_of.is_some_and(|prefix| row.key.starts_with(prefix));
        if let (true, Some(put)) =
            (is_wanted && prev_bytes < PREV_READ_BYTES_MAX, row.replaced_put())
        {
            event.prev_kv = before_revision(rows, at.main, put, &event.kv.key)?;
        }
        bytes = bytes.saturating_add(event.kv.key.len()).saturating_add(event.kv.value.len());
        let prev = event.prev_kv.as_ref().map_or(0, |kv| kv.value.len());
        prev_bytes = prev_bytes.saturating_add(prev);
        events.push(event);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(events)
}

/// Returns why keys with `prefix` that were deleted at `revision` were deleted, in no particular
/// order. Same condition on compaction as [`events`].
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
        // No row of this revision links beyond it.
        let row = RevRow::decode(end, row)?;
        if row.state.is_none() && row.key.starts_with(prefix) {
            causes.push((Bytes::copy_from_slice(row.key), row.cause));
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(causes)
}

fn event(arena: &mut Arena, at: Revision, row: &RevRow<'_>) -> Event {
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
    Event { kind, kv, prev_kv: None }
}

/// Follows the links from `link` to the state of `key` before revision `main`.
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
