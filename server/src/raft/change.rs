//! Membership changes: decided and written by the leader, one at a time.
//!
//! The rules are `conclave_state_machine::members::rules`. A change is one log entry, so no leader
//! can leave the cluster half way between two configurations. Raft accepts it only if the
//! configuration has not changed since the rules were checked, the previous configuration is
//! committed, and the leader has committed an entry in its own term.
//!
//! A new member that is to vote starts as a learner, whatever its client asked for, and is promoted
//! once it has caught up with the leader: it never costs the cluster its quorum while it starts or
//! catches up.
//!
//! | module | what |
//! |---|---|
//! | `write` | a change that the rules allow becomes a log entry |
//! | `promote` | new members are promoted to voters |
//! | `message` | changes and refusals between members |

mod message;
mod promote;
mod write;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use conclave_proto::internal::{self, change_members_response};
use conclave_raft_store::Reader;
use conclave_raft_store::command::auth::{caller, caller_message};
use conclave_raft_store::types::{NodeId, StoredMembership, TypeConfig};
use conclave_state_machine::auth::check;
use conclave_state_machine::command::Caller;
use conclave_state_machine::members;
use conclave_state_machine::members::rules::{MemberChange, MemberRefusal, Roster, Seat};
use conclave_state_machine::response::{Halt, Rejection};
use openraft::async_runtime::{Instant as _, WatchReceiver};
use openraft::{RaftMetrics, ServerState};
use tokio::sync::Mutex;
use tokio::time::Instant;
use tonic::Request;

use self::message::{denial, denial_message, from_message, message, refusal, refusal_message};
use super::hand_over::hand_over;
use super::link::Link;
use super::route::{Leader, Route, is_never_sent};
use crate::config::MembershipSettings;
use crate::metrics::Promotions;

pub(crate) use promote::promote;

/// Pause before a change is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// How long a change waits for members to be heard, in election timeouts. One that was heard within this
/// time can be promoted.
const REACHABLE_WITHIN: u32 = 2;

/// Why a change was not made, or may not have been made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// The rules forbid it; nothing is changed.
    #[error(transparent)]
    Refused(#[from] MemberRefusal),
    /// The caller may not change members (checked just before the change is made); nothing is
    /// changed.
    #[error(transparent)]
    Denied(#[from] Denial),
    /// It was not made in time, or its outcome could not be learned.
    #[error("request timed out")]
    Timeout,
    /// The connection to the leader broke; the change may have been made.
    #[error("request timed out, possibly due to connection lost")]
    Unknown,
    /// This member is stopping.
    #[error("server stopped")]
    Stopped,
}

/// Why a caller may not change members.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denial {
    /// The user lacks the root role or no longer exists.
    #[error("permission denied")]
    NoRight,
    /// Authentication is on and the call has no user.
    #[error("user name is empty")]
    NoUser,
    /// The user was authenticated before its name or password last changed.
    #[error("revision of auth store is old")]
    OldUser,
}

/// A change and its caller.
#[derive(Clone, Copy)]
struct Wish<'a> {
    change: &'a MemberChange,
    caller: &'a Caller,
}

/// A change that was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Changed {
    /// Index of its log entry.
    pub(crate) index: u64,
    /// The member that was changed.
    pub(crate) id: u64,
}

/// The outcome of one attempt.
enum Attempt {
    Done(Changed),
    Refused(MemberRefusal),
    Denied(Denial),
    /// Certainly not made; worth another attempt, perhaps on another member.
    Again,
    Unknown,
    Stopped,
}

/// Makes membership changes.
pub(crate) struct Changer {
    pub(crate) route: Route,
    pub(crate) reader: Reader,
    pub(crate) settings: MembershipSettings,
    pub(crate) election_timeout: Duration,
    pub(crate) timeout: Duration,
    pub(crate) promotions: Promotions,
    /// Held while a change is made, so there is one at a time.
    pub(crate) busy: Mutex<()>,
}

/// The configuration that a change is based on, with the facts the rules need.
struct View {
    stored: Arc<StoredMembership>,
    roster: Roster,
}

type Metrics = RaftMetrics<TypeConfig>;

impl Changer {
    /// Has the leader make a change if `caller` may ask for it; returns once it is applied on this
    /// member.
    ///
    /// # Errors
    /// [`ChangeError`]; its variants say whether the change may have been made.
    pub(crate) async fn change(
        &self,
        caller: &Caller,
        change: &MemberChange,
    ) -> Result<u64, ChangeError> {
        let wish = Wish { change, caller };
        let made = tokio::time::timeout(self.timeout, self.attempt_until_made(wish)).await;
        let changed = made.unwrap_or(Err(ChangeError::Timeout))?;
        // A removed member does not receive the entry that removes it.
        let is_own = *change == MemberChange::Remove { id: self.route.links.member_id() };
        if !is_own {
            let applied = self.reader.wait_applied(changed.index);
            let applied = tokio::time::timeout(self.timeout, applied).await;
            applied.map_err(|_elapsed| ChangeError::Timeout)?;
        }
        Ok(changed.id)
    }

