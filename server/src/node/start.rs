//! Starts a member from its settings and directory.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use conclave_raft_store::{Identity, Reader};
use conclave_state_machine::response::Halt;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::open::{identify, open, open_hub, open_peers};
use super::sink::Late;
use super::tasks::Tasks;
use super::{Header, Node, Parts};
use crate::config::Settings;
use crate::raft::bootstrap::{BootstrapError, Founding};
use crate::raft::heard::Heard;
use crate::raft::needed::Needed;
use crate::raft::network::NetworkFactory;
use crate::raft::rounds::{Rounds, rounds};
use crate::raft::route::{self, Route};
use crate::raft::service::PeerService;
use crate::raft::standing::Standing;
use crate::raft::{self, Raft, quorum};
use crate::runtime::RaftRuntime;

/// etcd's timeout for a proposal, to which two election timeouts are added.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a member cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state store cannot be opened.
    #[error(transparent)]
    State(#[from] conclave_raft_store::store::OpenError),
    /// The raft log cannot be opened.
    #[error(transparent)]
    Log(#[from] conclave_raft_store::log::OpenError),
    /// The member must not take part in the cluster.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    /// A peer address cannot be listened on.
    #[error("peer port: {0}")]
    Listen(#[source] io::Error),
    /// The TLS files for the peer port cannot be used.
    #[error("TLS of the peer port: {0}")]
    Tls(#[from] conclave_transport::Error),
    /// The timing flags contradict each other.
    #[error("timing: {0}")]
    Timing(#[from] openraft::ConfigError),
    /// Raft rejects what it finds in the stores.
    #[error("raft cannot start: {0}")]
    Raft(String),
    /// The state cannot be read.
    #[error(transparent)]
    Halt(#[from] Halt),
    /// A directory or thread cannot be created, or another system call failed.
    #[error("cannot start: {0}")]
    Io(#[from] io::Error),
}

pub(super) async fn start(settings: Arc<Settings>) -> Result<Arc<Node>, StartError> {
    let runtime = RaftRuntime::start()?;
    let parts = runtime.handle().spawn(parts(settings.clone(), Handle::current())).await;
    let parts = parts.map_err(io::Error::other)??;
    let stopping = CancellationToken::new();
    // Watch dispatch works for clients, so it runs on their runtime, not on raft's.
    tokio::spawn(parts.hub.clone().run(stopping.clone()));
    tokio::spawn(parts.turns.clone().run(parts.reader.clone(), stopping.clone()));
    let committed = AtomicU64::new(0);
    Ok(Arc::new(Node { settings, parts, stopping, committed, _runtime: runtime }))
}

/// `clients` is the runtime of the tasks that wait for answers.
async fn parts(settings: Arc<Settings>, clients: Handle) -> Result<Parts, StartError> {
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let opened = open(settings.clone(), clients).await?;
    let service = PeerService::default();
    let dialer = open_peers(&settings, &service, &opened, (&tasks, &stop))?;
    let (founding, log) = identify(&settings, &opened, &dialer, &service).await?;
    let identity = founding.identity;
    opened.member_id.set(identity.member).expect("a member is identified once");
    announce(identity, &settings.name);
    let header = Header { identity, route: Arc::default() };
    let hub = open_hub(&settings, &opened.reader, header.clone());
    let links = opened.links(identity, dialer);
    let standing = Arc::new(Standing::load(identity.member, &settings.data_dir, &opened.reader)?);
    opened.attach(Late {
        reader: opened.reader.clone(),
        hub: hub.clone(),
        links: links.clone(),
        standing: standing.clone(),
    });
    let election = settings.raft.election_timeout;
    let config = Arc::new(raft::config(settings.raft.heartbeat_interval, election)?);
    let (heard, needed) = (Arc::new(Heard::new(election)), Arc::<Needed>::default());
    let network = NetworkFactory::new(links.clone(), needed.clone(), election);
    let raft = Raft::new(identity.member, config, network, log.clone(), opened.machine)
        .await
        .map_err(|fatal| StartError::Raft(fatal.to_string()))?;
    let (rounds, retired) = (open_rounds(&raft, &tasks), CancellationToken::new());
    let route = Route { raft: raft.clone(), links, heard, rounds, needed, retired };
    assert!(header.route.set(route.clone()).is_ok(), "a member starts raft once");
    let (fatal_set, fatal) = watch::channel(None);
    let serving = Tasks {
        settings: &settings,
        route,
        reader: opened.reader,
        waiters: opened.waiters,
        leases: opened.leases,
        log,
        standing,
        digests: opened.digests,
        counts: opened.counts.clone(),
    }
    .start(&tasks, &fatal_set);
    tasks.spawn(observe_reads(serving.reader.clone(), fatal_set.clone(), stop.clone()));
    tasks.spawn(quorum::observe(raft.clone(), fatal_set));
    let parts = Parts {
        identity,
        route: serving.route.clone(),
        reader: serving.reader.clone(),
        proposer: serving.proposer.clone(),
        read_index: serving.read_index.clone(),
        lessor: serving.lessor.clone(),
        standing: serving.standing.clone(),
        changer: serving.changer.clone(),
        hub,
        turns: opened.turns,
        takings: opened.takings,
        auth: opened.auth,
        changed_checks: opened.changed_checks,
        space: opened.space,
        header,
        counts: opened.counts,
        timeout: request_timeout(&settings),
        fatal,
        stop,
    };
    service.serve(serving);
    initialize(&raft, founding).await;
    Ok(parts)
}

/// Starts admitting batches into the log of `raft`.
fn open_rounds(raft: &Raft, tasks: &TaskTracker) -> Arc<Rounds> {
    let (rounds, gate) = rounds();
    let raft = raft.clone();
    tasks.spawn(gate.run(move |batch| route::write(raft.clone(), batch)));
    Arc::new(rounds)
}

fn announce(identity: Identity, name: &str) {
    tracing::info!(
        member = %format_args!("{:x}", identity.member),
        cluster = %format_args!("{:x}", identity.cluster),
        %name,
        "starting"
    );
}

/// Founds the cluster if this member is to.
async fn initialize(raft: &Raft, founding: Founding) {
    let Some(members) = founding.members else { return };
    // Refused only if a leader was faster; it had the same members.
    if let Err(error) = raft.initialize(members).await {
        tracing::info!(%error, "the cluster is founded already");
    }
}

/// Reports to `failed` why this member must stop once a read has found damage.
async fn observe_reads(
    reader: Reader,
    failed: watch::Sender<Option<String>>,
    stop: CancellationToken,
) {
    tokio::select! {
        () = stop.cancelled() => {}
        reason = reader.failed() => {
            failed.send_replace(Some(reason));
        }
    }
}

pub(super) fn request_timeout(settings: &Settings) -> Duration {
    REQUEST_TIMEOUT + settings.raft.election_timeout * 2
}
