//! Changing who is configured: decided and written by the leader, one change after the other.
//!
//! The rules are `conclave_state_machine::members::rules`. A change is one log entry, so that no leader can
//! leave the cluster half way between two configurations; raft takes it only if nothing changed since the
//! rules were asked, the configuration before is committed, and the leader has committed in its own term.
//!
//! A new member that is to vote begins as a learner whatever its client asked, and becomes a voter when it
//! has what the leader has: it never costs the cluster its quorum while it starts or catches up.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use conclave_proto::internal::{self, change_members_request, change_members_response};
use conclave_raft_store::Reader;
use conclave_raft_store::types::{
    EntryPayload, MemberNode, Membership, NodeId, Nodes, StoredMembership, TypeConfig,
};
use conclave_state_machine::members::rules::{MemberChange, MemberRefusal, Roster, Seat};
use conclave_state_machine::members::{self};
use conclave_state_machine::response::Halt;
use openraft::async_runtime::{Instant as _, WatchReceiver};
use openraft::error::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::raft::Precondition;
use openraft::{ChangeMembers, RaftMetrics, ServerState};
use tokio::sync::Mutex;
use tokio::time::{Instant, MissedTickBehavior};
use tonic::Request;

use super::hand_over::hand_over;
use super::link::Link;
use super::route::{Leader, Route, is_never_sent};
use crate::config::{MembershipSettings, added_member_id};
use crate::metrics::Promotions;

/// Pause before a change is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// How often the leader looks whether a new member has caught up: it then has what the leader had one such
/// time ago.
const CATCH_UP_INTERVAL: Duration = Duration::from_millis(250);
/// Election timeouts within which a member must have been heard to count as reachable, and for which a
/// change waits for members to be heard: a new leader has heard nobody yet.
const REACHABLE_WITHIN: u32 = 2;

/// Why a change was not made, or perhaps not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// It must not be made; nothing is changed.
    #[error(transparent)]
    Refused(#[from] MemberRefusal),
    /// It was not made in time, or that could not be found out.
    #[error("request timed out")]
    Timeout,
    /// The connection to the leader broke; it may have been made.
    #[error("request timed out, possibly due to connection lost")]
    Unknown,
    /// This member is stopping.
    #[error("server stopped")]
    Stopped,
}

/// A change that was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Changed {
    /// Of the log entry.
    pub(crate) index: u64,
    /// The member that was changed.
    pub(crate) id: u64,
}

/// What came of an attempt.
enum Attempt {
    Done(Changed),
    Refused(MemberRefusal),
    /// Certainly not made; worth trying again, perhaps elsewhere.
    Again,
    Unknown,
    Stopped,
}

/// Makes changes of the configuration.
pub(crate) struct Changer {
    pub(crate) route: Route,
    pub(crate) reader: Reader,
    pub(crate) settings: MembershipSettings,
    pub(crate) election_timeout: Duration,
    pub(crate) timeout: Duration,
    pub(crate) promotions: Promotions,
    /// Held by the one change that is being made.
    pub(crate) busy: Mutex<()>,
}

/// The configuration that a change is based on, and what the rules need to know.
struct View {
    stored: Arc<StoredMembership>,
    roster: Roster,
}

type Metrics = RaftMetrics<TypeConfig>;

impl Changer {
    /// Has the leader make a change; returns when it is applied on this member.
    ///
    /// # Errors
    /// [`ChangeError`]; its variants say whether the change may have been made.
    pub(crate) async fn change(&self, change: &MemberChange) -> Result<u64, ChangeError> {
        let made = tokio::time::timeout(self.timeout, self.attempt_until_made(change)).await;
        let changed = made.unwrap_or(Err(ChangeError::Timeout))?;
        // A member that is removed is not told.
        let is_own = *change == MemberChange::Remove { id: self.route.links.member_id() };
        if !is_own {
            let applied = self.reader.wait_applied(changed.index);
            let applied = tokio::time::timeout(self.timeout, applied).await;
            applied.map_err(|_elapsed| ChangeError::Timeout)?;
        }
        Ok(changed.id)
    }

    async fn attempt_until_made(&self, change: &MemberChange) -> Result<Changed, ChangeError> {
        loop {
            let attempt = match self.route.leader() {
                Leader::Nobody => Attempt::Again,
                Leader::Me => self.attempt_here(change).await,
                Leader::Other(id, link) => self.forward(id, &link, change).await,
            };
            match attempt {
                Attempt::Done(changed) => return Ok(changed),
                Attempt::Refused(refusal) => return Err(refusal.into()),
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
                let attempt = tokio::time::timeout(self.timeout, self.attempt_here(&change)).await;
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
            Attempt::Again | Attempt::Stopped => Outcome::NotLeader,
            Attempt::Unknown => Outcome::Unknown,
        };
        answer.set_outcome(outcome);
        answer
    }

    async fn forward(&self, to: NodeId, link: &Link, change: &MemberChange) -> Attempt {
        use change_members_response::Outcome;
        let Ok(mut client) = link.client() else { return Attempt::Again };
        let sender = Some(self.route.links.sender(to));
        let message = internal::ChangeMembersRequest { sender, change: Some(message(change)) };
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
            Outcome::Refused => {
                refusal(answer.refusal()).map_or(Attempt::Unknown, Attempt::Refused)
            }
            Outcome::Unspecified | Outcome::Unknown => Attempt::Unknown,
        }
    }

