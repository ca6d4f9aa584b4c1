//! From a directory and settings to a running member.

use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use conclave_proto::internal::{self, command::Command};
use conclave_raft_store::RocksOptions;
use conclave_raft_store::apply::StateMachine;
use conclave_raft_store::command::auth::inside;
use conclave_raft_store::engine::EngineKind;
use conclave_raft_store::log::{DurationObserver, LogOptions, LogStore};
use conclave_raft_store::store::{StateStore, StoreOptions};
use conclave_raft_store::{Identity, Reader};
use conclave_state_machine::members;
use conclave_state_machine::response::Halt;
use openraft::storage::{RaftLogReader as _, RaftLogStorage as _};
use prometheus_client::metrics::histogram::Histogram;
use tokio::runtime::Handle;
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::sink::{Late, Sink};
use super::{Header, Node};
use crate::auth::Feed;
use crate::auto_compaction;
use crate::backup;
use crate::config::Settings;
use crate::coordination::Turns;
use crate::coordination::registry::Changed;
use crate::data_dir;
use crate::lessor::{Leases, Lessor, LessorParts};
use crate::metrics::Counts;
use crate::propose::{Batcher, Proposer, Waiters};
use crate::raft::bootstrap::{self, BootstrapError, Founding};
use crate::raft::change::{self, Changer};
use crate::raft::compactor::{self, Retention};
use crate::raft::contradicted;
use crate::raft::corruption::{Comparer, Digests};
use crate::raft::discover;
use crate::raft::force;
use crate::raft::heard::Heard;
use crate::raft::link::{Dialer, Links};
use crate::raft::loss::Loss;
use crate::raft::network::NetworkFactory;
use crate::raft::port::PeerPort;
use crate::raft::rounds::rounds;
use crate::raft::route::{self, Route};
use crate::raft::service::{PeerService, Serving};
use crate::raft::snapshot_receive::SnapshotReceiver;
use crate::raft::standing::{self, Standing};
use crate::raft::traffic::Receiving;
use crate::raft::{self, Raft, quorum};
use crate::read_index::{self, ReadIndex};
use crate::runtime::RaftRuntime;
use crate::sweeper;
use crate::tls::{self, Acceptor};
use crate::watch::{Hub, Limits, StoreSource};

/// etcd waits this long for a proposal, and two election timeouts on top.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause before this member tries again to publish itself.
const PUBLISH_PAUSE: Duration = Duration::from_millis(100);

/// Largest command of a member's own, such as the end of a thousand leases: it must pass however
/// little a client may ask for.
const OWN_COMMAND_BYTES_MAX: usize = 64 * 1024;

/// What members speak with each other.
const PEER_PROTOCOLS: [&[u8]; 1] = [b"h2"];

