//! Finds a newcomer's predecessor in a queue without reading the whole queue.
//!
//! A client that follows etcd's recipe waits for every key below the name, whether or not it is a
//! place. If it is known that only places were before a certain place, then only the keys created
//! since need to be checked: the last few events.

use std::ops::ControlFlow;

use bytes::Bytes;

use super::front::front;
use super::queue;
use crate::read::{Read, Table};
use crate::response::Halt;
use crate::revision::Revision;
use crate::rows::place;
use crate::rows::rev::RevRow;

/// Most revisions, and most events, to look at.
const ARRIVALS_MAX: i64 = 64;

/// Returns the key of the place before that of `key`, which has this fence, if only places precede
/// it; `None` if that is not so, or cannot be told from the last few events. `known` is the fence
/// of a place of the same queue that was found to be preceded by places only. `compacted` is the
/// compacted revision of `rows`, which must be a snapshot.
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
    // If the first place of today was in the queue when `known` was checked, the queue was never
    // empty since. And no place lost its lease since, as `is_unbroken` covers the whole life of the
    // queue.
    let is_same_queue = front.is_unbroken && front.first <= known;
    let is_near = known < fence && fence.saturating_sub(known) <= ARRIVALS_MAX;
    // If `known` was compacted, the event that created a key since may be missing, although the key
    // lives: it may have been written again.
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

/// Whether all keys below `name` that were created at these revisions were places. False if there
/// are too many events to look at.
fn came_as_places<R: Read>(
    rows: &R,
    name: &[u8],
    revisions: std::ops::Range<i64>,
) -> Result<bool, Halt> {
    let [start, end] = [revisions.start, revisions.end].map(Revision::first_of);
    let (mut events, mut are_places) = (0_i64, true);
    rows.scan(Table::Rev, &start.row_key(), Some(&end.row_key()), &mut |_, row| {
        // No row of these revisions links beyond them.
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
