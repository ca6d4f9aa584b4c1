//! Acquire: takes a place in each of the queues, or in none.

use bytes::Bytes;

use super::claim::{Claim, REQUESTS_MAX};
use super::queue::{self, NEWEST, Place};
use super::release::{end, give_up};
use super::{attempt, front};
use crate::change::{Before, Change};
use crate::command::LockAcquire;
use crate::leases;
use crate::outcome::Stop;
use crate::primitives::once::Kind;
use crate::read::Read;
use crate::response::{Halt, LockResponse, LockState, Rejection, Taken};
use crate::rows::place::Attempt;

pub(super) fn apply<R: Read>(
    change: &mut Change<'_, '_, R>,
    acquire: &LockAcquire,
) -> Result<LockResponse, Stop> {
    let lease = leases::lease(change.rows, acquire.session)?.ok_or(Rejection::LeaseNotFound)?;
    Kind::Acquire.check(&lease, acquire.once.sequence)?;
    let mut own = Vec::new();
    for name in &acquire.names {
        own.push(queue::place_of(change.rows, name, acquire.session, &acquire.request_id)?);
    }
    let taken = own.iter().flatten().count();
    let is_over = match acquire.once.sequence {
        0 => lease.cancelled.contains(&acquire.request_id),
        number => taken == 0 && lease.is_settled(number),
    };
    if is_over || (1..own.len()).contains(&taken) {
        return Ok(cancel(change, acquire, own.into_iter().flatten())?);
    }
    if taken > 0 {
        return Ok(repeat(change, acquire, own.into_iter().flatten())?);
    }
    if acquire.is_reentrant
        && let [name] = acquire.names.as_slice()
        && let Some(place) = held_alike(change.rows, acquire, name)?
    {
        return enter_again(change, acquire, name, place);
    }
    take(change, acquire)
}

/// Cancels a request that was given up, or that has lost one of several places: the others are of
/// no use.
fn cancel<R: Read>(
    change: &mut Change<'_, '_, R>,
    acquire: &LockAcquire,
    own: impl Iterator<Item = Place>,
) -> Result<LockResponse, Halt> {
    for place in own {
        give_up(change, place, &acquire.request_id)?;
    }
    end(change, acquire.session, &acquire.request_id, acquire.once.sequence)?;
    Ok(LockResponse::Places { state: LockState::Cancelled, taken: Vec::new() })
}

/// Answers a request that has its places already.
///
/// It is not known which of two streams the client listens to: a late repetition may come from one
/// that it left long ago. So if the streams differ, no stream gives the places up from then on;
/// only the client itself or the end of its session does.
fn repeat<R: Read>(
    change: &mut Change<'_, '_, R>,
    acquire: &LockAcquire,
    own: impl Iterator<Item = Place>,
) -> Result<LockResponse, Halt> {
    let mut is_held = true;
    let mut taken = Vec::new();
    for (name, place) in acquire.names.iter().zip(own) {
        let Place { key, fence, .. } = place;
        is_held &= queue::holds(change.rows, NEWEST, name, fence)?;
        let known = attempt::of_request(change.rows, (&key, fence), &acquire.request_id)?;
        if known.stream != acquire.attempt {
            let nobody = attempt_of(acquire, 0);
            attempt::set(change.rows, (&key, fence), nobody)?;
        }
        taken.push(Taken { name: name.clone(), key, fence });
    }
    let state = if is_held { LockState::Held } else { LockState::Queued };
    Ok(LockResponse::Places { state, taken })
}

/// Finds a place of the session that holds `name` with the requested share.
fn held_alike<R: Read>(
    rows: &R,
    acquire: &LockAcquire,
    name: &Bytes,
) -> Result<Option<Place>, Halt> {
    let is_alike = |place: &Place| {
        place.session == acquire.session
            && place.claim.is_some()
            && !place.is_lost()
            && place.share() == (acquire.permits, acquire.limit)
    };
    Ok(queue::holders(rows, NEWEST, name)?.into_iter().find(is_alike))
}

