//! One member of the cluster: raft, the state, proposals, reads, leases and watch, behind one handle.
//!
//! | module | what |
//! |---|---|
//! | `start` | starts a member from its settings and directory |
//! | `open`, `tasks` | what is opened before raft starts, and what runs beside raft |
//! | `sink` | passes on what apply did |
//! | `status` | the member's view of itself and of the others |
//! | `publish` | publishes its name and URLs to the cluster |

mod open;
mod publish;
mod sink;
mod start;
mod status;
mod tasks;

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use conclave_proto::etcdserverpb::ResponseHeader;
use conclave_proto::internal;
use conclave_raft_store::{Identity, Reader};
use conclave_state_machine::command::Caller;
use conclave_state_machine::members::rules::MemberChange;
use conclave_state_machine::response::Applied;
use openraft::async_runtime::WatchReceiver;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::auth::Feed;
use crate::config::Settings;
use crate::coordination::registry::Changed;
use crate::coordination::{Takings, Turns};
use crate::lessor::Lessor;
use crate::metrics::{Counts, Pending};
use crate::propose::{Haste, ProposeError, Proposer};
use crate::raft::change::{ChangeError, Changer};
use crate::raft::route::Route;
use crate::raft::standing::Standing;
use crate::read_index::{ReadIndex, ReadIndexError};
use crate::runtime::RaftRuntime;
use crate::space::Space;
use crate::watch::Hub;

pub use start::StartError;
pub use status::{MemberInfo, NodeStatus};

/// How often a flush is checked for, and the pause in between: two minutes in all.
const FLUSH_ATTEMPTS: usize = 2_400;
const FLUSH_PAUSE: Duration = Duration::from_millis(50);

/// Why a leadership transfer did not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransferError {
    /// This member does not lead, or a member other than the target took over.
    #[error("not leader")]
    NotLeader,
    /// The target is not a voter.
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
    parts: Parts,
    /// Cancelled when this member begins to stop.
    stopping: CancellationToken,
    /// The highest index that this member has ever known to be committed.
    committed: AtomicU64,
    // Last: everything above runs on it.
    _runtime: RaftRuntime,
}

/// Everything of a node except the runtime that it runs on.
struct Parts {
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
    takings: Arc<Takings>,
    auth: Arc<Feed>,
    changed_checks: Arc<Changed>,
    space: Arc<Space>,
    header: Header,
    counts: Counts,
    timeout: Duration,
    /// The reason why raft stopped, once it has.
    fatal: watch::Receiver<Option<String>>,
    /// Stops the peer server and its connections.
    stop: CancellationToken,
}

/// Counts a failure when it is dropped.
struct Failing<'a>(&'a Counter);

