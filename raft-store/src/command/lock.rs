//! Converts requests of sessions and locks from messages to commands.

use conclave_proto::{internal, v1};
use conclave_state_machine::command::{
    Campaign, Guard, GuardedTxn, HandOver, Leave, LockAcquire, LockBreak, LockCommand, LockConvert,
    LockRelease, SessionBegin,
};
use conclave_state_machine::response::Rejection;

use super::{primitive::once, txn};

/// Converts the begin of a session.
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

/// Converts an acquisition.
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

/// Converts a release.
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

/// Converts a change of a holder's share.
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

/// Converts a break.
#[must_use]
pub fn seize(message: internal::LockBreak) -> LockCommand {
    let internal::LockBreak { name, fence, by, reason } = message;
    LockCommand::Break(LockBreak { name, fence, by, reason })
}

/// Converts a candidacy.
#[must_use]
pub fn campaign(message: internal::Campaign) -> LockCommand {
    let internal::Campaign { name, session, value, attempt, number, once: asked, resumes } =
        message;
    let once = once(asked);
    LockCommand::Campaign(Campaign { name, session, value, attempt, number, once, resumes })
}

/// Converts the withdrawal of a candidate.
#[must_use]
pub fn leave(message: internal::Leave) -> LockCommand {
    let internal::Leave { name, session, fence, attempt, once: asked } = message;
    LockCommand::Leave(Leave { name, session, fence, attempt, once: once(asked) })
}

/// Converts a hand-over.
#[must_use]
pub fn hand_over(message: internal::HandOver) -> LockCommand {
    let internal::HandOver { name, fence, to, session } = message;
    LockCommand::HandOver(HandOver { name, session, fence, to })
}

/// Converts a guarded transaction.
///
/// # Errors
/// Those of [`txn`].
pub fn guarded_txn(request: v1::CommitRequest) -> Result<GuardedTxn, Rejection> {
    let guards = request.guards.into_iter();
    Ok(GuardedTxn {
        guards: guards.map(|guard| Guard { name: guard.name, fence: guard.fence }).collect(),
        txn: txn(request.txn.unwrap_or_default())?,
    })
}
