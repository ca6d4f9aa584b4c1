//! Leases: the commands grant, revoke and expire, and reads of leases.
//!
//! There is no time here: a lease ends when a command says so. Deadlines are in the leader's
//! [`crate::expiry`].

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use bytes::Bytes;

use crate::change::{Before, Change};
use crate::command::{LeaseExpire, LeaseGrant, LeaseRevoke};
use crate::events::Events;
use crate::head::Head;
use crate::locks::delay::Delays;
use crate::machine::Position;
use crate::outcome::Stop;
use crate::overlay::Overlay;
use crate::primitives::rendezvous;
use crate::read::{Read, Table};
use crate::registry::loss::Losses;
use crate::response::{Cause, Halt, LeaseChange, Rejection};
use crate::rows::lease::{attachments_end, id, row_key};

pub use crate::rows::lease::{Answered, Broken, LeaseRow};

/// Longest TTL, in seconds; etcd's limit.
pub const TTL_SECONDS_MAX: i64 = 9_000_000_000;

/// Reads one lease.
///
/// # Errors
/// [`Halt`] if the storage fails or the row is damaged.
pub fn lease<R: Read>(rows: &R, id: i64) -> Result<Option<LeaseRow>, Halt> {
    rows.get(Table::Lease, &row_key(id))?.map(|row| LeaseRow::decode(&row)).transpose()
}