/// Why a member cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state store refuses.
    #[error(transparent)]
    State(#[from] conclave_raft_store::store::OpenError),
    /// The raft log refuses.
    #[error(transparent)]
    Log(#[from] conclave_raft_store::log::OpenError),
    /// It must not take part.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    /// A peer address cannot be listened on.
    #[error("peer port: {0}")]
    Listen(#[source] io::Error),
    /// The files of TLS between members cannot be used.
    #[error("TLS of the peer port: {0}")]
    Tls(#[from] conclave_transport::Error),
    /// The timing flags contradict each other.
    #[error("timing: {0}")]
    Timing(#[from] openraft::ConfigError),
    /// Raft refuses what it finds in the stores.
    #[error("raft cannot start: {0}")]
    Raft(String),
    /// The state cannot be read.
    #[error(transparent)]
    Halt(#[from] Halt),
    /// The system refuses a directory or thread.
    #[error("cannot start: {0}")]
    Io(#[from] io::Error),
}

/// What is open before raft starts.
struct Opened {
    machine: StateMachine,
    reader: Reader,
    waiters: Arc<Waiters>,
    leases: Arc<Leases>,
    turns: Arc<Turns>,
    digests: Arc<Digests>,
    auth: Arc<Feed>,
    changed_checks: Arc<Changed>,
    member_id: Arc<OnceLock<u64>>,
    late: Arc<OnceLock<Late>>,
    counts: Counts,
}

impl Opened {
    fn links(&self, own: Identity, dialer: Dialer) -> Arc<Links> {
        Arc::new(Links::new(own, self.counts.peers.clone(), dialer))
    }

    /// Gives apply what it tells of what it does.
    fn attach(&self, late: Late) {
        assert!(self.late.set(late).is_ok(), "a member opens its state once");
    }
}

/// Everything of a node but the runtime that it runs on.
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
    auth: Arc<Feed>,
    changed_checks: Arc<Changed>,
    header: Header,
    counts: Counts,
    timeout: Duration,
    fatal: watch::Receiver<Option<String>>,
    stop: CancellationToken,
}

pub(super) async fn start(settings: Arc<Settings>) -> Result<Arc<Node>, StartError> {
    let runtime = RaftRuntime::start()?;
    let parts = runtime.handle().spawn(parts(settings.clone(), Handle::current())).await;
    let parts = parts.map_err(io::Error::other)??;
    let stopping = CancellationToken::new();
    // Dispatch works for clients, so it runs on their runtime, not on raft's.
    tokio::spawn(parts.hub.clone().run(stopping.clone()));
    tokio::spawn(parts.turns.clone().run(parts.reader.clone(), stopping.clone()));
    Ok(Arc::new(Node {
        settings,
        identity: parts.identity,
        route: parts.route,
        reader: parts.reader,
        proposer: parts.proposer,
        read_index: parts.read_index,
        lessor: parts.lessor,
        standing: parts.standing,
        changer: parts.changer,
        hub: parts.hub,
        turns: parts.turns,
        auth: parts.auth,
        changed_checks: parts.changed_checks,
        header: parts.header,
        counts: parts.counts,
        timeout: parts.timeout,
        fatal: parts.fatal,
        stopping,
        stop: parts.stop,
        _runtime: runtime,
    }))
}

/// `clients` is the runtime of those who wait for answers.
async fn parts(settings: Arc<Settings>, clients: Handle) -> Result<Parts, StartError> {
    let stop = CancellationToken::new();
    let tasks = TaskTracker::new();
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
    let network = NetworkFactory::new(links.clone(), election);
    let raft = Raft::new(identity.member, config, network, log.clone(), opened.machine)
        .await
        .map_err(|fatal| StartError::Raft(fatal.to_string()))?;
    let heard = Arc::new(Heard::new(election));
    let (rounds, gate) = rounds();
    let proposing = raft.clone();
    tasks.spawn(gate.run(move |batch| route::write(proposing.clone(), batch)));
    let route = Route { raft: raft.clone(), links, heard, rounds: Arc::new(rounds) };
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
        auth: opened.auth,
        changed_checks: opened.changed_checks,
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

fn announce(identity: Identity, name: &str) {
    tracing::info!(
        member = %format_args!("{:x}", identity.member),
        cluster = %format_args!("{:x}", identity.cluster),
        %name,
        "starting"
    );
}

/// Founds the cluster if it is to be.
async fn initialize(raft: &Raft, founding: Founding) {
    let Some(members) = founding.members else { return };
    // Refused only if a leader was faster, which had the same members.
    if let Err(error) = raft.initialize(members).await {
        tracing::info!(%error, "the cluster is founded already");
    }
}

/// Tells why this member must stop once a read ran into damage.
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

fn request_timeout(settings: &Settings) -> Duration {
    REQUEST_TIMEOUT + settings.raft.election_timeout * 2
}

/// What the tasks of a member work on.
struct Tasks<'a> {
    settings: &'a Settings,
    route: Route,
    reader: Reader,
    waiters: Arc<Waiters>,
    leases: Arc<Leases>,
    log: LogStore,
    standing: Arc<Standing>,
    digests: Arc<Digests>,
    counts: Counts,
}

impl Tasks<'_> {
    /// Starts them; returns what peers and clients talk to.
    fn start(self, tasks: &TaskTracker, failed: &watch::Sender<Option<String>>) -> Serving {
        let Self { settings, route, reader, waiters, leases, log, standing, digests, counts } =
            self;
        let timeout = request_timeout(settings);
        let command_bytes_max = settings.limits.request_bytes_max.max(OWN_COMMAND_BYTES_MAX);
        let (proposer, waiting) = Proposer::new(command_bytes_max, timeout);
        let member_id = route.links.member_id();
        let (read_index, unconfirmed) = ReadIndex::new(timeout);
        tasks.spawn(read_index::run(route.clone(), unconfirmed, counts.clone()));
        let batcher = Batcher {
            waiting,
            waiters,
            route: route.clone(),
            read_index: read_index.clone(),
            reader: reader.clone(),
            member_id,
            timeout,
            tasks: tasks.clone(),
        };
        tasks.spawn(batcher.run());
        let lessor = LessorParts {
            leases,
            route: route.clone(),
            reader: reader.clone(),
            proposer: proposer.clone(),
            election_timeout: settings.raft.election_timeout,
            timeout,
            registry: settings.registry,
        };
        let lessor = Lessor::start(lessor, tasks);
        housekeep(settings, (&route.raft, &reader, &proposer), tasks);
        let retention = Retention {
            snapshot_count: settings.raft.snapshot_count,
            catchup_entries: settings.raft.snapshot_catchup_entries,
        };
        tasks.spawn(quorum::guard(route.raft.clone(), settings.raft.election_timeout));
        tasks.spawn(compactor::run(route.raft.clone(), log.clone(), retention));
        let loss = Arc::new(Loss::new(log.clone(), failed.clone()));
        let comparer = Comparer {
            route: route.clone(),
            reader: reader.clone(),
            proposer: proposer.clone(),
            digests,
            loss: loss.clone(),
            checks: settings.checks,
        };
        tasks.spawn(comparer.clone().run());
        let changer = Arc::new(Changer {
            route: route.clone(),
            reader: reader.clone(),
            settings: settings.membership.clone(),
            election_timeout: settings.raft.election_timeout,
            timeout,
            promotions: counts.promotions.clone(),
            busy: Mutex::default(),
        });
        let snapshots = SnapshotReceiver::new(route.raft.clone(), log, reader.clone(), counts);
        tasks.spawn(change::promote(changer.clone()));
        tasks.spawn(standing::watch(route.clone(), standing.clone()));
        Serving {
            route,
            reader,
            proposer,
            read_index,
            lessor,
            snapshots,
            loss,
            comparer,
            standing,
            changer,
        }
    }
}

/// Starts what forgets history and deletes what is forgotten.
fn housekeep(
    settings: &Settings,
    (raft, reader, proposer): (&Raft, &Reader, &Proposer),
    tasks: &TaskTracker,
) {
    let parts = || (raft.clone(), reader.clone(), proposer.clone());
    let (sweeping, compacting) = (parts(), parts());
    tasks.spawn(sweeper::run(sweeping.0, sweeping.1, sweeping.2));
    let mode = settings.checks.auto_compaction;
    tasks.spawn(auto_compaction::run(mode, compacting.0, compacting.1, compacting.2));
}

async fn open(settings: Arc<Settings>, clients: Handle) -> Result<Opened, StartError> {
    let open = move || open_state(&settings, clients);
    tokio::task::spawn_blocking(open).await.map_err(io::Error::other)?
}

fn open_state(settings: &Settings, clients: Handle) -> Result<Opened, StartError> {
    data_dir::create(&settings.data_dir)?;
    data_dir::check(&settings.data_dir)?;
    data_dir::check(&settings.log_dir())?;
    if settings.data_dir.join(backup::UNFINISHED).exists() {
        return Err(BootstrapError::Unrestored(settings.data_dir.clone()).into());
    }
    let waiters = Arc::new(Waiters::new(clients));
    let counts = Counts::new(settings.slow.apply);
    let leases = Arc::new(Leases::new(counts.leases_renewed.clone()));
    let turns = Arc::new(Turns::default());
    let digests = Arc::new(Digests::default());
    let auth = Arc::new(Feed::new(settings.auth.token_ttl));
    let changed_checks = Arc::<Changed>::default();
    let member_id = Arc::new(OnceLock::new());
    let late = Arc::new(OnceLock::new());
    let sink = Sink {
        member_id: member_id.clone(),
        waiters: waiters.clone(),
        leases: leases.clone(),
        counts: counts.clone(),
        turns: turns.clone(),
        digests: digests.clone(),
        auth: auth.clone(),
        changed_checks: changed_checks.clone(),
        late: late.clone(),
    };
    let rocks = RocksOptions { cache_bytes: settings.store.cache_bytes, ..RocksOptions::default() };
    let options = StoreOptions { engine: EngineKind::Rocks(rocks) };
    let (machine, reader) = StateStore::open(&settings.state_dir(), options, Box::new(sink))?;
    leases.load(&reader)?;
    auth.publish(reader.head().auth);
    Ok(Opened {
        machine,
        reader,
        waiters,
        leases,
        turns,
        digests,
        auth,
        changed_checks,
        member_id,
        late,
        counts,
    })
}

/// Continues watching where the stored state ends.
fn open_hub(settings: &Settings, reader: &Reader, header: Header) -> Arc<Hub> {
    let limits = Limits {
        fragment_bytes: settings.limits.receive_bytes_max(),
        leaderless: settings.raft.election_timeout * 3,
        ..Limits::default()
    };
    let route = header.route.clone();
    let has_leader = move || route.get().is_some_and(Route::has_leader);
    let source = StoreSource::new(reader.clone(), move |at| header.at(at), has_leader);
    Hub::new(Arc::new(source), limits)
}

/// Finds out who this member is and opens its log.
async fn identify(
    settings: &Arc<Settings>,
    opened: &Opened,
    dialer: &Dialer,
    service: &PeerService,
) -> Result<(Founding, LogStore), StartError> {
    let (reader, counts) = (&opened.reader, &opened.counts);
    let stored = bootstrap::stored_identity(reader, &settings.log_dir())?;
    if let Some(identity) = stored {
        let id = identity.member;
        if members::removed(reader)?.contains(&id) || standing::mark(&settings.data_dir).exists() {
            return Err(BootstrapError::Removed { id, dir: settings.data_dir.clone() }.into());
        }
        let mut log = open_log(settings, identity.member, counts).await?;
        let has_content = log.get_log_state().await?.last_log_id.is_some()
            || log.get_log_reader().await.read_vote().await?.is_some();
        if has_content {
            contradicted::drop_tail(&mut log, reader.applied()).await?;
            if settings.membership.force_new_cluster {
                force::alone(&mut log, reader, id).await?;
            }
            return Ok((Founding { identity, members: None }, log));
        }
        if reader.applied().is_some() {
            let (present, absent) = ("state store", "raft log");
            return Err(BootstrapError::Torn { present, absent }.into());
        }
        // A start that ended before anything was written: begin again, as the same member.
        drop(log);
    }
    let settings = &discover::settings(settings).await?;
    service.found();
    let founding = bootstrap::found(settings, dialer).await?;
    let (claimed, claim) = (founding.identity, reader.clone());
    tokio::task::spawn_blocking(move || claim.claim(claimed)).await.map_err(io::Error::other)??;
    let log = open_log(settings, founding.identity.member, counts).await?;
    Ok((founding, log))
}

async fn open_log(
    settings: &Arc<Settings>,
    member: u64,
    counts: &Counts,
) -> Result<LogStore, StartError> {
    let dir = settings.log_dir();
    let observer = |durations: &Histogram| -> Option<DurationObserver> {
        let durations = durations.clone();
        Some(Box::new(move |took: Duration| durations.observe(took.as_secs_f64())))
    };
    let options = LogOptions {
        on_sync: observer(&counts.log_syncs),
        on_write: observer(&counts.log_writes),
        ..LogOptions::new(member)
    };
    let opened = tokio::task::spawn_blocking(move || LogStore::open(&dir, options)).await;
    Ok(opened.map_err(io::Error::other)??)
}

/// Opens the peer port and prepares calls to the others.
fn open_peers(
    settings: &Settings,
    port: &PeerService,
    opened: &Opened,
    parts: (&TaskTracker, &CancellationToken),
) -> Result<Dialer, StartError> {
    let (tasks, stop) = parts;
    let (mut acceptor, mut dialer) = (None, Dialer::default());
    if let Some(peer) = &settings.tls.peer {
        let followed = Arc::new(tls::accepting(peer, &PEER_PROTOCOLS)?);
        let counts = opened.counts.tls.port("peer");
        tasks.spawn(tls::follow(followed.clone(), counts.clone(), stop.clone()));
        acceptor = Some(Arc::new(Acceptor::new(followed, peer, counts)));
        dialer.tls = Some(Arc::new(tls::connecting(peer)?));
    }
    let port = PeerPort {
        service: port.clone(),
        receiving: Receiving { peers: opened.counts.peers.clone() },
        tls: acceptor,
        silent: opened.counts.silent("peer"),
        stop: stop.clone(),
    };
    port.listen(&settings.listen, tasks).map_err(StartError::Listen)?;
    Ok(dialer)
}

impl Node {
    /// Tells the cluster this member's name and URLs, if it does not know them, until it does.
    pub(super) async fn publish(&self) {
        let peer_urls =
            self.reader.membership().membership().get_node(&self.identity.member).map_or_else(
                || self.settings.listen.advertise_peer_urls.clone(),
                |node| node.peer_urls.clone(),
            );
        let publish = internal::MemberPublish {
            id: self.identity.member,
            name: self.settings.name.clone(),
            peer_urls,
            client_urls: self.settings.listen.advertise_client_urls.clone(),
        };
        loop {
            if self.read_barrier().await.is_ok() {
                let is_known = members::all(&self.reader).is_ok_and(|members| {
                    members.iter().any(|member| {
                        member.id == publish.id
                            && member.name == publish.name
                            && member.peer_urls == publish.peer_urls
                            && member.client_urls == publish.client_urls
                    })
                });
                let command = inside(Command::MemberPublish(publish.clone()));
                if is_known || self.propose(command).await.is_ok() {
                    return;
                }
            }
            tokio::time::sleep(PUBLISH_PAUSE).await;
        }
    }
}
