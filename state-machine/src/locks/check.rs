//! Validity checks for commands of locks and sessions; the server makes them before it proposes.

use bytes::Bytes;

use super::claim::Claim;
use crate::command::{Guard, LockAcquire, LockCommand, Once, SessionBegin};
use crate::primitives;
use crate::response::Rejection;

/// Most names that one request locks, and most guards of one transaction.
pub const NAMES_MAX: usize = 64;
/// Longest name of a lock or election, in bytes.
pub const NAME_BYTES_MAX: usize = 1_024;
/// Longest request id, in bytes.
pub const REQUEST_ID_BYTES_MAX: usize = 64;
/// Longest note of a holder, in bytes.
pub const NOTE_BYTES_MAX: usize = 4_096;
/// Longest lock delay, in seconds.
pub const DELAY_SECONDS_MAX: u32 = 3_600;
/// Most bytes of owner and metadata of a session.
pub const OWNER_BYTES_MAX: usize = 4_096;
/// Most metadata entries of a session.
pub const METADATA_MAX: usize = 64;

/// Checks a command of a lock.
///
/// # Errors
/// [`Rejection::InvalidLock`].
pub fn command(command: &LockCommand) -> Result<(), Rejection> {
    match command {
        LockCommand::Acquire(acquire) => {
            names(&acquire.names)?;
            request_id(&acquire.request_id)?;
            numbered(acquire.once, acquire.session)?;
            self::acquire(acquire)
        }
        LockCommand::Release(release) => {
            names(&release.names)?;
            request_id(&release.request_id)?;
            numbered(release.once, release.session)
        }
        LockCommand::Convert(convert) => {
            name(&convert.name)?;
            request_id(&convert.request_id)?;
            numbered(convert.once, convert.session)?;
            share(convert.permits, convert.limit)
        }
        LockCommand::Break(command) => name(&command.name),
        LockCommand::Campaign(campaign) => {
            name(&campaign.name)?;
            numbered(campaign.once, campaign.session)?;
            candidate_value(&campaign.value)
        }
        LockCommand::Leave(leave) => {
            name(&leave.name)?;
            numbered(leave.once, leave.session)
        }
        LockCommand::HandOver(command) => name(&command.name),
    }
}

/// Checks the guards of a transaction.
///
/// # Errors
/// [`Rejection::InvalidLock`].
pub fn guards(guards: &[Guard]) -> Result<(), Rejection> {
    if guards.len() > NAMES_MAX {
        return Err(Rejection::InvalidLock("too many guards"));
    }
    guards.iter().try_for_each(|guard| name(&guard.name))
}

/// Checks the request that begins a session.
///
/// # Errors
/// [`Rejection::InvalidLock`].
pub fn session(begin: &SessionBegin) -> Result<(), Rejection> {
    request_id(&begin.request_id)?;
    let bytes = begin.metadata.iter().map(|(name, value)| name.len().saturating_add(value.len()));
    let bytes = bytes.fold(begin.owner.len(), usize::saturating_add);
    if bytes > OWNER_BYTES_MAX || begin.metadata.len() > METADATA_MAX {
        return Err(Rejection::InvalidLock("too much is said about the owner"));
    }
    Ok(())
}

/// Checks the name of a lock or election.
///
/// # Errors
/// [`Rejection::InvalidLock`].
pub fn name(name: &Bytes) -> Result<(), Rejection> {
    if name.is_empty() {
        return Err(Rejection::InvalidLock("the name is empty"));
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(Rejection::InvalidLock("the name is too long"));
    }
    Ok(())
}

/// Checks the value of a candidate: it must not decode as the claim of a lock.
///
/// # Errors
/// [`Rejection::InvalidLock`].
pub fn candidate_value(value: &[u8]) -> Result<(), Rejection> {
    match Claim::decode(value) {
        Some(_) => Err(Rejection::InvalidLock("the value is that of a lock")),
        None => Ok(()),
    }
}

/// Checks that a numbered request is numbered by the session that it is about.
fn numbered(once: Once, session: i64) -> Result<(), Rejection> {
    if once.sequence != 0 && once.session != session {
        return Err(Rejection::InvalidLock("the request is counted by another session"));
    }
    primitives::check::once(once, true)
}

fn names(names: &[Bytes]) -> Result<(), Rejection> {
    if names.is_empty() || names.len() > NAMES_MAX {
        return Err(Rejection::InvalidLock("no names, or too many"));
    }
    if !names.is_sorted_by(|one, next| one < next) {
        return Err(Rejection::InvalidLock("names must ascend"));
    }
    names.iter().try_for_each(name)
}

fn request_id(request_id: &Bytes) -> Result<(), Rejection> {
    if (1..=REQUEST_ID_BYTES_MAX).contains(&request_id.len()) {
        return Ok(());
    }
    Err(Rejection::InvalidLock("the request id is empty or too long"))
}

fn share(permits: u32, limit: u32) -> Result<(), Rejection> {
    if (1..=limit).contains(&permits) {
        return Ok(());
    }
    Err(Rejection::InvalidLock("permits must be from 1 to the limit"))
}

fn acquire(acquire: &LockAcquire) -> Result<(), Rejection> {
    share(acquire.permits, acquire.limit)?;
    if acquire.is_reentrant && acquire.names.len() > 1 {
        return Err(Rejection::InvalidLock("several names cannot be re-entrant"));
    }
    if acquire.delay_seconds > DELAY_SECONDS_MAX {
        return Err(Rejection::InvalidLock("the delay is too long"));
    }
    if acquire.note.len() > NOTE_BYTES_MAX {
        return Err(Rejection::InvalidLock("the note is too long"));
    }
    Ok(())
}