impl Drop for Failing<'_> {
    fn drop(&mut self) {
        self.0.inc();
    }
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

    /// Proposes a command at once; returns its answer when it is applied on this member.
    ///
    /// # Errors
    /// [`ProposeError`]; its variants say whether the command may have taken effect.
    pub async fn propose(&self, command: internal::Command) -> Result<Applied, ProposeError> {
        self.propose_with(command, Haste::Prompt).await
    }

    /// Like [`Node::propose`], with the urgency that `haste` gives.
    ///
    /// # Errors
    /// As [`Node::propose`].
    pub async fn propose_with(
        &self,
        command: internal::Command,
        haste: Haste,
    ) -> Result<Applied, ProposeError> {
        let counts = &self.parts.counts;
        let _pending = Pending::new(&counts.proposals_pending);
        // As in etcd, a proposal whose caller gives up also counts as failed.
        let failing = Failing(&counts.proposals_failed);
        let answer = self.parts.proposer.propose(command, haste).await;
        if answer.is_ok() {
            std::mem::forget(failing);
        }
        answer
    }

    /// Returns when this member has applied everything that was acknowledged anywhere before the
    /// call, so that a read that follows is linearizable. Cancel-safe.
    ///
    /// # Errors
    /// [`ReadIndexError`].
    pub async fn read_barrier(&self) -> Result<(), ReadIndexError> {
        let index = self.parts.read_index.confirm().await;
        let index = index.inspect_err(|_| _ = self.parts.counts.failed_read_indexes.inc())?;
        self.parts.auth.confirmed(index);
        let applied =
            tokio::time::timeout(self.parts.timeout, self.parts.reader.wait_applied(index)).await;
        applied.map_err(|_elapsed| ReadIndexError::Timeout)
    }

    /// Reads the state as applied on this member.
    #[must_use]
    pub fn reader(&self) -> &Reader {
        &self.parts.reader
    }

    /// Answers keep-alives and remaining times of leases.
    #[must_use]
    pub fn lessor(&self) -> &Lessor {
        &self.parts.lessor
    }

    /// Dispatches events to watchers.
    #[must_use]
    pub fn watch(&self) -> &Arc<Hub> {
        &self.parts.hub
    }

    /// Tracks waiters for locks and leadership.
    pub(crate) fn turns(&self) -> &Arc<Turns> {
        &self.parts.turns
    }

    /// Tells sessions when another caller takes what they hold.
    pub(crate) fn takings(&self) -> &Arc<Takings> {
        &self.parts.takings
    }

    /// The auth state as of the last apply.
    pub(crate) fn auth(&self) -> &Arc<Feed> {
        &self.parts.auth
    }

    /// Instances whose checks may have changed.
    pub(crate) fn changed_checks(&self) -> &Arc<Changed> {
        &self.parts.changed_checks
    }

    /// The space quota.
    pub(crate) fn space(&self) -> &Arc<Space> {
        &self.parts.space
    }

    /// Counters of the node's parts.
    pub(crate) fn counts(&self) -> &Counts {
        &self.parts.counts
    }

    /// The settings as resolved at the start.
    #[must_use]
    pub fn settings(&self) -> &Arc<Settings> {
        &self.settings
    }

    /// Id of this member.
    #[must_use]
    pub fn member_id(&self) -> u64 {
        self.parts.identity.member
    }

    /// Id of the cluster.
    #[must_use]
    pub fn cluster_id(&self) -> u64 {
        self.parts.identity.cluster
    }

    /// The header of an answer at `revision`.
    #[must_use]
    pub fn header(&self, revision: i64) -> ResponseHeader {
        self.parts.header.at(revision)
    }

    /// Cancelled when this member begins to stop; ends streams.
    #[must_use]
    pub fn stopping(&self) -> &CancellationToken {
        &self.stopping
    }

    /// Returns once this member has been removed from the cluster: it must stop and can never
    /// return.
    pub async fn removed(&self) {
        self.parts.standing.removed().await;
    }

    /// Changes the membership; returns the changed member's id once the change is applied here. For
    /// the removal of this member it does not wait for that.
    ///
    /// # Errors
    /// [`ChangeError`]; its variants say whether the change may have been made.
    pub async fn change_members(
        &self,
        caller: &Caller,
        change: &MemberChange,
    ) -> Result<u64, ChangeError> {
        self.parts.changer.change(caller, change).await
    }

    /// Makes another voter the leader; returns when this member follows it.
    ///
    /// # Errors
    /// [`TransferError`].
    pub async fn transfer_leader(&self, to: u64) -> Result<(), TransferError> {
        if !self.is_leader() {
            return Err(TransferError::NotLeader);
        }
        if to == self.parts.identity.member {
            return Ok(());
        }
        if !self.parts.route.raft.voter_ids().any(|id| id == to) {
            return Err(TransferError::BadTarget);
        }
        let mut metrics = self.parts.route.raft.server_metrics();
        let transfer = async {
            let triggered = self.parts.route.raft.trigger().transfer_leader(to).await;
            triggered.map_err(|_fatal| TransferError::Stopped)?;
            loop {
                match metrics.borrow_and_update().current_leader {
                    Some(id) if id == to => return Ok(()),
                    // The target did not take over; only the current leader can try again.
                    Some(id) if id != self.parts.identity.member => {
                        return Err(TransferError::NotLeader);
                    }
                    Some(_) | None => {}
                }
                metrics.changed().await.map_err(|_closed| TransferError::Stopped)?;
            }
        };
        let done = tokio::time::timeout(self.parts.timeout, transfer).await;
        done.unwrap_or(Err(TransferError::Timeout))
    }

    /// Returns when there is a leader, this member has caught up with it, and it has published its
    /// URLs.
    ///
    /// # Errors
    /// The reason why raft stopped, if it did.
    pub async fn wait_ready(&self) -> Result<(), String> {
        tokio::select! {
            reason = self.failed() => Err(reason),
            () = self.publish() => Ok(()),
        }
    }

    /// Flushes the state and cuts the log behind it at once, even if another member needs it: for
    /// tests, and for an operator whose disk is full.
    ///
    /// # Errors
    /// The reason why raft stopped or did not flush.
    pub async fn cut_log(&self) -> Result<(), String> {
        let raft = &self.parts.route.raft;
        let upto = self.parts.reader.applied().map_or(0, |id| id.index);
        let metrics = raft.metrics();
        for _ in 0..FLUSH_ATTEMPTS {
            if metrics.borrow_watched().snapshot.is_some_and(|id| id.index >= upto) {
                let purged = raft.trigger().purge_log(upto).await;
                return purged.map_err(|fatal| fatal.to_string());
            }
            // Raft ignores this during a flush, which may cover less than is needed.
            raft.trigger().snapshot().await.map_err(|fatal| fatal.to_string())?;
            tokio::time::sleep(FLUSH_PAUSE).await;
        }
        Err("the state could not be flushed in time".to_owned())
    }

    /// Timeout of a request.
    pub(crate) fn timeout(&self) -> Duration {
        self.parts.timeout
    }

    pub(crate) fn raft(&self) -> &crate::raft::Raft {
        &self.parts.route.raft
    }

    pub(crate) fn route(&self) -> &Route {
        &self.parts.route
    }

    /// Stops the peer server and its connections.
    pub(crate) fn stop_serving(&self) {
        self.parts.stop.cancel();
    }

    /// Returns the reason once raft has stopped for good; only a restart of the process helps then.
    pub async fn failed(&self) -> String {
        let mut fatal = self.parts.fatal.clone();
        match fatal.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            Err(_closed) => "raft stopped".to_owned(),
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Tasks on other runtimes keep the store open until they are told to end.
        self.stopping.cancel();
        self.parts.stop.cancel();
    }
}
