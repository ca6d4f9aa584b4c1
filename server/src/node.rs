//! One member of the cluster: raft, the state, proposals, reads, leases and watch, behind one handle.

mod sink;
mod start;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use conclave_proto::etcdserverpb::ResponseHeader;
use conclave_proto::internal;
use conclave_raft_store::{Identity, Reader};
use conclave_state_machine::members;
use conclave_state_machine::members::rules::MemberChange;
use conclave_state_machine::response::{Applied, Halt};
use openraft::ServerState;
use openraft::async_runtime::WatchReceiver;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::auth::Feed;
use crate::config::Settings;
use crate::coordination::Turns;
use crate::coordination::registry::Changed;
use crate::lessor::Lessor;
use crate::metrics::{Counts, Pending};
use crate::propose::{ProposeError, Proposer};
use crate::raft::change::{ChangeError, Changer};
use crate::raft::route::Route;
use crate::raft::standing::Standing;
use crate::read_index::{ReadIndex, ReadIndexError};
use crate::runtime::RaftRuntime;
use crate::watch::Hub;

pub use start::StartError;

/// How often a flush is asked for, and the pause between: two minutes in all.
const FLUSH_ATTEMPTS: usize = 2_400;
const FLUSH_PAUSE: Duration = Duration::from_millis(50);

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
    /// Index of the oldest entry in the log, less one.
    pub purged_index: u64,
    /// This member is not to vote.
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
    /// It is not to vote.
    pub is_learner: bool,
}

/// Why a leadership transfer did not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransferError {
    /// This member does not lead.
    #[error("not leader")]
    NotLeader,
    /// The target is no voter.
    #[error("bad leader transferee")]
    BadTarget,
    /// The target did not become leader in time.
    #[error("request timed out")]
    Timeout,
    /// This member is stopping.
    #[error("server stopped")]
    Stopped,
}

/// Makes response headers; clones are cheap.
#[derive(Clone)]
struct Header {
    identity: Identity,
    /// Set once raft runs.
    route: Arc<OnceLock<Route>>,
}

impl Header {
    fn at(&self, revision: i64) -> ResponseHeader {
        ResponseHeader {
            cluster_id: self.identity.cluster,
            member_id: self.identity.member,
            revision,
            raft_term: self.route.get().map_or(0, Route::term),
        }
    }
}

/// A running member.
pub struct Node {
    settings: Arc<Settings>,
    identity: Identity,
    route: Route,
    reader: Reader,
    proposer: Proposer,
    read_index: ReadIndex,
    lessor: Lessor,
    standing: Arc<Standing>,
    changer: Arc<Changer>,
    hub: Arc<Hub>,
    turns: Arc<Turns>,
    auth: Arc<Feed>,
    changed_checks: Arc<Changed>,
    header: Header,
    counts: Counts,
    timeout: Duration,
    /// Why raft stopped, once it has.
    fatal: watch::Receiver<Option<String>>,
    /// Cancelled when this member begins to stop.
    stopping: CancellationToken,
    /// Ends the peer server and its connections.
    stop: CancellationToken,
    // Last: everything above lives on it.
    _runtime: RaftRuntime,
}

impl Node {
    /// Opens the directory of `settings`, founds or joins the cluster, and begins to take part in it.
    ///
    /// Returns before there is a leader; see [`Node::wait_ready`].
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(settings: Arc<Settings>) -> Result<Arc<Self>, StartError> {
        start::start(settings).await
    }

    /// Proposes a command; returns its answer once it is applied on this member.
    ///
    /// # Errors
    /// [`ProposeError`]; its variants say whether the command may have taken effect.
    pub async fn propose(&self, command: internal::Command) -> Result<Applied, ProposeError> {
        let _pending = Pending::new(&self.counts.proposals_pending);
        let answer = self.proposer.propose(command).await;
        if answer.is_err() {
            self.counts.proposals_failed.inc();
        }
        answer
    }

    /// Returns when this member has applied everything that was acknowledged anywhere before the
    /// call: what is read then is linearizable. Cancel-safe.
    ///
    /// # Errors
    /// [`ReadIndexError`].
    pub async fn read_barrier(&self) -> Result<(), ReadIndexError> {
        let index = self.read_index.confirm().await;
        let index = index.inspect_err(|_| _ = self.counts.failed_read_indexes.inc())?;
        let applied = tokio::time::timeout(self.timeout, self.reader.wait_applied(index)).await;
        applied.map_err(|_elapsed| ReadIndexError::Timeout)
    }

    /// Reads of the state as applied on this member.
    #[must_use]
    pub fn reader(&self) -> &Reader {
        &self.reader
    }

    /// Keep-alives and remaining times of leases.
    #[must_use]
    pub fn lessor(&self) -> &Lessor {
        &self.lessor
    }

    /// Who hears of which event.
    #[must_use]
    pub fn watch(&self) -> &Arc<Hub> {
        &self.hub
    }

    /// Who waits for which lock.
    pub(crate) fn turns(&self) -> &Arc<Turns> {
        &self.turns
    }

    /// What apply tells about users.
    pub(crate) fn auth(&self) -> &Arc<Feed> {
        &self.auth
    }

    /// Instances whose checks may have changed.
    pub(crate) fn changed_checks(&self) -> &Arc<Changed> {
        &self.changed_checks
    }

    /// What its parts count.
    pub(crate) fn counts(&self) -> &Counts {
        &self.counts
    }

    /// As resolved at the start.
    #[must_use]
    pub fn settings(&self) -> &Arc<Settings> {
        &self.settings
    }

    /// Id of this member.
    #[must_use]
    pub fn member_id(&self) -> u64 {
        self.identity.member
    }

