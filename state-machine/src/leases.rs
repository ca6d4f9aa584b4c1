//! Leases: grant, revoke and expiry as commands, and what readers ask about them.
//!
//! Time is not known here: a lease ends when a command says so. Remaining lifetimes live in the
//! leader's [`crate::expiry`].

use std::ops::ControlFlow;

use bytes::Bytes;

use crate::change::{Before, Change};
use crate::command::{LeaseExpire, LeaseGrant, LeaseRevoke};
use crate::head::Head;
use crate::machine::Position;
use crate::outcome::Stop;
use crate::overlay::Overlay;
use crate::read::{Read, Table};
use crate::response::{Event, Halt, LeaseChange, Rejection};
use crate::rows::lease::{attachments_end, id, row_key};

pub use crate::rows::lease::LeaseRow;

/// Longest TTL, in seconds (etcd's).
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

/// Lists all leases as (id, TTL in seconds), negative ids last.
///
/// # Errors
/// [`Halt`] if the storage fails or a row is damaged.
pub fn all<R: Read>(rows: &R) -> Result<Vec<(i64, i64)>, Halt> {
    let mut leases = Vec::new();
    rows.scan(Table::Lease, &[], None, &mut |row_key, row| {
        leases.push((id(row_key)?, LeaseRow::decode(row)?.ttl));
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(leases)
}

pub(crate) fn grant<R: Read>(
    rows: &mut Overlay<'_, R>,
    head: &mut Head,
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
    rows.put(Table::Lease, Bytes::copy_from_slice(&row_key(id)), LeaseRow { ttl }.encode());
    head.add_lease_bytes();
    Ok(LeaseChange::Granted { id, ttl })
}

pub(crate) fn revoke<R: Read>(
    change: &mut Change<'_, '_, R>,
    revoke: LeaseRevoke,
) -> Result<LeaseChange, Stop> {
    if lease(change.rows, revoke.id)?.is_none() {
        return Err(Rejection::LeaseNotFound.into());
    }
    Ok(end(change, revoke.id)?)
}

/// Ends every lease of the list that still exists, each at a revision of its own, as revoking them one
/// by one would; none if the term in which the expiry was decided is over.
pub(crate) fn expire<R: Read>(
    rows: &mut Overlay<'_, R>,
    head: &mut Head,
    events: &mut Vec<Event>,
    position: Position,
    expire: &LeaseExpire,
) -> Result<Vec<LeaseChange>, Halt> {
    let mut ended = Vec::new();
    if expire.term != position.term {
        return Ok(ended);
    }
    for id in &expire.ids {
        if lease(rows, *id)?.is_some() {
            let mut change = Change::begin(rows, head, events)?;
            ended.push(end(&mut change, *id)?);
        }
    }
    Ok(ended)
}

/// Deletes the lease and its keys, in key order.
fn end<R: Read>(change: &mut Change<'_, '_, R>, id: i64) -> Result<LeaseChange, Halt> {
    for key in lease_keys(change.rows, id)? {
        let before = Before::load(change.rows, &key)?;
        change.delete(&key, before)?;
    }
    change.rows.delete(Table::Lease, Bytes::copy_from_slice(&row_key(id)));
    change.head.remove_lease_bytes();
    Ok(LeaseChange::Ended { id })
}