fn enter_again<R: Read>(
    change: &mut Change<'_, '_, R>,
    acquire: &LockAcquire,
    name: &Bytes,
    place: Place,
) -> Result<LockResponse, Stop> {
    let Place { key, fence, claim, .. } = place;
    let mut claim = claim.unwrap_or_default();
    if claim.requests.len() >= REQUESTS_MAX {
        return Err(Rejection::InvalidLock("the session holds it too many times").into());
    }
    claim.requests.push(acquire.request_id.clone());
    // The place keeps the largest delay and the last note of its requests until the last of them is
    // released.
    claim.delay_seconds = claim.delay_seconds.max(acquire.delay_seconds);
    if !acquire.note.is_empty() {
        claim.note = acquire.note.clone();
    }
    put(change, &key, &claim, acquire.session)?;
    // The stream that sent a request may give up that request.
    let attempt = attempt_of(acquire, acquire.attempt);
    attempt::set(change.rows, (&key, fence), attempt)?;
    let taken = vec![Taken { name: name.clone(), key, fence }];
    Ok(LockResponse::Places { state: LockState::Held, taken })
}

fn take<R: Read>(
    change: &mut Change<'_, '_, R>,
    acquire: &LockAcquire,
) -> Result<LockResponse, Stop> {
    let share = (acquire.permits, acquire.limit);
    let mut is_held = true;
    for name in &acquire.names {
        is_held = is_held && front::is_free(change.rows, name, share)?;
    }
    if !is_held && !acquire.can_wait {
        return Ok(LockResponse::Places { state: LockState::Busy, taken: Vec::new() });
    }
    let claim = Claim {
        permits: acquire.permits,
        limit: acquire.limit,
        delay_seconds: acquire.delay_seconds,
        asked_ms: acquire.asked_ms,
        requests: vec![acquire.request_id.clone()],
        note: acquire.note.clone(),
    };
    let mut taken = Vec::new();
    for name in &acquire.names {
        let mut key = queue::key(name, acquire.session);
        if Before::load(change.rows, &key)?.kv.is_some() {
            key = queue::further_key(name, acquire.session, &acquire.request_id);
        }
        if Before::load(change.rows, &key)?.kv.is_some() {
            return Err(Rejection::InvalidLock("the key of the place is taken").into());
        }
        taken.push(Taken { name: name.clone(), key, fence: 0 });
    }
    for place in &mut taken {
        put(change, &place.key, &claim, acquire.session)?;
        place.fence = change.head.revision;
        let attempt = attempt_of(acquire, acquire.attempt);
        attempt::set(change.rows, (&place.key, place.fence), attempt)?;
    }
    let state = if is_held { LockState::Held } else { LockState::Queued };
    Ok(LockResponse::Places { state, taken })
}

fn attempt_of(acquire: &LockAcquire, stream: u64) -> Attempt {
    Attempt { request: acquire.request_id.clone(), stream, number: acquire.once.sequence }
}

/// Writes a place.
pub(super) fn put<R: Read>(
    change: &mut Change<'_, '_, R>,
    key: &Bytes,
    claim: &Claim,
    session: i64,
) -> Result<(), Halt> {
    let before = Before::load(change.rows, key)?;
    change.put(key, before, &claim.encode(), session)
}

/// Deletes a place and creates it again, at the end of its queue, so that it gets a new fence. The
/// same streams wait for it.
pub(super) fn renew<R: Read>(
    change: &mut Change<'_, '_, R>,
    place: &Place,
    value: &Bytes,
) -> Result<(), Halt> {
    let attempts = attempt::all(change.rows, &place.key, place.fence)?;
    let before = Before::load(change.rows, &place.key)?;
    change.delete(&place.key, before)?;
    let before = Before::load(change.rows, &place.key)?;
    change.put(&place.key, before, value, place.session)?;
    attempt::set_all(change.rows, &place.key, change.head.revision, &attempts)
}
