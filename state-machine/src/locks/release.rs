//! Release: gives up what a request has, or would get.

use bytes::Bytes;

use super::acquire::put;
use super::attempt;
use super::queue::{self, Place};
use crate::change::{Before, Change};
use crate::command::LockRelease;
use crate::leases::{self, LeaseRow};
use crate::outcome::Stop;
use crate::primitives::once::{self, Kind, Standing};
use crate::read::Read;
use crate::response::{Halt, LockResponse, PrimitiveResponse};

/// Most cancelled requests without a number that a session remembers until they arrive.
const CANCELLED_MAX: usize = 16;

pub(super) fn apply<R: Read>(
    change: &mut Change<'_, '_, R>,
    release: &LockRelease,
) -> Result<LockResponse, Stop> {
    let LockRelease { names, session, request_id, attempt, once } = release;
    let remembering = match once::find(change.rows, *once, Kind::Release)? {
        Standing::Known(answer) => return Ok(LockResponse::Released { was_held: answer.is_done }),
        Standing::New(remembering) => remembering,
    };
    let (mut is_found, mut is_given_up, mut are_all) = (false, false, true);
    for name in names {
        let Some(place) = queue::place_of(change.rows, name, *session, request_id)? else {
            are_all = false;
            continue;
        };
        is_found = true;
        let known = attempt::of_request(change.rows, (&place.key, place.fence), request_id)?;
        if *attempt != 0 && known.stream != *attempt {
            // Another stream asked for the same request, too, and may be the current one.
            are_all = false;
            continue;
        }
        is_given_up = true;
        give_up(change, place, request_id)?;
    }
    if let Some(remembering) = remembering {
        let answer = PrimitiveResponse { is_done: are_all, ..PrimitiveResponse::default() };
        once::remember(change.rows, remembering, (*once, Kind::Release), answer);
    } else if is_given_up || !is_found && *attempt == 0 {
        end(change, *session, request_id, once.undoes)?;
    }
    // A client that has lost one of its places must be told: it may have worked under the
    // protection of all of them.
    Ok(LockResponse::Released { was_held: are_all })
}

/// Removes a request from its place; deletes the place with the last one.
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

/// Records that a request is over, so that it cannot take places any more: it may still arrive, for
/// the first time or again. `number` is its number, 0 if it has none.
pub(super) fn end<R: Read>(
    change: &mut Change<'_, '_, R>,
    session: i64,
    request_id: &Bytes,
    number: u64,
) -> Result<(), Halt> {
    let Some(mut lease) = leases::lease(change.rows, session)? else { return Ok(()) };
    if note_end(&mut lease, request_id, number) {
        leases::write(change.rows, session, &lease);
    }
    Ok(())
}

/// Records in its session's row that a request is over. Returns whether that is new.
pub(super) fn note_end(lease: &mut LeaseRow, request_id: &Bytes, number: u64) -> bool {
    if number == 0 { cancel(lease, request_id) } else { lease.end(number) }
}

/// Remembers a cancelled request without a number. Returns whether that is new.
fn cancel(lease: &mut LeaseRow, request_id: &Bytes) -> bool {
    if lease.cancelled.contains(request_id) {
        return false;
    }
    if lease.cancelled.len() >= CANCELLED_MAX {
        lease.cancelled.remove(0);
    }
    lease.cancelled.push(Bytes::clone(request_id));
    true
}
