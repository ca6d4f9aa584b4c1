//! Candidates of elections: exclusive places with the candidate's own value, as in etcd's recipe.
//!
//! A session has at most one place per election; asking again finds it. Numbered candidacies share
//! the place, which is deleted with the last of them.

use super::attempt::{self, SHARED_MAX, id};
use super::queue::{self, NEWEST, Place};
use crate::change::{Before, Change};
use crate::command::{Campaign, Leave};
use crate::leases;
use crate::outcome::Stop;
use crate::primitives::once::{self, Kind, Standing};
use crate::read::Read;
use crate::response::{Halt, LockResponse, LockState, PrimitiveResponse, Rejection, Taken};
use crate::rows::place::Attempt;

/// Whether a place without a claim was taken through the native API, by a candidate, and not by
/// etcd's recipe.
///
/// # Errors
/// [`Halt`] if the storage fails or a row is damaged.
pub fn is_candidate<R: Read>(rows: &R, place: &Place) -> Result<bool, Halt> {
    Ok(place.claim.is_none() && !attempt::all(rows, &place.key, place.fence)?.is_empty())
}

/// Takes the place, or changes the value of the place that the session has already.
pub(super) fn campaign<R: Read>(
    change: &mut Change<'_, '_, R>,
    campaign: &Campaign,
) -> Result<LockResponse, Stop> {
    let Campaign { name, session, value, attempt: stream, number, once, resumes } = campaign;
    let lease = leases::lease(change.rows, *session)?.ok_or(Rejection::LeaseNotFound)?;
    Kind::Campaign.check(&lease, once.sequence)?;
    let key = queue::key(name, *session);
    let before = Before::load(change.rows, &key)?;
    let cancelled = LockResponse::Places { state: LockState::Cancelled, taken: Vec::new() };
    let fence = match &before.kv {
        // It was withdrawn or removed, and must not begin again.
        None if *resumes || lease.is_settled(once.sequence) => {
            return Ok(cancelled);
        }
        None => {
            change.put(&key, before, value, *session)?;
            change.head.revision
        }
        Some(kv) => {
            let fence = kv.create_revision;
            let place = queue::place_at(change.rows, &key)?;
            let is_own = place.is_some_and(|p| p.claim.is_none() && p.session == *session);
            // A key that was attached to its lease after its creation is not a place.
            if !is_own || !queue::is_place(change.rows, name, &key)? {
                return Err(Rejection::InvalidLock("the key of the candidate is taken").into());
            }
            let known = attempt::all(change.rows, &key, fence)?;
            match known.iter().find(|known| known.request == id(once.sequence)) {
                // A late command of a stream that the client has left must not make the candidate
                // follow that stream.
                Some(known) if *number < known.number => return Err(Rejection::Overtaken.into()),
                Some(_) => {}
                None if *resumes || lease.is_settled(once.sequence) => return Ok(cancelled),
                None if known.len() >= SHARED_MAX => {
                    return Err(Rejection::Refused("the session campaigns too many times").into());
                }
                None => {}
            }
            if kv.value != *value && !resumes {
                change.put(&key, before, value, *session)?;
            }
            fence
        }
    };
    let attempt = Attempt { request: id(once.sequence), stream: *stream, number: *number };
    attempt::set(change.rows, (&key, fence), attempt)?;
    let is_held = queue::holds(change.rows, NEWEST, name, fence)?;
    let state = if is_held { LockState::Held } else { LockState::Queued };
    Ok(LockResponse::Places { state, taken: vec![Taken { name: name.clone(), key, fence }] })
}

/// Withdraws a candidate.
pub(super) fn leave<R: Read>(
    change: &mut Change<'_, '_, R>,
    leave: &Leave,
) -> Result<LockResponse, Stop> {
    let session = match once::find(change.rows, leave.once, Kind::Leave)? {
        Standing::Known(answer) => return Ok(LockResponse::Released { was_held: answer.is_done }),
        Standing::New(session) => session,
    };
    let was_held = withdraw(change, leave)?;
    if let Some(session) = session {
        let answer = PrimitiveResponse { is_done: was_held, ..PrimitiveResponse::default() };
        once::remember(change.rows, session, (leave.once, Kind::Leave), answer);
    }
    Ok(LockResponse::Released { was_held })
}

fn withdraw<R: Read>(change: &mut Change<'_, '_, R>, leave: &Leave) -> Result<bool, Halt> {
    let key = queue::key(&leave.name, leave.session);
    let place = queue::place_at(change.rows, &key)?;
    let place = place.filter(|place| place.session == leave.session && place.claim.is_none());
    let place = place.filter(|place| leave.fence == 0 || place.fence == leave.fence);
    let Some(place) = place else { return Ok(false) };
    // Another stream may follow the candidate by now.
    if leave.attempt != 0 || leave.once.undoes != 0 {
        let own = id(leave.once.undoes);
        let mut known = attempt::all(change.rows, &key, place.fence)?;
        let is_own = |known: &Attempt| {
            known.request == own && (leave.attempt == 0 || known.stream == leave.attempt)
        };
        if !known.iter().any(is_own) {
            return Ok(false);
        }
        known.retain(|known| !is_own(known));
        if !known.is_empty() {
            attempt::set_all(change.rows, &key, place.fence, &known)?;
            return Ok(true);
        }
    }
    let before = Before::load(change.rows, &key)?;
    change.delete(&key, before)?;
    Ok(true)
}
