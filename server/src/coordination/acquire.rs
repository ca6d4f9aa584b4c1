//! A single acquisition, from its proposal to its end.

use std::time::Duration;

use bytes::Bytes;
use conclave_proto::internal::{self, LockAcquire, command::Command as Message};
use conclave_proto::v1;
use conclave_state_machine::command::Caller;
use conclave_state_machine::leases;
use conclave_state_machine::locks::queue;
use conclave_state_machine::response::{LockResponse, LockState, Response as Answer, Taken};
use futures::future::select_all;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::Status;
use v1::acquire_request::Wait;
use v1::acquire_response::Event;
use v1::ended::Reason;

use super::turns::{Following, Turn};
use super::{
    Turns, WAIT_MAX, broken, is_denied, is_unknown, sorted, unix_ms, withdraw_unless_resumed,
};
use crate::api::context::{Context, mismatch};
use crate::api::stream_end;
use crate::auth::RightsCheck;
use crate::propose::Haste;
use crate::status::Fault;

/// Queue positions are counted up to this number.
const POSITION_MAX: usize = 1_000;

pub(super) type Answers = mpsc::Sender<Result<v1::AcquireResponse, Status>>;

/// An acquisition in progress. A task of its own, because it must be withdrawn even if the call is
/// dropped.
pub(super) struct Acquisition {
    context: Context,
    caller: Caller,
    /// The right that the caller needs for as long as it waits.
    wanted: RightsCheck,
    answers: Answers,
    command: LockAcquire,
    deadline: Option<Instant>,
}

/// How the wait ended.
enum End {
    Granted(v1::Granted),
    Gone,
    Timeout,
    /// The client is gone.
    Dropped,
    /// The caller lost the right to take part.
    Revoked(Status),
    Failed(Status),
}

impl Acquisition {
    pub(super) fn new(
        context: Context,
        caller: Caller,
        request: v1::AcquireRequest,
        answers: Answers,
    ) -> Self {
        let (permits, limit) = share(request.permits, request.limit);
        let wait = match request.wait {
            Some(Wait::WaitForever(true)) => None,
            Some(Wait::WaitMs(ms)) => Some(Duration::from_millis(ms)),
            Some(Wait::WaitForever(false)) | None => Some(Duration::ZERO),
        };
        let command = LockAcquire {
            names: sorted(request.names),
            session: request.session,
            request_id: request.request_id,
            permits,
            limit,
            can_wait: wait != Some(Duration::ZERO),
            reentrant: request.reentrant,
            delay_seconds: request.lock_delay_seconds,
            // Never 0, which means all attempts of the request.
            attempt: context.node.turns().streams().next(context.node.member_id()),
            asked_unix_ms: unix_ms(),
            note: request.note,
            once: request.once,
        };
        let deadline = wait.map(|wait| Instant::now() + wait.min(WAIT_MAX));
        let wanted = RightsCheck::part_in(&command.names);
        Self { context, caller, wanted, answers, command, deadline }
    }

    pub(super) fn command(&self) -> &LockAcquire {
        &self.command
    }

    pub(super) async fn run(self) {
        let message = Message::LockAcquire(self.command.clone());
        // Awaited even if the client goes meanwhile: a withdrawal that overtook the command would
        // find nothing.
        let proposal = self.context.propose_with(&self.caller, message, self.haste()).await;
        let (state, taken, revision) = match proposal {
            Ok((Answer::Lock(LockResponse::Places { state, taken }), revision)) => {
                (state, taken, revision)
            }
            Ok(_) => return self.fail(mismatch()).await,
            Err(status) => {
                let is_unknown = is_unknown(&status);
                self.fail(status).await;
                if is_unknown {
                    withdraw_unless_resumed(&self.context, self.withdrawal()).await;
                }
                return;
            }
        };
        let left = match state {
            LockState::Held => {
                self.context.metrics.turns.enter().granted();
                let locks = taken.into_iter().map(held_lock).collect();
                self.settle(End::Granted(v1::Granted { locks, revision }), &[]).await
            }
            LockState::Queued => self.wait(taken).await,
            LockState::Busy => return self.end(Reason::Timeout).await,
            LockState::Cancelled => return self.end(Reason::Cancelled).await,
        };
        if let Some(left) = left {
            withdraw_unless_resumed(&self.context, left).await;
        }
    }

    /// How soon the command has to be in the log. Only a request that lines up behind others has
    /// time; one that does not wait, or that may hold the lock already, does not.
    fn haste(&self) -> Haste {
        let LockAcquire { names, can_wait: true, reentrant: false, .. } = &self.command else {
            return Haste::Prompt;
        };
        let turns = self.context.node.turns();
        Haste::behind(names.iter().map(|name| turns.places(name)).max().unwrap_or(0))
    }

