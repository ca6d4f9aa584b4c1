//! Candidates of elections: exclusive places whose value is what they say, as in etcd's recipe.
//!
//! A session is a candidate of a name once, so that no request id is needed: asking again finds the place.

use bytes::Bytes;

use super::queue::{self, NEWEST};
use crate::change::{Before, Change};
use crate::command::{Campaign, Leave};
use crate::leases;
use crate::outcome::Stop;
use crate::read::Read;
use crate::response::{LockResponse, LockState, Rejection, Taken};
use crate::rows::place::Attempt;

/// Takes the place, or says something else at the one that is there.
pub(super) fn campaign<R: Read>(
    change: &mut Change<'_, '_, R>,
    campaign: &Campaign,
) -> Result<LockResponse, Stop> {
    let Campaign { name, session, value, attempt: stream, number } = campaign;
    if leases::lease(change.rows, *session)?.is_none() {
        return Err(Rejection::LeaseNotFound.into());
    }
    let key = queue::key(name, *session);
    let before = Before::load(change.rows, &key)?;
    let fence = match &before.kv {
        None => {
            change.put(&key, before, value, *session)?;
            change.head.revision
        }
        Some(kv) => {
            let fence = kv.create_revision;
            let place = queue::place_at(change.rows, &key)?;
            if !place.is_some_and(|place| place.claim.is_none() && place.session == *session) {
                return Err(Rejection::InvalidLock("the key of the candidate is taken").into());
            }
            // A command of a stream that the client left long ago must not make the candidate follow it.
            if *number < queue::attempt(change.rows, (&key, fence), b"")?.number {
                return Err(Rejection::Overtaken.into());
            }
            if kv.value != *value {
                change.put(&key, before, value, *session)?;
            }
            fence
        }
    };
    let attempt = Attempt { request: Bytes::new(), stream: *stream, number: *number };
    queue::set_attempt(change.rows, (&key, fence), attempt)?;
    let is_held = queue::holds(change.rows, NEWEST, name, fence)?;
    let state = if is_held { LockState::Held } else { LockState::Queued };
    Ok(LockResponse::Places { state, taken: vec![Taken { name: name.clone(), key, fence }] })
}

/// Gives the place up.
pub(super) fn leave<R: Read>(
    change: &mut Change<'_, '_, R>,
    leave: &Leave,
) -> Result<LockResponse, Stop> {
    let key = queue::key(&leave.name, leave.session);
    let place = queue::place_at(change.rows, &key)?;
    let place = place.filter(|place| place.session == leave.session && place.claim.is_none());
    let place = place.filter(|place| leave.fence == 0 || place.fence == leave.fence);
    let Some(place) = place else { return Ok(LockResponse::Released { was_held: false }) };
    // Another stream may follow the candidate meanwhile.
    let known = queue::attempt(change.rows, (&key, place.fence), b"")?;
    if leave.attempt != 0 && known.stream != leave.attempt {
        return Ok(LockResponse::Released { was_held: false });
    }
    let before = Before::load(change.rows, &key)?;
    change.delete(&key, before)?;
    Ok(LockResponse::Released { was_held: true })
}
