//! Opens what a member needs before raft starts: state, log and ports; and finds out its identity.

use std::io;
use std::sync::{Arc, OnceLock};

use conclave_raft_store::apply::StateMachine;
use conclave_raft_store::engine::EngineKind;
use conclave_raft_store::log::{LogFailure, LogOptions, LogStore};
use conclave_raft_store::store::{StateStore, StoreOptions};
use conclave_raft_store::{Identity, Reader, RocksOptions};
use conclave_state_machine::members;
use openraft::storage::{RaftLogReader as _, RaftLogStorage as _};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Header;
use super::sink::{Late, Sink};
use super::start::StartError;
use crate::auth::Feed;
use crate::config::Settings;
use crate::coordination::registry::Changed;
use crate::coordination::{Takings, Turns};
use crate::lessor::Leases;
use crate::metrics::Counts;
use crate::propose::Waiters;
use crate::raft::bootstrap::{self, BootstrapError, Founding};
use crate::raft::corruption::Digests;
use crate::raft::link::{Dialer, Links};
use crate::raft::port::PeerPort;
use crate::raft::route::Route;
use crate::raft::service::PeerService;
use crate::raft::traffic::Receiving;
use crate::raft::{contradicted, discover, force, standing};
use crate::space::Space;
use crate::tls::{self, Acceptor};
use crate::watch::{Hub, Limits, StoreSource};
use crate::{backup, data_dir, etcd_dir, logging};

/// ALPN protocols of the peer port.
const PEER_PROTOCOLS: [&[u8]; 1] = [b"h2"];

/// What is open before raft starts.
pub(super) struct Opened {
    pub(super) machine: StateMachine,
    pub(super) reader: Reader,
    pub(super) waiters: Arc<Waiters>,
    pub(super) leases: Arc<Leases>,
    pub(super) turns: Arc<Turns>,
    pub(super) takings: Arc<Takings>,
    pub(super) digests: Arc<Digests>,
    pub(super) auth: Arc<Feed>,
    pub(super) changed_checks: Arc<Changed>,
    pub(super) space: Arc<Space>,
    pub(super) member_id: Arc<OnceLock<u64>>,
    pub(super) late: Arc<OnceLock<Late>>,
    pub(super) counts: Counts,
}

impl Opened {
    pub(super) fn links(&self, own: Identity, dialer: Dialer) -> Arc<Links> {
        Arc::new(Links::new(own, self.counts.peers.clone(), dialer))
    }

    /// Gives the apply sink the parts that are made from the open state.
    pub(super) fn attach(&self, late: Late) {
        assert!(self.late.set(late).is_ok(), "a member opens its state once");
    }
}

pub(super) async fn open(settings: Arc<Settings>, clients: Handle) -> Result<Opened, StartError> {
    let open = move || open_state(&settings, clients);
    tokio::task::spawn_blocking(open).await.map_err(io::Error::other)?
}

fn open_state(settings: &Settings, clients: Handle) -> Result<Opened, StartError> {
    take_over_etcds(settings)?;
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
    let takings = Arc::new(Takings::default());
    let digests = Arc::new(Digests::default());
    let auth = Arc::new(Feed::new(settings.auth.token_ttl));
    let changed_checks = Arc::<Changed>::default();
    let space = Arc::new(Space::new(settings.store.quota_bytes));
    let member_id = Arc::new(OnceLock::new());
    let late = Arc::new(OnceLock::new());
    let sink = Sink {
        member_id: member_id.clone(),
        waiters: waiters.clone(),
        leases: leases.clone(),
        counts: counts.clone(),
        turns: turns.clone(),
        takings: takings.clone(),
        digests: digests.clone(),
        auth: auth.clone(),
        changed_checks: changed_checks.clone(),
        space: space.clone(),
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
        takings,
        digests,
        auth,
        changed_checks,
        space,
        member_id,
        late,
        counts,
    })
}

/// Takes over a directory restored by etcd's tools. A directory with our state is left alone,
/// whatever else is in it.
fn take_over_etcds(settings: &Settings) -> Result<(), StartError> {
    let dir = &settings.data_dir;
    if settings.state_dir().exists() && !etcd_dir::is_unfinished(dir) {
        return Ok(());
    }
    let Some(found) = data_dir::of_etcd(dir, settings.wal_dir.as_deref())? else {
        if etcd_dir::is_unfinished(dir) {
            return Err(BootstrapError::Unrestored(dir.clone()).into());
        }
        return Ok(());
    };
    data_dir::check(dir)?;
    let dirs =
        etcd_dir::Dirs { data: dir.clone(), state: settings.state_dir(), log: settings.log_dir() };
    // A WAL in another directory is not read: it would share that directory with our log.
    if settings.wal_dir.is_none() && etcd_dir::take_over(&dirs).map_err(BootstrapError::from)? {
        return Ok(());
    }
    Err(BootstrapError::OfEtcd { dir: dir.clone(), found }.into())
}

/// Creates the watch hub, which continues where the stored state ends.
pub(super) fn open_hub(settings: &Settings, reader: &Reader, header: Header) -> Arc<Hub> {
    let limits = Limits {
        fragment_bytes: settings.limits.receive_bytes_max(),
        leaderless: settings.raft.election_timeout * 3,
        stream_watchers: settings.limits.stream_watchers_max,
        connection_watchers: settings.limits.connection_watchers_max,
        watchers: settings.limits.watchers_max,
        ..Limits::default()
    };
    let route = header.route.clone();
    let has_leader = move || route.get().is_some_and(Route::has_leader);
    let source = StoreSource::new(reader.clone(), move |at| header.at(at), has_leader);
    Hub::new(Arc::new(source), limits)
}

/// Determines this member's identity and opens its log.
pub(super) async fn identify(
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
        // An earlier start ended before it wrote anything: begin again as the same member.
        drop(log);
    }
    let settings = &discover::settings(settings).await?;
    service.found();
    let founding = bootstrap::found(settings, dialer, &service.beginning).await?;
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
    let syncs = counts.log_syncs.clone();
    let (writes, written) = (counts.log_writes.clone(), counts.log_bytes.clone());
    let options = LogOptions {
        on_sync: Some(Box::new(move |took| syncs.observe(took.as_secs_f64()))),
        on_write: Some(Box::new(move |took, bytes| {
            writes.observe(took.as_secs_f64());
            written.inc_by(i64::try_from(bytes).unwrap_or(i64::MAX));
        })),
        on_failure: Box::new(end),
        ..LogOptions::new(member)
    };
    let opened = tokio::task::spawn_blocking(move || LogStore::open(&dir, options)).await;
    Ok(opened.map_err(io::Error::other)??)
}

/// Aborts the process: everything acknowledged is in the log, and nothing more can be appended.
fn end(failure: &LogFailure) {
    logging::last(&format!("the raft log failed, so the process ends: {failure}"));
    std::process::abort();
}

/// Opens the peer port and prepares calls to other members.
pub(super) fn open_peers(
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
        dialer.tls = Some(Arc::new(tls::connecting(peer, counts.clone())?));
        acceptor = Some(Arc::new(Acceptor::new(followed, peer, counts)));
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
