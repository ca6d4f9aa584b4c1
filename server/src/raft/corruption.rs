//! Compares the members' states: replicas of one log that silently differ are the worst failure.
//!
//! Each member notes the digest of all events at each compaction, which is at the same log entry on
//! all; the leader collects them. With `--corrupt-check-time` the leader also has all members read
//! and hash everything stored, at that interval; with the feature gate `InitialCorruptCheck` each
//! member compares itself this way when it starts. A member that a majority contradicts is fenced:
//! it stops for good and the others go on. If there is no majority, the CORRUPT alarm stops all
//! changes of keys and leases, as in etcd.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use conclave_proto::etcdserverpb as etcd;
use conclave_proto::internal::{self, command::Command};
use conclave_raft_store::Reader;
use conclave_raft_store::command::auth::inside;
use conclave_raft_store::sink::AppliedEntry;
use conclave_raft_store::types::{MemberNode, NodeId, Nodes};
use conclave_state_machine::divergence::{Verdict, judge};
use conclave_state_machine::response::Response;
use openraft::ServerState;
use openraft::async_runtime::WatchReceiver;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::{Code, Status};

use super::link::Purpose;
use super::loss::Loss;
use super::route::Route;
use crate::config::CheckSettings;
use crate::propose::{Haste, Proposer};

/// Digests kept for a leader that asks late.
const NOTES_MAX: usize = 64;
/// How long to keep asking a member until it has applied what the leader has; also the timeout of
/// telling it to stop.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often differing members are compared while some do not answer, before the alarm is raised.
const SPLIT_ATTEMPTS: usize = 2;
/// Pause before a member is asked again.
const ASK_PAUSE: Duration = Duration::from_millis(100);
/// Timeout of hashing everything.
const HASH_TIMEOUT: Duration = Duration::from_secs(120);
/// How often the task checks whether raft still runs while there is nothing to compare.
const IDLE: Duration = Duration::from_secs(1);

/// The point at which members are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Point {
    /// The rolling digest at the compaction in this log entry.
    Compaction(u64),
    /// Everything stored, up to this revision.
    Revision(i64),
}

/// A member's digest at a [`Point`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Digest {
    pub(crate) digest: u64,
    /// The compacted revision when it was taken; digests compare only if this is equal.
    pub(crate) compacted: i64,
}

/// The digests of this member at its last compactions, by log index.
#[derive(Debug)]
pub(crate) struct Digests {
    notes: Mutex<VecDeque<(u64, u64)>>,
    newest: watch::Sender<u64>,
}

impl Default for Digests {
    fn default() -> Self {
        Self { notes: Mutex::default(), newest: watch::Sender::new(0) }
    }
}

impl Digests {
    /// Notes the compactions among the entries just applied.
    pub(crate) fn note(&self, entries: &[AppliedEntry]) {
        for entry in entries {
            // If one entry has several compactions, the last counts; the same on every member.
            let digests = entry.results.iter().filter_map(|result| match result.outcome {
                Ok(Response::Compact { digest }) => Some(digest),
                _ => None,
            });
            let Some(digest) = digests.last() else { continue };
            let mut notes = self.notes.lock();
            if notes.len() == NOTES_MAX {
                notes.pop_front();
            }
            notes.push_back((entry.log_id.index, digest));
            drop(notes);
            self.newest.send_replace(entry.log_id.index);
        }
    }

    fn at(&self, index: u64) -> Option<u64> {
        self.notes.lock().iter().find(|(at, _)| *at == index).map(|(_, digest)| *digest)
    }
}

/// Computes and compares digests; clones are cheap.
#[derive(Clone)]
pub(crate) struct Comparer {
    pub(crate) route: Route,
    pub(crate) reader: Reader,
    pub(crate) proposer: Proposer,
    pub(crate) digests: Arc<Digests>,
    pub(crate) loss: Arc<Loss>,
    /// Settings for comparing everything.
    pub(crate) checks: CheckSettings,
}

impl Comparer {
    /// This member's digest; `None` if it does not have it yet or any more.
    pub(crate) async fn digest(&self, point: Point) -> Option<Digest> {
        match point {
            Point::Compaction(index) => {
                self.digests.at(index).map(|digest| Digest { digest, compacted: 0 })
            }
            Point::Revision(revision) => {
                let reader = self.reader.clone();
                let hashed = tokio::task::spawn_blocking(move || reader.hash_kv(revision)).await;
                let hash = hashed.ok()?.ok()?;
                Some(Digest { digest: hash.hash.into(), compacted: hash.compacted })
            }
        }
    }

    /// Compares states while this member leads (at a start, if set, on every member); runs until
    /// raft stops.
    pub(crate) async fn run(self) {
        let mut newest = self.digests.newest.subscribe();
        let mut last_whole = Instant::now();
        let mut checks_first = self.checks.corruption_first;
        loop {
            let changed = tokio::time::timeout(IDLE, newest.changed()).await.is_ok();
            let (is_leader, has_leader, has_stopped) = {
                let metrics = self.route.raft.metrics();
                let now = metrics.borrow_watched();
                let is_leader = now.state == ServerState::Leader;
                (is_leader, now.current_leader.is_some(), now.running_state.is_err())
            };
            if has_stopped {
                return;
            }
            if checks_first && has_leader {
                checks_first = false;
                self.compare(Point::Revision(self.reader.head().revision)).await;
            }
            if changed && is_leader {
                let index = *newest.borrow_and_update();
                self.compare(Point::Compaction(index)).await;
            }
            if self
                .checks
                .corruption_interval
                .is_some_and(|interval| last_whole.elapsed() >= interval)
            {
                last_whole = Instant::now();
                if is_leader {
                    self.compare(Point::Revision(self.reader.head().revision)).await;
                }
            }
        }
    }