    async fn attempt_until_made(&self, wish: Wish<'_>) -> Result<Changed, ChangeError> {
        loop {
            let attempt = match self.route.leader() {
                Leader::Nobody => Attempt::Again,
                Leader::Me => self.attempt_here(wish).await,
                Leader::Other(id, link) => self.forward(id, &link, wish).await,
            };
            match attempt {
                Attempt::Done(changed) => return Ok(changed),
                Attempt::Refused(refusal) => return Err(refusal.into()),
                Attempt::Denied(denial) => return Err(denial.into()),
                Attempt::Unknown => return Err(ChangeError::Unknown),
                Attempt::Stopped => return Err(ChangeError::Stopped),
                Attempt::Again => self.route.wait_for_change(RETRY_PAUSE).await,
            }
        }
    }

    /// Makes a change that another member forwarded.
    pub(crate) async fn change_here(
        &self,
        request: internal::ChangeMembersRequest,
    ) -> internal::ChangeMembersResponse {
        use change_members_response::Outcome;
        let attempt = match request.change.map(from_message) {
            Some(change) if matches!(self.route.leader(), Leader::Me) => {
                let caller = caller(request.caller);
                let wish = Wish { change: &change, caller: &caller };
                let attempt = tokio::time::timeout(self.timeout, self.attempt_here(wish)).await;
                attempt.unwrap_or(Attempt::Unknown)
            }
            _ => Attempt::Again,
        };
        let mut answer = internal::ChangeMembersResponse::default();
        let outcome = match attempt {
            Attempt::Done(Changed { index, id }) => {
                (answer.index, answer.id) = (index, id);
                Outcome::Done
            }
            Attempt::Refused(refusal) => {
                answer.set_refusal(refusal_message(refusal));
                Outcome::Refused
            }
            Attempt::Denied(denial) => {
                answer.set_refusal(denial_message(denial));
                Outcome::Refused
            }
            Attempt::Again | Attempt::Stopped => Outcome::NotLeader,
            Attempt::Unknown => Outcome::Unknown,
        };
        answer.set_outcome(outcome);
        answer
    }

    async fn forward(&self, to: NodeId, link: &Link, wish: Wish<'_>) -> Attempt {
        use change_members_response::Outcome;
        let Ok(mut client) = link.client() else { return Attempt::Again };
        let sender = Some(self.route.links.sender(to));
        let (change, caller) = (Some(message(wish.change)), caller_message(wish.caller));
        let message = internal::ChangeMembersRequest { sender, change, caller };
        let mut request = Request::new(message);
        request.set_timeout(self.timeout);
        let answer = match client.change_members(request).await {
            Ok(answer) => answer.into_inner(),
            Err(status) if is_never_sent(&status) => return Attempt::Again,
            Err(status) => {
                tracing::debug!(member = %format_args!("{to:x}"), %status, "forwarding failed");
                return Attempt::Unknown;
            }
        };
        match answer.outcome() {
            Outcome::Done => Attempt::Done(Changed { index: answer.index, id: answer.id }),
            Outcome::NotLeader => Attempt::Again,
            Outcome::Refused => match (refusal(answer.refusal()), denial(answer.refusal())) {
                (Some(refusal), _) => Attempt::Refused(refusal),
                (None, Some(denial)) => Attempt::Denied(denial),
                (None, None) => Attempt::Unknown,
            },
            Outcome::Unspecified | Outcome::Unknown => Attempt::Unknown,
        }
    }

    async fn attempt_here(&self, wish: Wish<'_>) -> Attempt {
        let attempt = self.decide(wish).await;
        if let MemberChange::Promote { .. } = wish.change {
            match &attempt {
                Attempt::Done(_) => self.promotions.made(),
                Attempt::Refused(refusal) => self.promotions.refused(*refusal),
                Attempt::Denied(_) | Attempt::Again | Attempt::Unknown | Attempt::Stopped => {}
            }
        }
        attempt
    }

