//! Sessions: leases that have an owner.

use bytes::Bytes;

use crate::command::SessionBegin;
use crate::head::Head;
use crate::leases::{self, LeaseRow, TTL_SECONDS_MAX};
use crate::locks::check;
use crate::machine::Position;
use crate::outcome::Stop;
use crate::overlay::Overlay;
use crate::read::{Read, Table};
use crate::response::{Halt, LeaseChange, Rejection};
use crate::rows::lease::{id, row_key};

use std::ops::ControlFlow;

/// Lists at most `limit` sessions from lease id `from` on, in the order of their row keys (negative
/// ids last).
///
/// # Errors
/// [`Halt`] if the storage fails or a row is damaged.
pub fn list<R: Read>(rows: &R, from: i64, limit: usize) -> Result<Vec<(i64, LeaseRow)>, Halt> {
    let mut sessions = Vec::new();
    rows.scan(Table::Lease, &row_key(from), None, &mut |row_key, row| {
        if sessions.len() >= limit {
            return Ok(ControlFlow::Break(()));
        }
        let row = LeaseRow::decode(row)?;
        if row.is_session() {
            sessions.push((id(row_key)?, row));
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(sessions)
}

/// Begins a session for `user` (empty: none). Returns its TTL, and its grant unless the same
/// request created it before.
pub(crate) fn begin<R: Read>(
    rows: &mut Overlay<'_, R>,
    head: &mut Head,
    at: Position,
    (user, begin): (&str, &SessionBegin),
) -> Result<(i64, Option<LeaseChange>), Stop> {
    check::session(begin)?;
    if begin.id == 0 {
        return Err(Rejection::LeaseNotFound.into());
    }
    if begin.ttl > TTL_SECONDS_MAX {
        return Err(Rejection::LeaseTtlTooLarge.into());
    }
    match leases::lease(rows, begin.id)? {
        Some(known) if known.request_id == begin.request_id => return Ok((known.ttl, None)),
        Some(_) => return Err(Rejection::LeaseExists.into()),
        None => {}
    }
    let row = LeaseRow {
        ttl: begin.ttl,
        granted: at.index,
        user: user.to_owned(),
        request_id: Bytes::clone(&begin.request_id),
        owner: begin.owner.clone(),
        metadata: begin.metadata.clone(),
        ..LeaseRow::default()
    };
    Ok((row.ttl, Some(leases::create(rows, head, begin.id, &row))))
}
