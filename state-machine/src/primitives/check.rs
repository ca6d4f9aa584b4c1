//! Validity checks for commands of counters, latches, barriers and groups; the server makes them
//! before it proposes.

use crate::command::{Action, Once, Primitive};
use crate::locks::check::{NOTE_BYTES_MAX, candidate_value, name};
use crate::response::Rejection;

/// Most participants of one double barrier.
pub const PARTICIPANTS_MAX: u32 = 1_024;
/// Longest id of a group member, in bytes.
pub const MEMBER_BYTES_MAX: usize = 256;

/// Checks a command.
///
/// # Errors
/// [`Rejection::InvalidLock`].
pub fn command(command: &Primitive) -> Result<(), Rejection> {
    let Primitive { once, name: of, action } = command;
    name(of)?;
    self::once(*once, matches!(action, Action::Exit { .. }))?;
    match action {
        Action::Add(_) | Action::Set { .. } | Action::Lift(_) => Ok(()),
        Action::Create(count) if *count < 0 => invalid("a latch counts from 0"),
        Action::CountDown(by) if *by < 1 => invalid("a latch counts down by 1 at least"),
        Action::Create(_) | Action::CountDown(_) => Ok(()),
        Action::Raise { note, is_bound } => {
            if *is_bound {
                session(*once)?;
            }
            said(note)
        }
        Action::Enter { count, note } => {
            session(*once)?;
            if !(1..=PARTICIPANTS_MAX).contains(count) {
                return invalid("a double barrier has 1 to 1024 participants");
            }
            said(note)
        }
        Action::Exit { .. } => {
            session(*once)?;
            if once.undoes == 0 { invalid("it must say which request entered") } else { Ok(()) }
        }
        Action::Join { member: id, value, of } => {
            session(*once)?;
            if *of >= once.sequence {
                return invalid("it must say which request joined");
            }
            member(id)?;
            said(value)
        }
        Action::Part { member: id } => {
            session(*once)?;
            member(id)
        }
    }
}

fn invalid<T>(reason: &'static str) -> Result<T, Rejection> {
    Err(Rejection::InvalidLock(reason))
}

/// Checks the number of a request. One without a number is not remembered: a member may propose
/// such a request for a client where repeating it does no harm.
pub(crate) fn once(once: Once, may_be_unnumbered: bool) -> Result<(), Rejection> {
    let Once { session, sequence, settled, undoes } = once;
    if session == 0 {
        return if undoes == 0 { Ok(()) } else { invalid("only a session takes requests back") };
    }
    if may_be_unnumbered && sequence == 0 {
        return Ok(());
    }
    if sequence == 0 || settled > sequence || undoes >= sequence {
        return invalid("requests of a session are counted from 1");
    }
    Ok(())
}

fn session(once: Once) -> Result<(), Rejection> {
    if once.session == 0 { invalid("this needs a session") } else { Ok(()) }
}

/// Checks the value of a participant: it must not be the claim of a lock, or it would hold one.
fn said(value: &[u8]) -> Result<(), Rejection> {
    if value.len() > NOTE_BYTES_MAX {
        return invalid("the value is too long");
    }
    candidate_value(value)
}

fn member(id: &[u8]) -> Result<(), Rejection> {
    if id.is_empty() || id.len() > MEMBER_BYTES_MAX || id.contains(&b'/') {
        return invalid("the id of a member has 1 to 256 bytes, without a slash");
    }
    Ok(())
}
