//! A single candidacy, from its proposal to its end.
//!
//! The stream lives as long as the candidacy, including the time as leader. If the client goes, the
//! candidacy is withdrawn after a grace period, so that nobody leads without knowing; and a leader
//! is told when it no longer leads.

use conclave_proto::internal::{self, command::Command as Message};
use conclave_proto::v1;
use conclave_raft_store::command;
use conclave_state_machine::command::Caller;
use conclave_state_machine::leases;
use conclave_state_machine::locks::queue::{self, Place};
use conclave_state_machine::response::{LockResponse, Response as Answer, Taken};
use tokio::sync::mpsc;
use tonic::Status;
use v1::campaign_lost::Reason;
use v1::campaign_response::Event;

use super::turns::{Following, Turn};
use super::{Turns, checked, is_denied, is_unknown, withdraw_unless_resumed};
use crate::api::context::{Context, mismatch};
use crate::api::stream_end;
use crate::auth::RightsCheck;
use crate::propose::Haste;
use crate::status::Fault;

/// Queue positions are counted up to this number.
const POSITION_MAX: usize = 1_000;

/// A candidacy in progress. A task of its own, because it must be withdrawn even if the call is
/// dropped.
struct Candidacy {
    context: Context,
    caller: Caller,
    /// The right that the caller needs for as long as it is a candidate, including the time as
    /// leader.
    wanted: RightsCheck,
    answers: mpsc::Sender<Result<v1::CampaignResponse, Status>>,
    command: internal::Campaign,
}

/// How following a candidate ended.
enum End {
    /// The candidate is gone.
    Gone,
    /// The client is gone.
    Dropped,
    /// The caller lost the right to take part.
    Revoked(Status),
    /// The member stops, or is cut off.
    Over(Fault),
}

/// Starts a candidacy; returns the stream of its events.
pub(super) fn start(
    context: Context,
    caller: Caller,
    request: v1::CampaignRequest,
) -> Result<mpsc::Receiver<Result<v1::CampaignResponse, Status>>, Status> {
    let v1::CampaignRequest { name, session, value, attempt: number, once, resumes } = request;
    // Never 0, which means no stream.
    let attempt = context.node.turns().streams().next(context.node.member_id());
    let command = internal::Campaign { name, session, value, attempt, number, once, resumes };
    checked(&command::lock::campaign(command.clone()))?;
    let (answers, stream) = mpsc::channel(super::ANSWERS_MAX);
    let background = context.background.clone();
    let wanted = RightsCheck::part_in(std::slice::from_ref(&command.name));
    // The task ends by itself: with the candidacy, with the stream and a grace period, or with the
    // member.
    background.spawn(Candidacy { context, caller, wanted, answers, command }.run());
    Ok(stream)
}

impl Candidacy {
    async fn run(self) {
        let message = Message::Campaign(self.command.clone());
        let haste = Haste::behind(self.context.node.turns().places(&self.command.name));
        let proposal = self.context.propose_with(&self.caller, message, haste).await;
        let left = match proposal {
            Ok((Answer::Lock(LockResponse::Places { taken, .. }), _)) => match taken.first() {
                Some(place) => self.follow(place).await,
                // The candidate resigned, or does not exist any more and cannot be resumed.
                None => self.lose(Reason::Removed, None).await,
            },
            Ok(_) => {
                self.fail(mismatch()).await;
                None
            }
            Err(status) => {
                let left = if is_unknown(&status) { self.withdrawal() } else { None };
                self.fail(status).await;
                left
            }
        };
        if let Some(left) = left {
            withdraw_unless_resumed(&self.context, left).await;
        }
    }

    /// Follows the candidate to its end; returns the withdrawal that is still to be made, if any.
    async fn follow(&self, place: &Taken) -> Option<Message> {
        let following = Turns::follow(self.context.node.turns(), &place.name, &place.key);
        let Ok(following) = following else {
            self.fail(Fault::TooManyRequests.into()).await;
            return self.withdrawal();
        };
        match self.tell(place, following).await {
            End::Gone => {
                let lease = leases::lease(self.context.node.reader(), self.command.session);
                let is_lost = matches!(lease, Ok(None));
                let reason = if is_lost { Reason::SessionLost } else { Reason::Removed };
                let broken = super::broken(&self.context, &place.key, place.fence);
                self.lose(reason, broken).await
            }
            End::Dropped => self.withdrawal(),
            End::Revoked(status) => self.expel(status).await,
            End::Over(fault) => {
                self.fail(fault.into()).await;
                self.withdrawal()
            }
        }
    }

    /// Removes the place of a client that lost the right to it, unless another stream follows the
    /// place.
    async fn expel(&self, status: Status) -> Option<Message> {
        if !is_denied(&status) {
            self.fail(status).await;
            return self.withdrawal();
        }
        let leave = self.leave();
        let withdrawn = self.context.propose(&Caller::Inside, leave.clone()).await;
        self.fail(status).await;
        withdrawn.is_err().then_some(leave)
    }

