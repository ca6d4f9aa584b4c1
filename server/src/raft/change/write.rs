//! Writes a change that the rules allow as one log entry.

use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};

use conclave_raft_store::types::{EntryPayload, MemberNode, Membership, NodeId, Nodes, TypeConfig};
use conclave_state_machine::members;
use conclave_state_machine::members::rules::{MemberChange, MemberRefusal};
use conclave_state_machine::response::Halt;
use openraft::ChangeMembers;
use openraft::error::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::raft::Precondition;

use super::{Attempt, Changed, Changer, View};
use crate::config::added_member_id;
use crate::raft::standing;

impl Changer {
    pub(super) async fn write(&self, view: &View, change: &MemberChange) -> Attempt {
        let membership = view.stored.membership();
        let mut nodes: Nodes = membership.nodes().map(|(id, node)| (*id, node.clone())).collect();
        let mut voters: BTreeSet<u64> = membership.voter_ids().collect();
        let mut removed = None;
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
                removed = nodes.remove(id);
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
        if written.is_ok()
            && let Some(removed) = removed
        {
            tokio::spawn(standing::tell(self.route.clone(), removed.peer_urls));
        }
        attempt(written, change)
    }

    async fn write_node(&self, view: &View, id: NodeId, node: MemberNode) -> Attempt {
        let change = MemberChange::Update { id, peer_urls: node.peer_urls.clone() };
        let set = ChangeMembers::SetNodes([(id, node)].into());
        let written = self.route.raft.change_membership_if(set, true, [guard(view)]).await;
        attempt(written.map(|answer| Changed { index: answer.log_id.index, id }), &change)
    }

    /// An id that no member has or ever had: a member that comes back empty under its old id could
    /// vote twice.
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