    /// Waits for the turn of all places; returns the withdrawal that is still to be made, if any.
    async fn wait(&self, taken: Vec<Taken>) -> Option<Message> {
        let queued = self.context.metrics.turns.enter();
        let position = self.position(&taken);
        if self.check().is_ok() && !self.send(Event::Queued(v1::Queued { position })).await {
            return Some(self.withdrawal());
        }
        let absences = self.context.node.absences();
        let mut end = self.turn(&taken).await;
        if self.context.node.absences() != absences {
            end = self.confirm(end, &taken).await;
        }
        if matches!(end, End::Granted(_)) {
            queued.granted();
        }
        self.settle(end, &taken).await
    }

    /// Checks a grant after this member was cut off: the others may have taken a place away
    /// meanwhile and granted it to somebody else.
    async fn confirm(&self, end: End, taken: &[Taken]) -> End {
        if !matches!(end, End::Granted(_)) {
            return end;
        }
        if let Err(status) = self.context.read_barrier().await {
            return End::Failed(status);
        }
        let reader = self.context.node.reader();
        let is_there = |place: &Taken| queue::holds(reader, i64::MAX, &place.name, place.fence);
        match taken.iter().map(is_there).collect::<Result<Vec<_>, _>>() {
            Ok(places) if places.iter().all(|is_there| *is_there) => end,
            Ok(_) => End::Gone,
            Err(halt) => End::Failed(crate::status::internal(&halt)),
        }
    }

    /// Tells the client how the wait ended. Returns the withdrawal that is still to be made: none
    /// if the client was told that it holds the places, or if they are gone.
    async fn settle(&self, end: End, taken: &[Taken]) -> Option<Message> {
        let end = match (end, self.check()) {
            (End::Granted(_) | End::Gone, Err(status)) => End::Revoked(status),
            (end, _) => end,
        };
        match end {
            End::Granted(granted) => {
                (!self.send(Event::Granted(granted)).await).then(|| self.withdrawal())
            }
            End::Gone => {
                let broken = self.broken(taken);
                let reader = self.context.node.reader();
                let lease = leases::lease(reader, self.command.session);
                let is_lost = matches!(lease, Ok(None));
                // If one of several places is gone, the others are of no use.
                let is_settled = self.command.names.len() == 1 || self.release().await.is_ok();
                let reason = if is_lost { Reason::SessionLost } else { Reason::Cancelled };
                let reason = reason as i32;
                self.send(Event::Ended(v1::Ended { reason, broken })).await;
                (!is_settled).then(|| self.withdrawal())
            }
            End::Timeout => match self.release().await {
                Ok(()) => {
                    self.end(Reason::Timeout).await;
                    None
                }
                Err(status) => self.leave(status).await,
            },
            End::Dropped => Some(self.withdrawal()),
            End::Revoked(status) => self.expel(status).await,
            End::Failed(status) => self.leave(status).await,
        }
    }

    /// Who took one of the places away by force.
    fn broken(&self, taken: &[Taken]) -> Option<v1::Broken> {
        taken.iter().find_map(|place| broken(&self.context, &place.key, place.fence))
    }

    fn check(&self) -> Result<(), Status> {
        self.context.auth.check_by_name(&self.caller, &self.wanted)
    }

    /// Reports a failure; the client may come back for its places within the grace period.
    async fn leave(&self, status: Status) -> Option<Message> {
        self.fail(status).await;
        Some(self.withdrawal())
    }

    /// Removes all places of the request, of whichever stream, because the client lost the right to
    /// them.
    async fn expel(&self, status: Status) -> Option<Message> {
        if !is_denied(&status) {
            return self.leave(status).await;
        }
        let withdrawal = self.withdrawal_of(0);
        let given_up = self.context.propose(&Caller::Inside, withdrawal.clone()).await;
        self.fail(status).await;
        given_up.is_err().then_some(withdrawal)
    }

    async fn turn(&self, taken: &[Taken]) -> End {
        let turns = self.context.node.turns();
        let follow = |place: &Taken| Turns::follow(turns, &place.name, &place.key);
        let mut following = match taken.iter().map(follow).collect::<Result<Vec<_>, _>>() {
            Ok(following) => following,
            Err(_too_many) => return End::Failed(Fault::TooManyRequests.into()),
        };
        // A member that is cut off would never hear of the turn.
        let mut over = std::pin::pin!(stream_end::reason_to_end(self.context.clone(), true));
        let mut revoked = std::pin::pin!(self.context.auth.revoked(&self.caller, &self.wanted));
        let deadline = self.deadline.unwrap_or_else(|| Instant::now() + WAIT_MAX);
        loop {
            if let Some(end) = look((taken, self.command.session), &mut following) {
                return end;
            }
            let changes = following.iter_mut().map(|one| Box::pin(one.receiver.changed()));
            tokio::select! {
                _ = select_all(changes) => {}
                () = tokio::time::sleep_until(deadline) => return End::Timeout,
                () = self.answers.closed() => return End::Dropped,
                status = &mut revoked => return End::Revoked(status),
                fault = &mut over => return End::Failed(fault.into()),
            }
        }
    }

