//! Tracks whether the leader that raft names is still there.
//!
//! Raft keeps the name of its leader until there is another: with pre-vote a member that is cut off
//! never leaves its term. Clients that require a leader, health checks and alerts must learn
//! earlier that there is none, as with etcd.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use openraft::async_runtime::Instant as _;
use openraft::metrics::RaftMetrics;

use conclave_raft_store::types::{NodeId, TypeConfig};

/// Times of the leader's calls.
#[derive(Debug)]
pub(crate) struct Heard {
    begin: Instant,
    /// When the leader last called, in milliseconds since `begin`.
    at_ms: AtomicU64,
    /// Longest time without a call before the leader counts as gone.
    patience: Duration,
    /// How often a call came after a longer gap than `patience`.
    absences: AtomicU64,
}

impl Heard {
    /// Starts as if a leader had just called. The leader counts as gone after two election timeouts
    /// without a call, because by then an election would have found another.
    pub(crate) fn new(election_timeout: Duration) -> Self {
        let patience = election_timeout * 2;
        Self {
            begin: Instant::now(),
            at_ms: AtomicU64::new(0),
            patience,
            absences: AtomicU64::new(0),
        }
    }

    /// Notes that a leader called and was accepted.
    pub(crate) fn note(&self) {
        let now_ms = u64::try_from(self.begin.elapsed().as_millis()).unwrap_or(u64::MAX);
        let before = Duration::from_millis(self.at_ms.load(Ordering::Relaxed));
        if Duration::from_millis(now_ms).saturating_sub(before) > self.patience {
            self.absences.fetch_add(1, Ordering::Release);
        }
        self.at_ms.store(now_ms, Ordering::Relaxed);
    }

    /// Number of gaps longer than `patience`: during a gap the others may have committed things
    /// this member does not know.
    pub(crate) fn absences(&self) -> u64 {
        self.absences.load(Ordering::Acquire)
    }

    /// The leader that `metrics` names, if this member has heard from it recently, or, as the
    /// leader itself, from a quorum.
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

    /// Whether another member has answered this leader recently.
    fn hears(&self, metrics: &RaftMetrics<TypeConfig>, id: NodeId) -> bool {
        let at = metrics.heartbeat.as_ref().and_then(|heard| heard.get(&id).copied().flatten());
        at.is_some_and(|at| at.elapsed() <= self.patience)
    }

    /// The other members, and whether this one has heard from each recently: from all if it leads,
    /// else from its leader only, because followers do not talk to each other.
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