    /// Checks a change against the caller's rights and the rules, and makes it.
    async fn decide(&self, Wish { change, caller }: Wish<'_>) -> Attempt {
        let _one_at_a_time = self.busy.lock().await;
        let asked_at = Instant::now();
        let patient_until = asked_at + self.election_timeout * REACHABLE_WITHIN;
        loop {
            self.catch_up(patient_until).await;
            // Who died a moment ago was heard shortly before: only who is heard from now on counts. Whom
            // to remove counts until it was not heard for long: it might be needed.
            let is_patient = Instant::now() < patient_until;
            let is_reachable = |id, silence: Option<Duration>| {
                *change == (MemberChange::Remove { id }) && is_patient
                    || silence.is_some_and(|silence| silence <= asked_at.elapsed())
            };
            let view = match self.view(is_reachable) {
                Ok(Some(view)) => view,
                Ok(None) => return Attempt::Again,
                Err(_halt) => return Attempt::Stopped,
            };
            // Read after the catch-up: every change of rights that was acknowledged before this
            // point, on any member, is visible here.
            match check::administrator(&self.reader, self.reader.auth(), caller) {
                Ok(Ok(())) => {}
                Ok(Err(Rejection::UserEmpty)) => return Attempt::Denied(Denial::NoUser),
                Ok(Err(Rejection::AuthOldRevision)) => return Attempt::Denied(Denial::OldUser),
                Ok(Err(_)) => return Attempt::Denied(Denial::NoRight),
                Err(_halt) => return Attempt::Stopped,
            }
            match view.roster.check(change) {
                Ok(()) => {}
                Err(MemberRefusal::Unhealthy) if Instant::now() < patient_until => {
                    tokio::time::sleep(RETRY_PAUSE).await;
                    continue;
                }
                Err(refusal) => return Attempt::Refused(refusal),
            }
            let own_id = self.route.links.member_id();
            if *change == (MemberChange::Remove { id: own_id }) {
                return self.leave(&view).await;
            }
            match self.write(&view, change).await {
                Attempt::Again => tokio::time::sleep(RETRY_PAUSE).await,
                attempt => return attempt,
            }
        }
    }

    /// Waits until this leader has applied all that any member may have applied: a follower may
    /// already have shown its client that a member has started. Without a quorum this gives up at
    /// `until`, and the rules refuse risky changes from what is known.
    async fn catch_up(&self, until: Instant) {
        // Boxed: the nested futures would exceed the compiler's depth limit.
        let confirmed = Box::pin(self.route.read_index_here());
        if let Ok(Some(index)) = tokio::time::timeout_at(until, confirmed).await {
            self.reader.wait_applied(index).await;
        }
    }

    /// Transfers leadership, so that the next leader can remove this member.
    async fn leave(&self, view: &View) -> Attempt {
        if view.stored.membership().voter_ids().nth(1).is_none() {
            // The others that are to vote have not caught up yet. One that is started and reachable
            // will soon, within the time of this request.
            let own_id = self.route.links.member_id();
            let mut others = view.roster.seats.iter().filter(|seat| seat.id != own_id);
            let is_soon =
                others.any(|seat| !seat.is_learner && seat.is_started && seat.is_reachable);
            return if is_soon {
                Attempt::Again
            } else {
                Attempt::Refused(MemberRefusal::Unhealthy)
            };
        }
        hand_over(&self.route).await;
        match self.route.leader() {
            Leader::Me => Attempt::Refused(MemberRefusal::Unhealthy),
            Leader::Nobody | Leader::Other(..) => Attempt::Again,
        }
    }

    /// The configuration as this member sees it; `None` if it does not lead. `is_reachable` says whether
    /// another member counts as there that this one heard so long ago, if at all.
    fn view(
        &self,
        is_reachable: impl Fn(NodeId, Option<Duration>) -> bool,
    ) -> Result<Option<View>, Halt> {
        let metrics = self.route.raft.metrics();
        let now = metrics.borrow_watched().clone();
        if now.state != ServerState::Leader {
            return Ok(None);
        }
        let published: BTreeSet<u64> =
            members::all(&self.reader)?.into_iter().map(|record| record.id).collect();
        let membership = now.membership_config.membership();
        let voters: BTreeSet<u64> = membership.voter_ids().collect();
        let seats = membership.nodes().map(|(id, node)| Seat {
            id: *id,
            peer_urls: node.peer_urls.clone(),
            is_learner: !voters.contains(id) && !node.is_to_vote,
            is_started: published.contains(id),
            is_reachable: *id == now.id || is_reachable(*id, silence(&now, *id)),
            matched: matched(&now, *id),
        });
        let roster = Roster {
            seats: seats.collect(),
            last_index: now.last_log_index.unwrap_or(0),
            is_strict: self.settings.is_strict,
            learners_max: self.settings.learners_max,
        };
        Ok(Some(View { stored: now.membership_config.clone(), roster }))
    }
}

/// How long ago this leader heard a member.
fn silence(now: &Metrics, id: NodeId) -> Option<Duration> {
    let heard = now.heartbeat.as_ref().and_then(|heard| heard.get(&id).copied().flatten());
    heard.map(|at| at.elapsed())
}

fn matched(now: &Metrics, id: NodeId) -> u64 {
    let matched = now.replication.as_ref().and_then(|all| *all.get(&id)?);
    matched.map_or(0, |id| id.index)
}