    /// Number of places ahead in the longest of the queues, at most [`POSITION_MAX`] each.
    fn position(&self, taken: &[Taken]) -> u64 {
        let reader = self.context.node.reader();
        let ahead = |place: &Taken| queue::ahead(reader, &place.name, place.fence, POSITION_MAX);
        let longest = taken.iter().filter_map(|place| ahead(place).ok()).max();
        u64::try_from(longest.unwrap_or(0)).unwrap_or(0)
    }

    async fn release(&self) -> Result<(), Status> {
        self.context.propose(&Caller::Inside, self.withdrawal()).await.map(drop)
    }

    fn withdrawal(&self) -> Message {
        self.withdrawal_of(self.command.attempt)
    }

    /// The withdrawal of what one attempt (stream) of the request asked for; 0 for all attempts.
    fn withdrawal_of(&self, attempt: u64) -> Message {
        Message::LockRelease(internal::LockRelease {
            names: self.command.names.clone(),
            session: self.command.session,
            request_id: self.command.request_id.clone(),
            attempt,
            once: self.command.once.map(|once| v1::Once {
                session: self.command.session,
                undoes: once.sequence,
                ..v1::Once::default()
            }),
        })
    }

    async fn send(&self, event: Event) -> bool {
        self.answers.send(Ok(v1::AcquireResponse { event: Some(event) })).await.is_ok()
    }

    async fn end(&self, reason: Reason) {
        let reason = reason as i32;
        self.send(Event::Ended(v1::Ended { reason, broken: None })).await;
    }

    async fn fail(&self, status: Status) {
        // Fails only if the client is gone, which needs no answer.
        self.answers.send(Err(status)).await.ok();
    }
}

/// Fills in the default share: 0 permits of 0 is an exclusive lock, 1 of 1.
pub(super) fn share(permits: u32, limit: u32) -> (u32, u32) {
    if permits == 0 && limit == 0 { (1, 1) } else { (permits, limit) }
}

pub(super) fn held_lock(place: Taken) -> v1::HeldLock {
    v1::HeldLock { name: place.name, key: place.key, fence: place.fence }
}

/// The end of the wait, if the session holds all places or one is gone. A place with another fence
/// belongs to another request.
fn look((taken, session): (&[Taken], i64), following: &mut [Following]) -> Option<End> {
    let (mut locks, mut since) = (Vec::with_capacity(taken.len()), 0);
    let mut is_waiting = false;
    for (place, one) in taken.iter().zip(following) {
        match *one.receiver.borrow_and_update() {
            Turn::Held { fence, session: of, revision }
                if (fence, of) == (place.fence, session) =>
            {
                since = revision.max(since);
                let (name, key) = (Bytes::clone(&place.name), Bytes::clone(&place.key));
                locks.push(v1::HeldLock { name, key, fence });
            }
            Turn::Waiting => is_waiting = true,
            Turn::Held { .. } | Turn::Gone => return Some(End::Gone),
        }
    }
    (!is_waiting).then_some(End::Granted(v1::Granted { locks, revision: since }))
}

/// Starts an acquisition; returns the stream of its answers.
pub(super) fn start(
    context: Context,
    caller: Caller,
    request: v1::AcquireRequest,
    check: impl FnOnce(&LockAcquire) -> Result<(), Status>,
) -> Result<mpsc::Receiver<Result<v1::AcquireResponse, Status>>, Status> {
    let (answers, stream) = mpsc::channel(super::ANSWERS_MAX);
    let acquisition = Acquisition::new(context, caller, request, answers);
    check(acquisition.command())?;
    let background = acquisition.context.background.clone();
    // The task ends by itself: with the stream and a grace period, or with the member.
    background.spawn(acquisition.run());
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::watch;

    use super::*;

    #[test]
    fn a_turn_is_that_of_the_place_that_was_taken() {
        let turns = Arc::new(Turns::default());
        let taken = ["a", "b"].map(|name| Taken { name: name.into(), key: name.into(), fence: 5 });
        let look_at = |states: [Turn; 2]| {
            let follow = |(place, state): (&Taken, Turn)| {
                let mut one = Turns::follow(&turns, &place.name, &place.key).unwrap();
                one.receiver = watch::channel(state).1;
                one
            };
            look((&taken, 7), &mut taken.iter().zip(states).map(follow).collect::<Vec<_>>())
        };
        let held = |fence, revision| Turn::Held { fence, session: 7, revision };
        let end = look_at([held(5, 7), held(5, 6)]);
        assert!(matches!(end, Some(End::Granted(ref granted)) if granted.revision == 7));
        assert!(look_at([held(5, 7), Turn::Waiting]).is_none());
        assert!(matches!(look_at([held(5, 7), Turn::Gone]), Some(End::Gone)));
        assert!(matches!(look_at([held(5, 7), held(6, 7)]), Some(End::Gone)), "it went to another");
        let leased = Turn::Held { fence: 5, session: 8, revision: 7 };
        assert!(matches!(look_at([held(5, 7), leased]), Some(End::Gone)), "it got another lease");
    }
}
