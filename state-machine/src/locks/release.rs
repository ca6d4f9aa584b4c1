//! Release: gives up what a request has, or what it would get.

use bytes::Bytes;

use super::acquire::put;
use super::attempt;
use super::queue::{self, Place};
use crate::change::{Before, Change};
use crate::command::LockRelease;
use crate::leases;
use crate::outcome::Stop;
use crate::read::Read;
use crate::response::{Halt, LockResponse};

/// Given-up requests that a session remembers until they arrive.
const CANCELLED_MAX: usize = 16;

pub(super) fn apply<R: Read>(
    change: &mut Change<'_, '_, R>,
    release: &LockRelease,
) -> Result<LockResponse, Stop> {
    let LockRelease { names, session, request_id, attempt } = release;
    let (mut is_found, mut given_up) = (false, 0);
    for name in names {
        let Some(place) = queue::place_of(change.rows, name, *session, request_id)? else {
            continue;
        };
        is_found = true;
        let known = attempt::of_request(change.rows, (&place.key, place.fence), request_id)?;
        if *attempt != 0 && known.stream != *attempt {
            // Another stream asked for the same request, too, and may be the one that counts.
            continue;
        }
        given_up += 1;
        give_up(change, place, request_id)?;
    }
    if given_up > 0 || !is_found && *attempt == 0 {
        remember(change, *session, request_id)?;
    }
    // Whoever lost one of its places must hear of it: it may have worked under all of them.
    Ok(LockResponse::Released { was_held: given_up == names.len() })
}

/// Takes a request off its place; the place goes with the last one.
pub(super) fn give_up<R: Read>(
    change: &mut Change<'_, '_, R>,
    place: Place,
    request_id: &Bytes,
) -> Result<(), Halt> {
    let mut claim = place.claim.unwrap_or_default();
    claim.requests.retain(|request| request != request_id);
    if claim.requests.is_empty() {
        let before = Before::load(change.rows, &place.key)?;
        change.delete(&place.key, before)
    } else {
        attempt::end(change.rows, (&place.key, place.fence), request_id)?;
        put(change, &place.key, &claim, place.session)
    }
}

/// A request that lost its places takes no others: it may still be on its way, for the first time or
/// once more.
pub(super) fn remember<R: Read>(
    change: &mut Change<'_, '_, R>,
    session: i64,
    request_id: &Bytes,
) -> Result<(), Halt> {
    let Some(mut lease) = leases::lease(change.rows, session)? else { return Ok(()) };
    if lease.cancelled.contains(request_id) {
        return Ok(());
    }
    if lease.cancelled.len() >= CANCELLED_MAX {
        lease.cancelled.remove(0);
    }
    lease.cancelled.push(Bytes::clone(request_id));
    leases::write(change.rows, session, &lease);
    Ok(())
}