    /// Id of the cluster.
    #[must_use]
    pub fn cluster_id(&self) -> u64 {
        self.identity.cluster
    }

    /// The header of an answer that speaks of `revision`.
    #[must_use]
    pub fn header(&self, revision: i64) -> ResponseHeader {
        self.header.at(revision)
    }

    /// What raft knows now.
    #[must_use]
    pub fn status(&self) -> NodeStatus {
        let metrics = self.route.raft.metrics();
        let metrics = metrics.borrow_watched();
        NodeStatus {
            leader: self.route.heard.leader(&metrics),
            term: metrics.vote.leader_id.term,
            last_index: metrics.last_log_index.unwrap_or(0),
            committed_index: metrics.cluster_committed.map_or(0, |id| id.index),
            applied_index: self.reader.applied().map_or(0, |id| id.index),
            purged_index: metrics.purged.map_or(0, |id| id.index),
            is_learner: self.is_learner(),
        }
    }

    /// The other members, and whether this one heard of them lately.
    pub(crate) fn peers_heard(&self) -> Vec<(u64, bool)> {
        self.route.heard.peers(&self.route.raft.metrics().borrow_watched())
    }

    /// Waits for raft's next turn; says whether it takes any more.
    pub(crate) async fn raft_lives(&self) -> bool {
        self.route.raft.with_raft_state(|_| ()).await.is_ok()
    }

    /// Whether this member leads, as far as it knows.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.route.raft.server_metrics().borrow_watched().state == ServerState::Leader
    }

    /// Whether a leader is known.
    #[must_use]
    pub fn has_leader(&self) -> bool {
        self.route.has_leader()
    }

    /// Cancelled when this member begins to stop: what streams end by.
    #[must_use]
    pub fn stopping(&self) -> &CancellationToken {
        &self.stopping
    }

    /// Configured members by id, with what they published.
    ///
    /// # Errors
    /// [`Halt`] if the state cannot be read.
    pub fn members(&self) -> Result<Vec<MemberInfo>, Halt> {
        let published = members::all(&self.reader)?;
        let stored = self.reader.membership();
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
        self.standing.is_learner()
    }

    /// Returns once this member was removed from the cluster: it must stop, and never comes back.
    pub async fn removed(&self) {
        self.standing.removed().await;
    }

    /// Changes who is configured; returns the changed member's id once the change is applied here. The
    /// answer of a removal of this very member comes without that.
    ///
    /// # Errors
    /// [`ChangeError`]; its variants say whether the change may have been made.
    pub async fn change_members(&self, change: &MemberChange) -> Result<u64, ChangeError> {
        self.changer.change(change).await
    }

    /// Makes another voter the leader; returns when this member follows it.
    ///
    /// # Errors
    /// [`TransferError`].
    pub async fn transfer_leader(&self, to: u64) -> Result<(), TransferError> {
        if !self.is_leader() {
            return Err(TransferError::NotLeader);
        }
        if to == self.identity.member {
            return Ok(());
        }
        if !self.route.raft.voter_ids().any(|id| id == to) {
            return Err(TransferError::BadTarget);
        }
        let mut metrics = self.route.raft.server_metrics();
        let transfer = async {
            let triggered = self.route.raft.trigger().transfer_leader(to).await;
            triggered.map_err(|_fatal| TransferError::Stopped)?;
            while metrics.borrow_and_update().current_leader != Some(to) {
                metrics.changed().await.map_err(|_closed| TransferError::Stopped)?;
            }
            Ok(())
        };
        let done = tokio::time::timeout(self.timeout, transfer).await;
        done.unwrap_or(Err(TransferError::Timeout))
    }

    /// Returns when there is a leader, this member has applied what it has, and has told its URLs.
    ///
    /// # Errors
    /// The reason why raft stopped, if it did.
    pub async fn wait_ready(&self) -> Result<(), String> {
        tokio::select! {
            reason = self.failed() => Err(reason),
            () = self.publish() => Ok(()),
        }
    }

    /// Flushes the state and cuts the log behind it at once, whoever may need it: for tests, and for
    /// an operator whose disk is full.
    ///
    /// # Errors
    /// The reason why raft stopped or did not flush.
    pub async fn cut_log(&self) -> Result<(), String> {
        let raft = &self.route.raft;
        let upto = self.reader.applied().map_or(0, |id| id.index);
        let metrics = raft.metrics();
        for _ in 0..FLUSH_ATTEMPTS {
            if metrics.borrow_watched().snapshot.is_some_and(|id| id.index >= upto) {
                let purged = raft.trigger().purge_log(upto).await;
                return purged.map_err(|fatal| fatal.to_string());
            }
            // Raft ignores this while it flushes already, perhaps less than is wanted.
            raft.trigger().snapshot().await.map_err(|fatal| fatal.to_string())?;
            tokio::time::sleep(FLUSH_PAUSE).await;
        }
        Err("the state could not be flushed in time".to_owned())
    }

    pub(crate) fn raft(&self) -> &crate::raft::Raft {
        &self.route.raft
    }

    pub(crate) fn route(&self) -> &Route {
        &self.route
    }

    /// Ends the peer server and its connections.
    pub(crate) fn stop_serving(&self) {
        self.stop.cancel();
    }

    /// Returns the reason once raft has stopped for good; nothing but an exit helps then.
    pub async fn failed(&self) -> String {
        let mut fatal = self.fatal.clone();
        match fatal.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            Err(_closed) => "raft stopped".to_owned(),
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // What runs on other runtimes holds the store open until it is told to end.
        self.stopping.cancel();
        self.stop.cancel();
    }
}
