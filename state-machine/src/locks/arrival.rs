//! Finds a newcomer's predecessor in a queue without reading the whole queue.
//!
//! Whoever follows etcd's recipe stands behind every key below the name, whether or not it is a place. Where it is known
//! of a place that only places stood before it, only what came since has to be looked at: the last few events.

use std::ops::ControlFlow;

use bytes::Bytes;

use super::front::front;
use super::queue;
use crate::read::{Read, Table};
use crate::response::Halt;
use crate::revision::Revision;
use crate::rows::place;
use crate::rows::rev::RevRow;

/// Most revisions, and most events of them, that are looked at.
const ARRIVALS_MAX: i64 = 64;

/// Key of the place before that of `key`, which has this fence, if only places stand before it. `None` if it is not so,
/// or takes a longer look. `known` is the fence of a place of the same queue before which only places stood
/// when it was looked at; `compacted` the compacted revision of `rows`, which are those of one moment.
///
/// # Errors
/// [`Halt`] if the storage fails or a row is damaged.
pub fn behind<R: Read>(
    rows: &R,
    compacted: i64,
    (key, fence): (&[u8], i64),
    known: i64,
) -> Result<Option<Bytes>, Halt> {
    let Some((name, _)) = place::parent(key) else { return Ok(None) };
    let Some(front) = front(rows, name)? else { return Ok(None) };
    // The first of today stood there when `known` was looked at: the queue was never empty since, and what is
    // certain of it was certain then.
    let is_same_queue = front.is_unbroken && front.first <= known;
    let is_near = known < fence && fence.saturating_sub(known) <= ARRIVALS_MAX;
    // The creation of a key that lives may be compacted if it was written again.
    if !is_same_queue
        || !is_near
        || known <= compacted
        || !came_as_places(rows, name, known..fence)?
    {
        return Ok(None);
    }
    let (mut before, mut is_here) = (None, false);
    queue::scan(rows, &place::prefix(name), known, &mut |found, found_key| {
        is_here |= found == fence && found_key == key;
        if found >= fence && (is_here || found > fence) {
            return Ok(ControlFlow::Break(()));
        }
        if found < fence {
            before = Some(found_key);
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(before.filter(|_| is_here))
}

/// Whether all keys below `name` that were created in these revisions were places, as far as a short look tells.
fn came_as_places<R: Read>(
    rows: &R,
    name: &[u8],
    revisions: std::ops::Range<i64>,
) -> Result<bool, Halt> {
    let [start, end] = [revisions.start, revisions.end].map(Revision::first_of);
    let (mut events, mut are_places) = (0_i64, true);
    rows.scan(Table::Rev, &start.row_key(), Some(&end.row_key()), &mut |_, row| {
        // No link of a row of these revisions leads beyond them.
        let row = RevRow::decode(end, row)?;
        events = events.saturating_add(1);
        are_places =
            events <= ARRIVALS_MAX && (!is_created_below(name, &row) || is_place(name, &row));
        Ok(if are_places { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    Ok(are_places)
}

fn is_created_below(name: &[u8], row: &RevRow<'_>) -> bool {
    let below = row.key.strip_prefix(name).is_some_and(|rest| rest.first() == Some(&b'/'));
    below && row.state.is_some_and(|state| state.version == 1)
}

fn is_place(name: &[u8], row: &RevRow<'_>) -> bool {
    let is_child = place::parent(row.key).is_some_and(|(parent, _)| parent == name);
    is_child && row.state.is_some_and(|state| state.lease != 0)
}
