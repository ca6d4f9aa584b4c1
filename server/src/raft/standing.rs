//! This member's role in the cluster, and which members were removed for good.
//!
//! Follows the applied configuration. A removed member often does not learn of it from the leader,
//! which stops sending to it at once. So the leader that removed it calls it ([`tell`]). After such
//! a call, and whenever it has no leader, [`watch`] asks the other members.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use conclave_proto::internal::DescribeRequest;
use conclave_raft_store::Reader;
use conclave_raft_store::types::Membership;
use conclave_state_machine::members;
use conclave_state_machine::response::Halt;
use futures::future::join_all;
use openraft::async_runtime::WatchReceiver;
use parking_lot::RwLock;
use tokio::sync::{Notify, watch as channel};
use tokio::time::MissedTickBehavior;

use super::route::Route;
use crate::propose::{ProposeError, Waiters};

/// How often a member without a leader asks the others whether it was removed.
const ASK_INTERVAL: Duration = Duration::from_millis(500);
/// How long it keeps asking after it was told of its removal: the others may not know yet.
const TOLD_FOR: Duration = Duration::from_secs(10);
/// Timeout of one such call.
const ASK_TIMEOUT: Duration = Duration::from_millis(1500);
/// How often a member is told that it was removed, and the pause after a failed call. If no call
/// arrives, the member asks by itself when it misses its leader.
const TELLINGS_MAX: usize = 5;
const TELL_PAUSE: Duration = Duration::from_millis(200);

/// Error text for calls of removed members, and in a removed member's own errors.
pub(crate) const REMOVED: &str = "the member has been permanently removed from the cluster";

/// What this member may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// A voter, or a member that will be one once it has caught up, or one that does not know its
    /// role yet.
    Full,
    /// A non-voting member that does not serve linearizable requests.
    Learner,
    /// Removed: it must stop.
    Removed,
}

/// The role of this member, and the removed members.
#[derive(Debug)]
pub(crate) struct Standing {
    own_id: u64,
    mark: PathBuf,
    role: channel::Sender<Role>,
    removed: RwLock<BTreeSet<u64>>,
    /// Whether this member is the only one in the applied configuration.
    is_alone: AtomicBool,
    /// Notified when another member says that this one was removed.
    told: Notify,
}

impl Standing {
    /// Loads the standing from the stored state.
    ///
    /// # Errors
    /// [`Halt`] if it cannot be read.
    pub(crate) fn load(own_id: u64, data_dir: &Path, reader: &Reader) -> Result<Self, Halt> {
        let role = channel::Sender::new(Role::Full);
        let standing = Self {
            own_id,
            mark: mark(data_dir),
            role,
            removed: RwLock::default(),
            is_alone: AtomicBool::new(false),
            told: Notify::new(),
        };
        standing.follow(reader)?;
        Ok(standing)
    }

    /// Updates the standing from the configuration just applied.
    ///
    /// # Errors
    /// [`Halt`] if it cannot be read.
    pub(crate) fn follow(&self, reader: &Reader) -> Result<(), Halt> {
        let removed = members::removed(reader)?;
        let applied = reader.membership();
        let role = if removed.contains(&self.own_id) {
            Role::Removed
        } else {
            role(self.own_id, applied.membership())
        };
        *self.removed.write() = removed;
        // Set after `removed`: a call of a removed member must not be taken for a sign of an
        // earlier life.
        self.is_alone.store(is_alone(self.own_id, applied.membership()), Ordering::Release);
        self.become_(role);
        Ok(())
    }

    fn become_(&self, role: Role) {
        // Removal is final.
        self.role.send_if_modified(|now| {
            let is_new = *now != role && *now != Role::Removed;
            if is_new {
                *now = role;
            }
            is_new
        });
    }

    /// Whether a member was removed, as far as applied here.
    pub(crate) fn is_removed(&self, id: u64) -> bool {
        self.removed.read().contains(&id)
    }

    /// Whether this member is the only one in its cluster, as far as applied here.
    pub(crate) fn is_alone(&self) -> bool {
        self.is_alone.load(Ordering::Acquire)
    }

    /// Whether this member is a learner and serves only what a learner may.
    pub(crate) fn is_learner(&self) -> bool {
        *self.role.borrow() == Role::Learner
    }

    /// Another member says that this one was removed: [`watch`] asks the others.
    pub(crate) fn hear_removal(&self) {
        self.told.notify_one();
    }

