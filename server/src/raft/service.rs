//! The calls that other members may make. Each call names the cluster and both members and is
//! refused if they do not match: a member of another cluster, or a new member on an old address,
//! must not be heard.
//!
//! | module | what |
//! |---|---|
//! | `calls` | the calls, one by one |
//! | `append` | the stream over which a leader appends |
//! | `describe` | what a starting member is told about the cluster |

mod append;
mod calls;
mod describe;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use conclave_proto::internal;
use conclave_raft_store::codec::CodecError;
use conclave_raft_store::reader::Reader;
use conclave_raft_store::types::TypeConfig;
use futures::stream::BoxStream;
use openraft::error::Fatal;
use parking_lot::Mutex;
use tonic::Status;

use super::change::Changer;
use super::corruption::Comparer;
use super::loss::Loss;
use super::route::Route;
use super::snapshot_receive::SnapshotReceiver;
use super::standing::{self, REMOVED, Standing};
use crate::lessor::Lessor;
use crate::propose::Proposer;
use crate::read_index::ReadIndex;

/// The answer to a member of another cluster.
const OTHER_CLUSTER: &str = "cluster ID mismatch";
/// Least time between two log lines about it.
const STRANGER_LINES: Duration = Duration::from_secs(10);
/// Runs of other processes that are remembered: far more than there are members.
const RUNS_MAX: usize = 1024;
/// Answer stream of a call.
type Answers<T> = BoxStream<'static, Result<T, Status>>;

/// What the service needs to answer calls, available once this member has started.
pub(crate) struct Serving {
    pub(crate) route: Route,
    pub(crate) reader: Reader,
    pub(crate) proposer: Proposer,
    pub(crate) read_index: ReadIndex,
    pub(crate) lessor: Lessor,
    pub(crate) snapshots: SnapshotReceiver,
    pub(crate) loss: Arc<Loss>,
    pub(crate) comparer: Comparer,
    pub(crate) standing: Arc<Standing>,
    pub(crate) changer: Arc<Changer>,
}

/// Identifies this run of the process, and remembers runs of others that began empty before this
/// one served.
pub(crate) struct Beginning {
    /// A random number, never 0.
    pub(crate) run: u64,
    heard: Mutex<BTreeSet<u64>>,
}

impl Default for Beginning {
    fn default() -> Self {
        Self { run: rand::random_range(1..=u64::MAX), heard: Mutex::default() }
    }
}

impl Beginning {
    /// Notes that a run which begins empty has asked.
    pub(super) fn hear(&self, run: u64) {
        let mut heard = self.heard.lock();
        if run != 0 && heard.len() < RUNS_MAX {
            heard.insert(run);
        }
    }

    /// Whether `run` began empty after this run had begun: whatever cluster it is in by now, this
    /// member was not in it before.
    pub(crate) fn is_older_than(&self, run: u64) -> bool {
        self.heard.lock().contains(&run)
    }
}

/// The peer service. Before [`PeerService::serve`] it only answers that it is starting.
#[derive(Clone, Default)]
pub(crate) struct PeerService {
    serving: Arc<OnceLock<Serving>>,
    /// Whether this member has found its directory empty. Until it serves, peers are told nothing
    /// else.
    is_founding: Arc<AtomicBool>,
    pub(crate) beginning: Arc<Beginning>,
    /// When a call from another cluster was last logged.
    told_of_stranger: Arc<Mutex<Option<Instant>>>,
}

impl PeerService {
    /// From now on tells peers that this member begins empty.
    pub(crate) fn found(&self) {
        self.is_founding.store(true, Ordering::Release);
    }

    /// Starts answering calls.
    pub(crate) fn serve(&self, serving: Serving) {
        if self.serving.set(serving).is_err() {
            unreachable!("a member starts once");
        }
    }

    fn serving(&self) -> Result<&Serving, Status> {
        self.serving.get().ok_or_else(|| Status::unavailable("this member is starting"))
    }

    /// Refuses callers from another cluster, members removed from this one, and calls meant for
    /// another member. An unknown caller is accepted: it may lead before this member learns of it.
    fn check(&self, sender: Option<&internal::Sender>) -> Result<&Serving, Status> {
        let serving = self.serving()?;
        let sender = sender.ok_or_else(|| Status::invalid_argument("a call without sender"))?;
        let links = &serving.route.links;
        if sender.cluster_id != links.cluster_id() {
            self.tell_of_stranger(links.cluster_id(), sender);
            return Err(Status::failed_precondition(OTHER_CLUSTER));
        }
        if sender.to != links.member_id() {
            return Err(Status::failed_precondition("member ID mismatch"));
        }
        if sender.from == links.member_id() {
            return Err(Status::failed_precondition("another member uses this member's ID"));
        }
        if serving.standing.is_removed(sender.from) {
            return Err(Status::failed_precondition(REMOVED));
        }
        Ok(serving)
    }

    /// Logs one line now and then: both members wait for each other, and neither would say why.
    fn tell_of_stranger(&self, own_cluster: u64, sender: &internal::Sender) {
        let mut told = self.told_of_stranger.lock();
        if told.is_some_and(|at| at.elapsed() < STRANGER_LINES) {
            return;
        }
        *told = Some(Instant::now());
        tracing::warn!(
            cluster = %format_args!("{own_cluster:x}"),
            caller = %format_args!("{:x}", sender.from),
            callers_cluster = %format_args!("{:x}", sender.cluster_id),
            "request cluster ID mismatch: a member of another cluster calls this one; members of one cluster need \
             the same --initial-cluster and --initial-cluster-token, and the same backup if they were restored"
        );
    }

    /// Like [`PeerService::check`], for calls of leaders and candidates. If this member is alone in
    /// its cluster, nobody can have joined without it. A caller that takes part all the same knows
    /// this member from an earlier life that its directory has lost; then the log is condemned.
    async fn check_elector(&self, sender: Option<&internal::Sender>) -> Result<&Serving, Status> {
        let serving = self.check(sender)?;
        if serving.loss.is_noted() {
            return Err(Status::failed_precondition("this member stops: its log is condemned"));
        }
        if !serving.standing.is_alone() {
            return Ok(serving);
        }
        let own_id = serving.route.links.member_id();
        let still = serving.route.raft.with_raft_state(move |state| {
            standing::is_alone(own_id, state.membership_state.effective().membership())
        });
        if !still.await.map_err(|fatal| stopped(&fatal))? {
            return Ok(serving);
        }
        let from = sender.map_or(0, |sender| sender.from);
        let reason = format!(
            "member {from:x} takes part in this cluster, but this member has never added it: this member \
             has been started before, and its data directory was emptied or replaced"
        );
        serving.loss.condemn(reason.clone()).await;
        Err(Status::failed_precondition(reason))
    }
}

fn malformed(error: &CodecError) -> Status {
    Status::invalid_argument(error.to_string())
}

fn stopped(fatal: &Fatal<TypeConfig>) -> Status {
    Status::unavailable(fatal.to_string())
}