    async fn attempt_here(&self, change: &MemberChange) -> Attempt {
        let attempt = self.decide(change).await;
        if let MemberChange::Promote { .. } = change {
            match &attempt {
                Attempt::Done(_) => self.promotions.made(),
                Attempt::Refused(refusal) => self.promotions.refused(*refusal),
                Attempt::Again | Attempt::Unknown | Attempt::Stopped => {}
            }
        }
        attempt
    }

    /// Checks a change against the rules and makes it.
    async fn decide(&self, change: &MemberChange) -> Attempt {
        let _one_at_a_time = self.busy.lock().await;
        let patient_until = Instant::now() + self.election_timeout * REACHABLE_WITHIN;
        loop {
            let view = match self.view() {
                Ok(Some(view)) => view,
                Ok(None) => return Attempt::Again,
                Err(_halt) => return Attempt::Stopped,
            };
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

    /// Gives leadership away, so that the next leader can remove this member.
    async fn leave(&self, view: &View) -> Attempt {
        if view.stored.membership().voter_ids().nth(1).is_none() {
            // Those who are to vote have not caught up.
            return Attempt::Refused(MemberRefusal::Unhealthy);
        }
        hand_over(&self.route).await;
        match self.route.leader() {
            Leader::Me => Attempt::Refused(MemberRefusal::Unhealthy),
            Leader::Nobody | Leader::Other(..) => Attempt::Again,
        }
    }

    /// The configuration as this member sees it, `None` if it does not lead.
    fn view(&self) -> Result<Option<View>, Halt> {
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
            is_reachable: self.is_reachable(&now, *id),
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

    fn is_reachable(&self, now: &Metrics, id: NodeId) -> bool {
        let heard = now.heartbeat.as_ref().and_then(|heard| heard.get(&id).copied().flatten());
        id == now.id
            || heard.is_some_and(|at| at.elapsed() <= self.election_timeout * REACHABLE_WITHIN)
    }

    async fn write(&self, view: &View, change: &MemberChange) -> Attempt {
        let membership = view.stored.membership();
        let mut nodes: Nodes = membership.nodes().map(|(id, node)| (*id, node.clone())).collect();
        let mut voters: BTreeSet<u64> = membership.voter_ids().collect();
        let id = match change {
            MemberChange::Add { peer_urls, is_learner } => {
                let id = match self.new_id(peer_urls, &nodes) {
                    Ok(id) => id,
                    Err(_halt) => return Attempt::Stopped,
                };
                let (name, peer_urls) = (String::new(), peer_urls.clone());
                nodes.insert(id, MemberNode { name, peer_urls, is_to_vote: !is_learner });
                id
            }
            MemberChange::Remove { id } => {
                nodes.remove(id);
                voters.remove(id);
                *id
            }
            MemberChange::Promote { id } => {
                voters.insert(*id);
                *id
            }
            MemberChange::Update { id, peer_urls } => {
                let Some(node) = nodes.get(id).cloned() else { return Attempt::Again };
                let node = MemberNode { peer_urls: peer_urls.clone(), ..node };
                return self.write_node(view, *id, node).await;
            }
        };
        let Ok(next) = Membership::new(vec![voters], nodes) else { return Attempt::Again };
        let (blank, guard) = (EntryPayload::Blank, [guard(view)]);
        let written = self.route.raft.append_membership(next, blank, guard).await;
        let written = written.map(|answer| Changed { index: answer.log_id.index, id });
        attempt(written, change)
    }

    async fn write_node(&self, view: &View, id: NodeId, node: MemberNode) -> Attempt {
        let change = MemberChange::Update { id, peer_urls: node.peer_urls.clone() };
        let set = ChangeMembers::SetNodes([(id, node)].into());
        let written = self.route.raft.change_membership_if(set, true, [guard(view)]).await;
        attempt(written.map(|answer| Changed { index: answer.log_id.index, id }), &change)
    }

    /// An id that no member has or had: a member that comes back empty under its old id could vote twice.
    fn new_id(&self, peer_urls: &[String], nodes: &Nodes) -> Result<u64, Halt> {
        let removed = members::removed(&self.reader)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let ids = (now..).map(|at| added_member_id(peer_urls, &self.settings.token, at));
        let mut free = ids.filter(|id| !nodes.contains_key(id) && !removed.contains(id));
        Ok(free.next().expect("a hash of every second to come is not taken"))
    }
}

fn guard(view: &View) -> Precondition<TypeConfig> {
    Precondition::LastMembershipLogId { last_membership_log_id: *view.stored.log_id() }
}

fn matched(now: &Metrics, id: NodeId) -> u64 {
    let matched = now.replication.as_ref().and_then(|all| *all.get(&id)?);
    matched.map_or(0, |id| id.index)
}

type Written = Result<Changed, RaftError<TypeConfig, ClientWriteError<TypeConfig>>>;

fn attempt(written: Written, change: &MemberChange) -> Attempt {
    use ChangeMembershipError::{InProgress, UncommittedLeaderLog};
    match written {
        Ok(changed) => {
            let id = format_args!("{:x}", changed.id);
            tracing::info!(member = %id, ?change, index = changed.index, "changed the members");
            Attempt::Done(changed)
        }
        Err(RaftError::Fatal(_)) => Attempt::Stopped,
        Err(RaftError::APIError(error)) => match error {
            ClientWriteError::LogEntryDiscarded(_) => Attempt::Unknown,
            ClientWriteError::ForwardToLeader(_)
            | ClientWriteError::PreconditionFailed(_)
            | ClientWriteError::ChangeMembershipError(InProgress(_) | UncommittedLeaderLog(_)) => {
                Attempt::Again
            }
            ClientWriteError::ChangeMembershipError(error) => {
                tracing::error!(%error, ?change, "raft refuses what the rules allow");
                Attempt::Refused(MemberRefusal::Unhealthy)
            }
        },
    }
}

/// Makes voters of those who are to be and have caught up, while this member leads, until raft stops.
pub(crate) async fn promote(changer: Arc<Changer>) {
    let mut tick = tokio::time::interval(CATCH_UP_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // What the leader of a term had at the last look.
    let mut before: Option<(u64, u64)> = None;
    loop {
        tick.tick().await;
        let (term, last_index) = {
            let metrics = changer.route.raft.metrics();
            let now = metrics.borrow_watched();
            if now.running_state.is_err() {
                return;
            }
            (now.current_term, now.last_log_index.unwrap_or(0))
        };
        let floor = before.replace((term, last_index)).filter(|(then, _)| *then == term);
        let Some((_, floor)) = floor else { continue };
        // A failure to read stops the member elsewhere.
        if let Ok(Some(view)) = changer.view()
            && let Some(id) = caught_up(&view, floor)
        {
            let _one_at_a_time = changer.busy.lock().await;
            // Raft refuses it if another change came between; then the next look decides.
            let promotion = MemberChange::Promote { id };
            tokio::time::timeout(changer.timeout, changer.write(&view, &promotion)).await.ok();
        }
    }
}

/// A member that is to vote and may: it has everything up to `floor`, and a record of it, which makes sure
/// that it is refused should it ever come back with an empty directory.
fn caught_up(view: &View, floor: u64) -> Option<u64> {
    let membership = view.stored.membership();
    let is_waiting = |id: u64| {
        membership.learner_ids().any(|learner| learner == id)
            && membership.get_node(&id).is_some_and(|node| node.is_to_vote)
    };
    let ready = view.roster.seats.iter().find(|seat| {
        seat.is_started && seat.is_reachable && seat.matched >= floor && is_waiting(seat.id)
    });
    ready.map(|seat| seat.id)
}

fn message(change: &MemberChange) -> change_members_request::Change {
    use change_members_request::Change;
    match change.clone() {
        MemberChange::Add { peer_urls, is_learner } => {
            Change::Add(internal::MemberAdd { peer_urls, is_learner })
        }
        MemberChange::Remove { id } => Change::Remove(id),
        MemberChange::Update { id, peer_urls } => {
            Change::Update(internal::MemberMove { id, peer_urls })
        }
        MemberChange::Promote { id } => Change::Promote(id),
    }
}

fn from_message(message: change_members_request::Change) -> MemberChange {
    use change_members_request::Change;
    match message {
        Change::Add(internal::MemberAdd { peer_urls, is_learner }) => {
            MemberChange::Add { peer_urls, is_learner }
        }
        Change::Remove(id) => MemberChange::Remove { id },
        Change::Update(internal::MemberMove { id, peer_urls }) => {
            MemberChange::Update { id, peer_urls }
        }
        Change::Promote(id) => MemberChange::Promote { id },
    }
}

const REFUSALS: [(MemberRefusal, change_members_response::Refusal); 7] = {
    use change_members_response::Refusal;
    [
        (MemberRefusal::NotEnoughStarted, Refusal::NotEnoughStarted),
        (MemberRefusal::Unhealthy, Refusal::Unhealthy),
        (MemberRefusal::PeerUrlExists, Refusal::PeerUrlExists),
        (MemberRefusal::TooManyLearners, Refusal::TooManyLearners),
        (MemberRefusal::NotFound, Refusal::NotFound),
        (MemberRefusal::NotLearner, Refusal::NotLearner),
        (MemberRefusal::LearnerNotReady, Refusal::LearnerNotReady),
    ]
};

fn refusal_message(refusal: MemberRefusal) -> change_members_response::Refusal {
    let found = REFUSALS.iter().find(|(ours, _)| *ours == refusal);
    found.map_or(change_members_response::Refusal::Unspecified, |(_, message)| *message)
}

fn refusal(message: change_members_response::Refusal) -> Option<MemberRefusal> {
    REFUSALS.iter().find(|(_, other)| *other == message).map(|(ours, _)| *ours)
}
