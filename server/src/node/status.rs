//! A member's view of itself and of the others at one moment.

use std::sync::atomic::Ordering;
use std::time::Duration;

use conclave_raft_store::types::TypeConfig;
use conclave_state_machine::members;
use conclave_state_machine::response::Halt;
use openraft::ServerState;
use openraft::async_runtime::Instant as _;
use openraft::async_runtime::WatchReceiver;
use openraft::metrics::RaftMetrics;

use super::Node;

/// What a member's raft knows at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeStatus {
    /// Member id of the leader, `None` if none is known.
    pub leader: Option<u64>,
    /// Raft term.
    pub term: u64,
    /// Index of the last log entry.
    pub last_index: u64,
    /// Index of the last entry known to be committed.
    pub committed_index: u64,
    /// Index of the last entry applied here.
    pub applied_index: u64,
    /// Index of the last purged entry: the oldest entry in the log, less one.
    pub purged_index: u64,
    /// Whether this member is a learner.
    pub is_learner: bool,
}

/// A configured member, with what it published about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberInfo {
    /// Member id.
    pub id: u64,
    /// Human name; empty before it has started once.
    pub name: String,
    /// URLs for other members.
    pub peer_urls: Vec<String>,
    /// URLs for clients; empty before it has started once.
    pub client_urls: Vec<String>,
    /// Whether it is a learner.
    pub is_learner: bool,
}

impl Node {
    /// What raft knows at this moment.
    #[must_use]
    pub fn status(&self) -> NodeStatus {
        let metrics = self.parts.route.raft.metrics();
        let metrics = metrics.borrow_watched();
        NodeStatus {
            leader: self.parts.route.heard.leader(&metrics),
            term: metrics.vote.leader_id.term,
            last_index: metrics.last_log_index.unwrap_or(0),
            committed_index: self.see_committed(&metrics),
            applied_index: self.parts.reader.applied().map_or(0, |id| id.index),
            purged_index: metrics.purged.map_or(0, |id| id.index),
            is_learner: self.is_learner(),
        }
    }

    /// Highest commit index this member has seen. Raft forgets what it heard from a leader together
    /// with the leader, and readers of metrics take a falling number for a restart.
    fn see_committed(&self, metrics: &RaftMetrics<TypeConfig>) -> u64 {
        let applied = self.parts.reader.applied();
        let known = [&metrics.cluster_committed, &metrics.local_committed, &applied];
        let index = known.into_iter().flatten().map(|id| id.index).max().unwrap_or(0);
        self.committed.fetch_max(index, Ordering::Relaxed).max(index)
    }

    /// The other members, and whether this one has heard from each recently.
    pub(crate) fn peers_heard(&self) -> Vec<(u64, bool)> {
        self.parts.route.heard.peers(&self.parts.route.raft.metrics().borrow_watched())
    }

    /// The other members, and how long ago this leader last heard from each; `None` if it has not
    /// yet.
    pub(crate) fn last_heard(&self) -> Vec<(u64, Option<Duration>)> {
        let metrics = self.parts.route.raft.metrics();
        let metrics = metrics.borrow_watched();
        let heard = |id| metrics.heartbeat.as_ref().and_then(|heard| heard.get(id).copied()?);
        let members = metrics.membership_config.membership().nodes().map(|(id, _)| id);
        let others = members.filter(|id| **id != metrics.id);
        others.map(|id| (*id, heard(id).map(|at| at.elapsed()))).collect()
    }

    /// How often this member heard from its leader again after a gap.
    pub(crate) fn absences(&self) -> u64 {
        self.parts.route.heard.absences()
    }

    /// Waits until raft's core handles a request; `false` if it has stopped.
    pub(crate) async fn raft_lives(&self) -> bool {
        self.parts.route.raft.with_raft_state(|_| ()).await.is_ok()
    }

    /// Whether this member leads, as far as it knows.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.parts.route.raft.server_metrics().borrow_watched().state == ServerState::Leader
    }

    /// Whether a leader is known.
    #[must_use]
    pub fn has_leader(&self) -> bool {
        self.parts.route.has_leader()
    }

    /// Configured members by id, with what they published.
    ///
    /// # Errors
    /// [`Halt`] if the state cannot be read.
    pub fn members(&self) -> Result<Vec<MemberInfo>, Halt> {
        let published = members::all(&self.parts.reader)?;
        let stored = self.parts.reader.membership();
        let membership = stored.membership();
        let is_voter = |id| membership.voter_ids().any(|voter| voter == id);
        let nodes = membership.nodes().map(|(id, node)| {
            let record = published.iter().find(|record| record.id == *id);
            MemberInfo {
                id: *id,
                name: record.map(|record| record.name.clone()).unwrap_or_default(),
                peer_urls: node.peer_urls.clone(),
                client_urls: record.map(|record| record.client_urls.clone()).unwrap_or_default(),
                is_learner: !is_voter(*id) && !node.is_to_vote,
            }
        });
        Ok(nodes.collect())
    }

    /// Whether this member serves only what a learner may.
    #[must_use]
    pub fn is_learner(&self) -> bool {
        self.parts.standing.is_learner()
    }
}