/// Lists the keys attached to lease `id`, in key order.
///
/// # Errors
/// [`Halt`] if the storage fails or a row is damaged.
pub fn lease_keys<R: Read>(rows: &R, id: i64) -> Result<Vec<Bytes>, Halt> {
    let prefix = row_key(id);
    let end = attachments_end(id);
    let end = end.as_ref().map(<[u8; 8]>::as_slice);
    let mut keys = Vec::new();
    rows.scan(Table::LeaseKey, &prefix, end, &mut |row_key, _| {
        let key = row_key.get(prefix.len()..).unwrap_or_default();
        keys.push(Bytes::copy_from_slice(key));
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(keys)
}

/// Returns the first key, from `start` on, that is attached to lease `id`.
pub(crate) fn lease_key_from<R: Read>(
    rows: &R,
    id: i64,
    start: &[u8],
) -> Result<Option<Bytes>, Halt> {
    let prefix = row_key(id);
    let end = attachments_end(id);
    let end = end.as_ref().map(<[u8; 8]>::as_slice);
    let mut found = None;
    rows.scan(Table::LeaseKey, &[&prefix, start].concat(), end, &mut |row_key, _| {
        found = row_key.get(prefix.len()..).map(Bytes::copy_from_slice);
        Ok(ControlFlow::Break(()))
    })?;
    Ok(found)
}

/// Lists all leases as (id, TTL in seconds), negative ids last.
///
/// # Errors
/// [`Halt`] if the storage fails or a row is damaged.
pub fn all<R: Read>(rows: &R) -> Result<Vec<(i64, i64)>, Halt> {
    let mut leases = Vec::new();
    grants(rows, &mut |id, ttl, _| leases.push((id, ttl)))?;
    Ok(leases)
}

/// Visits all leases with their TTL in seconds and the log index of their grant, negative ids last.
///
/// # Errors
/// [`Halt`] if the storage fails or a row is damaged.
pub fn grants<R: Read>(rows: &R, visit: &mut dyn FnMut(i64, i64, u64)) -> Result<(), Halt> {
    rows.scan(Table::Lease, &[], None, &mut |row_key, row| {
        let (ttl, granted) = LeaseRow::decode_front(row)?;
        visit(id(row_key)?, ttl, granted);
        Ok(ControlFlow::Continue(()))
    })
}

pub(crate) fn grant<R: Read>(
    rows: &mut Overlay<'_, R>,
    head: &mut Head,
    at: Position,
    grant: LeaseGrant,
) -> Result<LeaseChange, Stop> {
    let LeaseGrant { id, ttl } = grant;
    if id == 0 {
        return Err(Rejection::LeaseNotFound.into());
    }
    if ttl > TTL_SECONDS_MAX {
        return Err(Rejection::LeaseTtlTooLarge.into());
    }
    if lease(rows, id)?.is_some() {
        return Err(Rejection::LeaseExists.into());
    }
    Ok(create(rows, head, id, &LeaseRow { ttl, granted: at.index, ..LeaseRow::default() }))
}

/// Writes a lease that does not exist yet.
pub(crate) fn create<R: Read>(
    rows: &mut Overlay<'_, R>,
    head: &mut Head,
    id: i64,
    row: &LeaseRow,
) -> LeaseChange {
    write(rows, id, row);
    head.add_lease_bytes(row.owner_bytes());
    LeaseChange::Granted { id, ttl: row.ttl, at: row.granted }
}

/// Replaces the row of a lease.
pub(crate) fn write<R: Read>(rows: &mut Overlay<'_, R>, id: i64, row: &LeaseRow) {
    rows.put(Table::Lease, Bytes::copy_from_slice(&row_key(id)), row.encode());
}

pub(crate) fn revoke<R: Read>(
    change: &mut Change<'_, '_, R>,
    revoke: LeaseRevoke,
) -> Result<LeaseChange, Stop> {
    let row = lease(change.rows, revoke.id)?.ok_or(Rejection::LeaseNotFound)?;
    change.because(Cause::SessionEnded);
    for key in lease_keys(change.rows, revoke.id)? {
        let entered = rendezvous::entered(change.rows, &key, revoke.id)?;
        let before = Before::load(change.rows, &key)?;
        change.delete(&key, before)?;
        if let Some(name) = entered {
            rendezvous::close_behind_last(change, &name)?;
        }
    }
    Ok(end(change, revoke.id, &row))
}

/// Ends every lease of the list that still exists, each at its own revision, as revoking them one
/// by one would, except that a lock may ask for a delay. Ends none if the term in which the expiry
/// was decided is over.
pub(crate) fn expire<R: Read>(
    rows: &mut Overlay<'_, R>,
    head: &mut Head,
    events: &mut Events,
    position: Position,
    expire: &LeaseExpire,
) -> Result<Vec<LeaseChange>, Halt> {
    let mut ended = Vec::new();
    if expire.term != position.term {
        return Ok(ended);
    }
    let ending = still_granted(rows, expire)?;
    let ids: Vec<i64> = ending.iter().map(|(id, _)| *id).collect();
    // Ending one lease does not delete keys of another, except the gate of a double barrier, which
    // is deleted only once.
    let mut keys = keys_of_many(rows, &ids)?;
    let clock = (expire.now_ms, expire.is_guarded);
    let losses = Losses::of(rows, keys.values().flatten(), clock)?.damped(expire.is_damping);
    for (id, row) in &ending {
        let mut change = Change::begin(rows, head, events)?;
        change.because(Cause::SessionExpired);
        let keys = keys.remove(id).unwrap_or_default();
        let delays = Delays::of(change.rows, &keys)?;
        for key in keys {
            if !losses.lose(&mut change, &key)? {
                let entered = rendezvous::entered(change.rows, &key, *id)?;
                ended.extend(delays.lose(&mut change, &key)?);
                if let Some(name) = entered {
                    rendezvous::close_behind_last(&mut change, &name)?;
                }
            }
        }
        ended.push(end(&mut change, *id, row));
    }
    Ok(ended)
}

/// Returns the leases of the list that still exist, each once, and only if they are the ones whose
/// expiry was decided: an id may have been revoked and granted again since.
fn still_granted<R: Read>(rows: &R, expire: &LeaseExpire) -> Result<Vec<(i64, LeaseRow)>, Halt> {
    let (mut known, mut found) = (BTreeSet::new(), Vec::with_capacity(expire.ids.len()));
    let granted = expire.granted.iter().copied().chain(std::iter::repeat(0));
    for (id, granted) in expire.ids.iter().copied().zip(granted) {
        let Some(row) = lease(rows, id)?.filter(|_| known.insert(id)) else { continue };
        // Entries written by earlier versions do not have these numbers.
        if expire.granted.is_empty() || row.granted == granted {
            found.push((id, row));
        }
    }
    Ok(found)
}

/// Most rows of other leases to read over before seeking to the next wanted lease instead: about
/// what a seek costs.
const ROWS_READ_OVER_MAX: usize = 8;

/// Lists the keys attached to each of `ids`, in key order, with one pass over the attachments as
/// long as the wanted leases are close together.
fn keys_of_many<R: Read>(rows: &R, ids: &[i64]) -> Result<BTreeMap<i64, Vec<Bytes>>, Halt> {
    let mut found: BTreeMap<i64, Vec<Bytes>> = BTreeMap::new();
    let wanted: BTreeSet<[u8; 8]> = ids.iter().map(|id| row_key(*id)).collect();
    let mut wanted = wanted.into_iter().peekable();
    while let Some(start) = wanted.peek().copied() {
        let mut read_over = 0_usize;
        rows.scan(Table::LeaseKey, &start, None, &mut |attachment, _| {
            let Some((lease, key)) = attachment.split_at_checked(start.len()) else {
                return Err(broken_attachment(attachment));
            };
            while wanted.next_if(|next| next.as_slice() < lease).is_some() {}
            let Some(next) = wanted.peek() else { return Ok(ControlFlow::Break(())) };
            if next == lease {
                found.entry(id(lease)?).or_default().push(Bytes::copy_from_slice(key));
                read_over = 0;
                return Ok(ControlFlow::Continue(()));
            }
            read_over = read_over.saturating_add(1);
            let is_far = read_over >= ROWS_READ_OVER_MAX;
            Ok(if is_far { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        if read_over < ROWS_READ_OVER_MAX {
            // The scan was not cut short to seek further on, so there is nothing more to find.
            break;
        }
    }
    Ok(found)
}

fn broken_attachment(row_key: &[u8]) -> Halt {
    Halt::CorruptRow { table: "lease_key", detail: format!("key of {} bytes", row_key.len()) }
}

/// Deletes a lease, whose keys are already gone.
pub(crate) fn end<R: Read>(change: &mut Change<'_, '_, R>, id: i64, row: &LeaseRow) -> LeaseChange {
    change.rows.delete(Table::Lease, Bytes::copy_from_slice(&row_key(id)));
    change.head.remove_lease_bytes(row.owner_bytes());
    LeaseChange::Ended { id }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::memory::MemoryRows;
    use crate::rows::lease::attachment_key;

    proptest! {
        #[test]
        fn keys_of_many_leases_are_those_of_each(
            attached in prop::collection::vec((-3..200_i64, 0..3_u8), 0..300),
            ids in prop::collection::vec(-3..200_i64, 0..12),
        ) {
            let mut rows = MemoryRows::default();
            let key = |key: u8| Bytes::copy_from_slice(&[key]);
            rows.write(attached.into_iter().map(|(id, number)| {
                (Table::LeaseKey, attachment_key(id, &key(number)), Some(Bytes::new()))
            }));
            let found = keys_of_many(&rows, &ids).expect("memory does not fail");
            for id in ids {
                let keys = lease_keys(&rows, id).expect("memory does not fail");
                prop_assert_eq!(found.get(&id).cloned().unwrap_or_default(), keys);
            }
        }
    }
}
