//! Tells which requests are retries of what was done already: they need no space, so they are let
//! through when the store is full.
//!
//! A waiter or leader asks again at another member when its own member fails. If that were rejected
//! for lack of space, a full store would lose its leaders.

use bytes::Bytes;

use crate::command::{Campaign, Command, LockCommand, Once};
use crate::leases;
use crate::locks::queue;
use crate::read::Read;
use crate::response::Halt;
use crate::writes;

/// Whether a request of `session` has a place in one of the queues it names.
///
/// # Errors
/// [`Halt`] if the storage fails or a row is damaged.
pub fn is_placed<R: Read>(
    rows: &R,
    names: &[Bytes],
    session: i64,
    request_id: &Bytes,
) -> Result<bool, Halt> {
    for name in names {
        if queue::place_of(rows, name, session, request_id)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether `session` is a candidate of `name` with this `value`.
///
/// # Errors
/// [`Halt`] if the storage fails or a row is damaged.
pub fn is_standing<R: Read>(
    rows: &R,
    name: &Bytes,
    session: i64,
    value: &Bytes,
) -> Result<bool, Halt> {
    let place = queue::place_at(rows, &queue::key(name, session))?;
    Ok(place.is_some_and(|place| place.session == session && place.value == *value))
}

/// Whether a numbered request was answered.
///
/// # Errors
/// [`Halt`] if the storage fails or a row is damaged.
pub fn is_answered<R: Read>(rows: &R, once: Once) -> Result<bool, Halt> {
    if once.session == 0 || once.sequence == 0 {
        return Ok(false);
    }
    Ok(leases::lease(rows, once.session)?.is_some_and(|lease| lease.is_settled(once.sequence)))
}

/// Whether a command's effect is there already.
pub(crate) fn comes_again<R: Read>(rows: &R, command: &Command) -> Result<bool, Halt> {
    if let Command::Lock(LockCommand::Acquire(acquire)) = command {
        return is_placed(rows, &acquire.names, acquire.session, &acquire.request_id);
    }
    if let Command::Lock(LockCommand::Campaign(campaign)) = command {
        let Campaign { name, session, value, resumes, .. } = campaign;
        return Ok(*resumes || is_standing(rows, name, *session, value)?);
    }
    if let Command::Write(write) = command {
        return writes::is_answered(rows, &write.id);
    }
    if let Command::Primitive(primitive) = command {
        return is_answered(rows, primitive.once);
    }
    Ok(false)
}
