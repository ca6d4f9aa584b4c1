//! Whether the leader that raft names is still there.
//!
//! Raft keeps the name of its leader until there is another: with pre-vote a member that is cut off
//! never leaves its term. Clients that ask for a leader, health checks and alerts must hear earlier
//! that nobody leads, as they do from etcd.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use openraft::async_runtime::Instant as _;
use openraft::metrics::RaftMetrics;

use conclave_raft_store::types::{NodeId, TypeConfig};

/// Signs of life of a leader.
#[derive(Debug)]
pub(crate) struct Heard {
    begin: Instant,
    /// When the leader last called, in milliseconds since `begin`.
    at_ms: AtomicU64,
    /// How old a sign may be.
    patience: Duration,
    /// How often one came that was late.
    absences: AtomicU64,
}

impl Heard {
    /// As if a leader had just called; without a sign for two election timeouts there is none, because
    /// by then an election would have found another.
    pub(crate) fn new(election_timeout: Duration) -> Self {
        let patience = election_timeout * 2;
        Self {
            begin: Instant::now(),
            at_ms: AtomicU64::new(0),
            patience,
            absences: AtomicU64::new(0),
        }
    }

    /// A leader called and was accepted.
    pub(crate) fn note(&self) {
        let now_ms = u64::try_from(self.begin.elapsed().as_millis()).unwrap_or(u64::MAX);
        let before = Duration::from_millis(self.at_ms.load(Ordering::Relaxed));
        if Duration::from_millis(now_ms).saturating_sub(before) > self.patience {
            self.absences.fetch_add(1, Ordering::Release);
        }
        self.at_ms.store(now_ms, Ordering::Relaxed);
    }

    /// How often a sign came late: until then the others may have done without this member what it does not know yet.
    pub(crate) fn absences(&self) -> u64 {
        self.absences.load(Ordering::Acquire)
    }

    /// The leader that `metrics` names, if this member heard from it lately or, being it, from a
    /// quorum.
    pub(crate) fn leader(&self, metrics: &RaftMetrics<TypeConfig>) -> Option<NodeId> {
        let leader = metrics.current_leader?;
        let is_there = if leader == metrics.id {
            self.hears_quorum(metrics)
        } else {
            let at = Duration::from_millis(self.at_ms.load(Ordering::Relaxed));
            self.begin.elapsed().saturating_sub(at) <= self.patience
        };
        is_there.then_some(leader)
    }

    /// Whether another member answered this one, its leader, lately.
    fn hears(&self, metrics: &RaftMetrics<TypeConfig>, id: NodeId) -> bool {
        let at = metrics.heartbeat.as_ref().and_then(|heard| heard.get(&id).copied().flatten());
        at.is_some_and(|at| at.elapsed() <= self.patience)
    }

    /// The other members, and whether this one heard of them lately: as their leader, or of its own.
    /// Followers do not talk to each other.
    pub(crate) fn peers(&self, metrics: &RaftMetrics<TypeConfig>) -> Vec<(NodeId, bool)> {
        let leader = self.leader(metrics);
        let members = metrics.membership_config.membership().nodes().map(|(id, _)| *id);
        let others = members.filter(|id| *id != metrics.id);
        others.map(|id| (id, leader == Some(id) || self.hears(metrics, id))).collect()
    }

    fn hears_quorum(&self, metrics: &RaftMetrics<TypeConfig>) -> bool {
        let hears = |id: NodeId| id == metrics.id || self.hears(metrics, id);
        let membership = metrics.membership_config.membership();
        membership.get_joint_config().iter().all(|voters| {
            let heard = voters.iter().filter(|id| hears(**id)).count();
            heard > voters.len() / 2
        })
    }
}
