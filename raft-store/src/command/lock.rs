//! Commands of sessions and locks, as they travel.

use conclave_proto::{internal, v1};
use conclave_state_machine::command::{
    Campaign, Guard, GuardedTxn, HandOver, Leave, LockAcquire, LockBreak, LockCommand, LockConvert,
    LockRelease, SessionBegin,
};
use conclave_state_machine::response::Rejection;

use super::{primitive::once, txn};

/// The command that begins a session.
#[must_use]
pub fn session_begin(request: v1::SessionBeginRequest) -> SessionBegin {
    SessionBegin {
        id: request.id,
        ttl: request.ttl_seconds,
        request_id: request.request_id,
        owner: request.owner,
        metadata: request.metadata.into_iter().map(|tag| (tag.name, tag.value)).collect(),
    }
}

/// The command that takes places.
#[must_use]
pub fn acquire(message: internal::LockAcquire) -> LockCommand {
    LockCommand::Acquire(LockAcquire {
        names: message.names,
        session: message.session,
        request_id: message.request_id,
        permits: message.permits,
        limit: message.limit,
        can_wait: message.can_wait,
        is_reentrant: message.reentrant,
        delay_seconds: message.delay_seconds,
        attempt: message.attempt,
        asked_ms: message.asked_unix_ms,
        note: message.note,
        once: once(message.once),
    })
}

/// The command that gives places up.
#[must_use]
pub fn release(message: internal::LockRelease) -> LockCommand {
    LockCommand::Release(LockRelease {
        names: message.names,
        session: message.session,
        request_id: message.request_id,
        attempt: message.attempt,
        once: once(message.once),
    })
}

/// The command that changes how a place is held.
#[must_use]
pub fn convert(request: v1::ConvertRequest) -> LockCommand {
    LockCommand::Convert(LockConvert {
        name: request.name,
        session: request.session,
        request_id: request.request_id,
        permits: request.permits,
        limit: request.limit,
        once: once(request.once),
    })
}

/// The command that takes places away.
#[must_use]
pub fn seize(message: internal::LockBreak) -> LockCommand {
    let internal::LockBreak { name, fence, by, reason } = message;
    LockCommand::Break(LockBreak { name, fence, by, reason })
}

/// The command that takes a place in an election.
#[must_use]
pub fn campaign(message: internal::Campaign) -> LockCommand {
    let internal::Campaign { name, session, value, attempt, number, once: asked, resumes } =
        message;
    let once = once(asked);
    LockCommand::Campaign(Campaign { name, session, value, attempt, number, once, resumes })
}

/// The command that gives a place in an election up.
#[must_use]
pub fn leave(message: internal::Leave) -> LockCommand {
    let internal::Leave { name, session, fence, attempt, once: asked } = message;
    LockCommand::Leave(Leave { name, session, fence, attempt, once: once(asked) })
}

/// The command by which a leader hands over.
#[must_use]
pub fn hand_over(message: internal::HandOver) -> LockCommand {
    let internal::HandOver { name, fence, to, session } = message;
    LockCommand::HandOver(HandOver { name, session, fence, to })
}

/// The command of a guarded transaction.
///
/// # Errors
/// As [`txn`].
pub fn guarded_txn(request: v1::CommitRequest) -> Result<GuardedTxn, Rejection> {
    let guards = request.guards.into_iter();
    Ok(GuardedTxn {
        guards: guards.map(|guard| Guard { name: guard.name, fence: guard.fence }).collect(),
        txn: txn(request.txn.unwrap_or_default())?,
    })
}