    /// The withdrawal to make if the client does not come back. `None` for a numbered request: its
    /// client can resume it, so it stays until the client or the session ends it.
    fn withdrawal(&self) -> Option<Message> {
        let is_numbered = self.command.once.is_some_and(|once| once.sequence != 0);
        (!is_numbered).then(|| self.leave())
    }

    fn leave(&self) -> Message {
        let internal::Campaign { name, session, attempt, once, .. } = self.command.clone();
        let undoes = once.map_or(0, |once| once.sequence);
        let once = Some(v1::Once { session, undoes, ..v1::Once::default() });
        Message::Leave(internal::Leave { name, session, fence: 0, attempt, once })
    }

    async fn tell(&self, place: &Taken, following: Following) -> End {
        // These are noticed even if the client does not read its events.
        tokio::select! {
            biased;
            // A member that is cut off would never hear what becomes of the candidate.
            fault = stream_end::reason_to_end(self.context.clone(), true) => End::Over(fault),
            status = self.context.auth.revoked(&self.caller, &self.wanted) => End::Revoked(status),
            end = self.tell_turns(place, following) => end,
        }
    }

    async fn tell_turns(&self, place: &Taken, mut following: Following) -> End {
        let mut led_with = None;
        let mut is_queued = false;
        let mut queued = Some(self.context.metrics.turns.enter());
        loop {
            let turn = *following.receiver.borrow_and_update();
            let event = match (turn, led_with) {
                // A leader that is no longer first, or is first again with another fence, was not
                // the leader all the time.
                (Turn::Gone, _) | (Turn::Waiting, Some(_)) => return End::Gone,
                (Turn::Held { fence, .. }, Some(known)) if fence != known => return End::Gone,
                // An etcd client attached another lease to the key.
                (Turn::Held { session, .. }, _) if session != self.command.session => {
                    return End::Gone;
                }
                (Turn::Held { fence, revision, .. }, None) => {
                    led_with = Some(fence);
                    if let Some(queued) = queued.take() {
                        queued.granted();
                    }
                    let key = place.key.clone();
                    Some(Event::Elected(v1::Elected { key, fence, revision }))
                }
                (Turn::Waiting, None) if !is_queued && self.is_behind(place) => {
                    is_queued = true;
                    Some(Event::Queued(v1::Queued { position: self.position(place) }))
                }
                (Turn::Held { .. }, Some(_)) | (Turn::Waiting, None) => None,
            };
            if let Some(event) = event
                && let Err(end) = self.say(event).await
            {
                return end;
            }
            tokio::select! {
                biased;
                () = self.answers.closed() => return End::Dropped,
                _ = following.receiver.changed() => {}
                _ = following.first.changed() => {
                    if let Err(end) = self.say(observed(&mut following)).await {
                        return end;
                    }
                }
            }
        }
    }

    /// Whether others are ahead. If not, the election is about to be told anyway.
    fn is_behind(&self, place: &Taken) -> bool {
        self.position(place) > 0
    }

    fn position(&self, place: &Taken) -> u64 {
        let reader = self.context.node.reader();
        let ahead = queue::ahead(reader, &place.name, place.fence, POSITION_MAX);
        u64::try_from(ahead.unwrap_or(0)).unwrap_or(0)
    }

    /// Sends an event, if the caller still has the right to it.
    async fn say(&self, event: Event) -> Result<(), End> {
        let may = self.context.auth.check_by_name(&self.caller, &self.wanted);
        may.map_err(End::Revoked)?;
        if self.send(event).await { Ok(()) } else { Err(End::Dropped) }
    }

    async fn send(&self, event: Event) -> bool {
        self.answers.send(Ok(v1::CampaignResponse { event: Some(event) })).await.is_ok()
    }

    /// Tells the client that it lost; nothing is left to withdraw.
    async fn lose(&self, reason: Reason, broken: Option<v1::Broken>) -> Option<Message> {
        self.send(Event::Lost(v1::CampaignLost { reason: reason as i32, broken })).await;
        None
    }

    async fn fail(&self, status: Status) {
        // Fails only if the client is gone, which needs no answer.
        self.answers.send(Err(status)).await.ok();
    }
}

fn observed(following: &mut Following) -> Event {
    let first = following.first.borrow_and_update();
    Event::Observed(v1::Observed {
        revision: first.as_ref().map_or(0, |first| first.revision),
        leader: first.as_ref().map(|first| leader(first.place.clone())),
    })
}

fn leader(place: Place) -> v1::Leader {
    let Place { key, fence, session, value, .. } = place;
    v1::Leader { key, fence, session, value }
}