    /// Returns once this member is removed.
    pub(crate) async fn removed(&self) {
        let mut role = self.role.subscribe();
        // The sender is ours, so this cannot end early.
        role.wait_for(|role| *role == Role::Removed).await.ok();
    }
}

/// Whether the configuration has no other voter or learner.
pub(crate) fn is_alone(own_id: u64, membership: &Membership) -> bool {
    let mut nodes = membership.nodes();
    nodes.next().is_some_and(|(id, _)| *id == own_id) && nodes.next().is_none()
}

fn role(own_id: u64, membership: &Membership) -> Role {
    let is_voter = membership.voter_ids().any(|id| id == own_id);
    match membership.get_node(&own_id) {
        Some(node) if !is_voter && !node.is_to_vote => Role::Learner,
        _ => Role::Full,
    }
}

/// Tells a member that it was just removed, so that it learns of it before it misses its leader.
/// The member does not trust this call but asks the others.
pub(crate) async fn tell(route: Route, peer_urls: Vec<String>) {
    let links = &route.links;
    let (cluster_id, from) = (links.cluster_id(), links.member_id());
    let request = DescribeRequest { cluster_id, from, is_removal: true, ..Default::default() };
    for url in peer_urls.iter().cycle().take(TELLINGS_MAX) {
        match links.dialer().describe(url, request, ASK_TIMEOUT).await {
            Ok(answer) if !answer.is_starting => return,
            Ok(_) => {}
            Err(status) => {
                tracing::debug!(url, %status, "cannot tell a member that it was removed")
            }
        }
        tokio::time::sleep(TELL_PAUSE).await;
    }
}

/// Asks the other members whether this one was removed, whenever it has no leader or was told so.
/// Ends when it was removed, failing all proposals that wait here, or when raft stops.
pub(crate) async fn watch(route: Route, standing: Arc<Standing>, waiters: Arc<Waiters>) {
    let mut tick = tokio::time::interval(ASK_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told_at: Option<Instant> = None;
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            // Asks only at the next tick, so that repeated calls cause no extra work.
            () = standing.told.notified() => {
                told_at = Some(Instant::now());
                continue;
            }
            () = standing.removed() => {}
        }
        let is_told = told_at.is_some_and(|at| at.elapsed() < TOLD_FOR);
        if *standing.role.borrow() == Role::Removed {
            // Fails everything that waits for what a removed member cannot do.
            route.retired.cancel();
            waiters.fail_all(ProposeError::Stopped);
            return;
        }
        if route.raft.metrics().borrow_watched().running_state.is_err() {
            return;
        }
        if (is_told || !route.has_leader()) && is_told_removed(&route, standing.own_id).await {
            tracing::warn!("other members say that this one was removed");
            let mark = standing.mark.clone();
            let marked = tokio::task::spawn_blocking(move || write_mark(&mark)).await;
            if let Err(error) = marked.map_err(io::Error::other).flatten() {
                // Without the mark, the next start asks again.
                tracing::warn!(%error, "cannot note that this member was removed");
            }
            standing.become_(Role::Removed);
        }
    }
}

/// The file in the data directory that marks a member as removed.
pub(crate) fn mark(data_dir: &Path) -> PathBuf {
    data_dir.join("removed")
}

fn write_mark(mark: &Path) -> io::Result<()> {
    let file = std::fs::File::create(mark)?;
    file.sync_all()?;
    // The directory entry must survive a power failure too.
    let Some(dir) = mark.parent() else { return Ok(()) };
    std::fs::File::open(dir)?.sync_all()
}

async fn is_told_removed(route: &Route, own_id: u64) -> bool {
    let membership = route.raft.metrics().borrow_watched().membership_config.clone();
    let others = membership.membership().nodes().filter(|(id, _)| **id != own_id);
    let urls: Vec<String> =
        others.filter_map(|(_, node)| node.peer_urls.first().cloned()).collect();
    let request = DescribeRequest {
        cluster_id: route.links.cluster_id(),
        from: own_id,
        ..Default::default()
    };
    let dialer = route.links.dialer();
    let answers = urls.iter().map(|url| dialer.describe(url, request, ASK_TIMEOUT));
    // A member of another cluster refuses; a lagging one says no.
    join_all(answers).await.into_iter().flatten().any(|answer| answer.caller_is_removed)
}
