//! One candidacy, from its proposal to its end.
//!
//! The stream lives as long as the candidate, also while it leads: a client that has gone is withdrawn
//! after a grace, so that nobody leads without knowing, and a leader that is one no more hears of it.

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
use super::{Turns, checked, is_unknown, withdraw_unless_resumed};
use crate::api::context::{Context, mismatch};
use crate::api::stream_end;
use crate::status::Fault;

/// Largest position that is counted.
const POSITION_MAX: usize = 1_000;

/// A candidacy under way; a task of its own, because a call that is dropped must still be withdrawn.
struct Candidacy {
    context: Context,
    caller: Caller,
    answers: mpsc::Sender<Result<v1::CampaignResponse, Status>>,
    command: internal::Campaign,
}

/// How following a candidate ended.
enum End {
    /// The candidate is gone.
    Gone,
    /// Nobody listens any more.
    Dropped,
    /// The member stops, or is cut off.
    Over(Fault),
}

/// Starts a candidacy; the stream of what becomes of it.
pub(super) fn start(
    context: Context,
    caller: Caller,
    request: v1::CampaignRequest,
) -> Result<mpsc::Receiver<Result<v1::CampaignResponse, Status>>, Status> {
    let v1::CampaignRequest { name, session, value, attempt: number, once, resumes } = request;
    // 0 stands for none.
    let attempt = rand::random::<u64>().max(1);
    let command = internal::Campaign { name, session, value, attempt, number, once, resumes };
    checked(&command::lock::campaign(command.clone()))?;
    let (answers, stream) = mpsc::channel(super::ANSWERS_MAX);
    let background = context.background.clone();
    // Ends by itself: with the candidate, with the stream and a grace, and with the member.
    background.spawn(Candidacy { context, caller, answers, command }.run());
    Ok(stream)
}

impl Candidacy {
    async fn run(self) {
        let message = Message::Campaign(self.command.clone());
        let proposal = self.context.propose(&self.caller, message).await;
        let is_settled = match proposal {
            Ok((Answer::Lock(LockResponse::Places { taken, .. }), _)) => match taken.first() {
                Some(place) => self.follow(place).await,
                // It was resigned, or is not there to be resumed.
                None => self.lose(Reason::Removed).await,
            },
            Ok(_) => self.fail(mismatch()).await,
            Err(status) => {
                let is_settled = !is_unknown(&status);
                self.fail(status).await;
                is_settled
            }
        };
        // One that is recognised stays until its client or its session ends it.
        if !is_settled && self.command.once.is_none_or(|once| once.sequence == 0) {
            let internal::Campaign { name, session, attempt, .. } = self.command;
            let leave = internal::Leave { name, session, fence: 0, attempt, once: None };
            withdraw_unless_resumed(&self.context, Message::Leave(leave)).await;
        }
    }

    /// Follows the candidate to its end. Says whether nothing is left to withdraw.
    async fn follow(&self, place: &Taken) -> bool {
        let following = Turns::follow(self.context.node.turns(), &place.name, &place.key);
        let Ok(following) = following else {
            self.fail(Fault::TooManyRequests.into()).await;
            return false;
        };
        match self.tell(place, following).await {
            End::Gone => {
                let lease = leases::lease(self.context.node.reader(), self.command.session);
                let is_lost = matches!(lease, Ok(None));
                self.lose(if is_lost { Reason::SessionLost } else { Reason::Removed }).await
            }
            End::Dropped => false,
            End::Over(fault) => {
                self.fail(fault.into()).await;
                false
            }
        }
    }

    async fn tell(&self, place: &Taken, mut following: Following) -> End {
        // A member that is cut off would never hear what becomes of the candidate.
        let mut over = std::pin::pin!(stream_end::reason_to_end(self.context.clone(), true));
        let mut led_with = None;
        let mut is_queued = false;
        loop {
            let turn = *following.receiver.borrow_and_update();
            let event = match (turn, led_with) {
                // Whoever led and is not first any more, or is again with another fence, led for nobody
                // meanwhile.
                (Turn::Gone, _) | (Turn::Waiting, Some(_)) => return End::Gone,
                (Turn::Held { fence, .. }, Some(known)) if fence != known => return End::Gone,
                (Turn::Held { fence, revision }, None) => {
                    led_with = Some(fence);
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
                && !self.send(event).await
            {
                return End::Dropped;
            }
            tokio::select! {
                biased;
                fault = &mut over => return End::Over(fault),
                () = self.answers.closed() => return End::Dropped,
                _ = following.receiver.changed() => {}
                _ = following.first.changed() => {
                    if !self.send(observed(&mut following)).await {
                        return End::Dropped;
                    }
                }
            }
        }
    }

    /// Whether others stand before; if not, there is nothing to wait for but to be told so.
    fn is_behind(&self, place: &Taken) -> bool {
        self.position(place) > 0
    }

    fn position(&self, place: &Taken) -> u64 {
        let reader = self.context.node.reader();
        let ahead = queue::ahead(reader, &place.name, place.fence, POSITION_MAX);
        u64::try_from(ahead.unwrap_or(0)).unwrap_or(0)
    }

    async fn send(&self, event: Event) -> bool {
        self.answers.send(Ok(v1::CampaignResponse { event: Some(event) })).await.is_ok()
    }

    /// Returns true: nothing is left to withdraw.
    async fn lose(&self, reason: Reason) -> bool {
        self.send(Event::Lost(v1::CampaignLost { reason: reason as i32 })).await;
        true
    }

    /// Returns true: nothing is left to withdraw.
    async fn fail(&self, status: Status) -> bool {
        // A client that has gone needs no reason.
        self.answers.send(Err(status)).await.ok();
        true
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