    async fn compare(&self, point: Point) {
        for attempt in 1..=SPLIT_ATTEMPTS {
            let membership = self.route.raft.metrics().borrow_watched().membership_config.clone();
            let nodes: Nodes =
                membership.membership().nodes().map(|(id, node)| (*id, node.clone())).collect();
            let Some(digests) = self.collect(&nodes, point).await else { return };
            match judge(&digests, nodes.len()) {
                Verdict::Equal => {
                    tracing::debug!(?point, members = digests.len(), "members have the same state");
                }
                Verdict::Outvoted(ids) => self.fence_all(&ids, &nodes, point).await,
                // The digests of the missing members may decide it.
                Verdict::Split if digests.len() < nodes.len() && attempt < SPLIT_ATTEMPTS => {
                    tokio::time::sleep(ASK_PAUSE).await;
                    continue;
                }
                Verdict::Split => self.alarm(&digests, point).await,
            }
            return;
        }
    }

    /// Digests of this member and of all that answered and are comparable; `None` if this member
    /// has none.
    async fn collect(&self, nodes: &Nodes, point: Point) -> Option<BTreeMap<NodeId, u64>> {
        let own_id = self.route.links.member_id();
        let others = nodes.iter().filter(|(id, _)| **id != own_id);
        let asked = others.map(|(id, node)| async { (*id, self.ask(*id, node, point).await) });
        let answers = futures::future::join_all(asked).await;
        let own = self.digest(point).await?;
        let digests = answers
            .into_iter()
            .filter_map(|(id, answer)| Some((id, answer?)))
            .chain([(own_id, own)])
            // The digest leaves out what is compacted, so it compares only at the same compacted
            // revision.
            .filter(|(_, answer)| answer.compacted == own.compacted)
            .map(|(id, answer)| (id, answer.digest));
        Some(digests.collect())
    }

    async fn ask(&self, id: NodeId, node: &MemberNode, point: Point) -> Option<Digest> {
        let link = self.route.links.get(id, node, Purpose::Forward);
        let until = Instant::now() + PATIENCE;
        let (index, revision) = match point {
            Point::Compaction(index) => (index, 0),
            Point::Revision(revision) => (0, revision),
        };
        while Instant::now() < until {
            let sender = Some(self.route.links.sender(id));
            let request = internal::DigestRequest { sender, index, revision };
            let mut client = link.client().ok()?;
            let answer = tokio::time::timeout(HASH_TIMEOUT, client.digest(request)).await.ok()?;
            match answer {
                Ok(answer) => {
                    let internal::DigestResponse { is_known, digest, compacted } =
                        answer.into_inner();
                    if is_known {
                        return Some(Digest { digest, compacted });
                    }
                }
                // The connection broke, or the member is still starting.
                Err(status) if may_heal(&status) => link.reset(),
                Err(status) => {
                    tracing::debug!(member = %format_args!("{id:x}"), %status, "no digest");
                    return None;
                }
            }
            tokio::time::sleep(ASK_PAUSE).await;
        }
        None
    }

    async fn fence_all(&self, ids: &[NodeId], nodes: &Nodes, point: Point) {
        let own_id = self.route.links.member_id();
        for id in ids {
            tracing::error!(member = %format_args!("{id:x}"), ?point, "a member has another state than most");
            match nodes.get(id) {
                Some(node) if *id != own_id => self.fence(*id, node, point).await,
                _ => self.stop(own_id, point).await,
            }
        }
    }

    async fn fence(&self, id: NodeId, node: &MemberNode, point: Point) {
        let link = self.route.links.get(id, node, Purpose::Forward);
        let Ok(mut client) = link.client() else { return };
        let sender = Some(self.route.links.sender(id));
        let reason = format!("at {point:?}");
        let told = client.fence(internal::FenceRequest { sender, reason });
        let told = tokio::time::timeout(PATIENCE, told).await;
        let told = told.unwrap_or_else(|_elapsed| Err(Status::deadline_exceeded("no answer")));
        if let Err(status) = told {
            tracing::error!(member = %format_args!("{id:x}"), %status, "it could not be told to stop");
        }
    }

    /// Stops this member for good, because `told_by` found that it differs from most members.
    pub(crate) async fn stop(&self, told_by: NodeId, at: impl std::fmt::Debug) {
        let reason = format!(
            "its state differs from that of most members, as member {told_by:x} found ({at:?})"
        );
        self.loss.condemn(reason).await;
    }

    /// Raises the CORRUPT alarm: nobody can tell who is right, so writes stop until an operator
    /// decides.
    async fn alarm(&self, digests: &BTreeMap<NodeId, u64>, point: Point) {
        let own = digests.get(&self.route.links.member_id());
        let other =
            digests.iter().find(|(_, digest)| Some(*digest) != own).map_or(0, |(id, _)| *id);
        tracing::error!(member = %format_args!("{other:x}"), ?point, "members differ, and none has a majority");
        let alarm = etcd::AlarmRequest {
            action: etcd::alarm_request::AlarmAction::Activate as i32,
            member_id: other,
            alarm: etcd::AlarmType::Corrupt as i32,
        };
        let command = inside(Command::Alarm(alarm));
        if let Err(error) = self.proposer.propose(command, Haste::Prompt).await {
            tracing::error!(%error, "the alarm could not be raised");
        }
    }
}

/// Whether a member that could not be asked may answer next time.
fn may_heal(status: &Status) -> bool {
    use Code::{Cancelled, DeadlineExceeded, Unavailable, Unknown};
    matches!(status.code(), Unavailable | DeadlineExceeded | Cancelled | Unknown)
}
