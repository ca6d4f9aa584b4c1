//! From settings to a serving node and back: `start` for tests and tools, `run` for a process.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use conclave_transport::{Followed, ServerTls};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::context::Context;
use crate::api::grants::Grants;
use crate::api::long_read::LongReads;
use crate::api::services;
use crate::auth::{Auth, JwtError};
use crate::config::Settings;
use crate::coordination::registry::{self, Trust};
use crate::coordination::withdraw_orphans;
use crate::http::{self, Router};
use crate::metrics::Metrics;
use crate::node::{self, Node};
use crate::raft::BootstrapError;
use crate::raft::standing::REMOVED;
use crate::supervisor;
use crate::tls::{self, Acceptor};
use crate::trace::Tracer;

/// What clients may speak; the first for gRPC.
const CLIENT_PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];
/// How often a change of leader is looked for; elections take longer.
const LEADER_LOOK: Duration = Duration::from_millis(250);
/// How long a stop waits for what callers left behind, such as keys of locks they waited for: a few elections,
/// if the hand-over failed.
const BACKGROUND_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a member that was removed goes on, as in etcd.
const REMOVED_GRACE: Duration = Duration::from_secs(1);

/// Why a server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A client address cannot be listened on.
    #[error(transparent)]
    Listen(io::Error),
    /// The files of TLS with clients cannot be used.
    #[error("TLS of the client port: {0}")]
    Tls(#[from] conclave_transport::Error),
    /// The authorities that checks believe cannot be read.
    #[error("--registry-checks-trusted-ca-file: {0}")]
    Checks(conclave_transport::Error),
    /// Tokens cannot be signed as asked for.
    #[error(transparent)]
    Auth(#[from] JwtError),
    /// Spans cannot be sent where they are to be sent.
    #[error("--distributed-tracing-address: {0}")]
    Trace(#[from] opentelemetry_otlp::ExporterBuildError),
    /// The node refuses.
    #[error(transparent)]
    Node(#[from] node::StartError),
}

/// Why a server that ran stopped though nobody asked it to.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It did not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// Raft or the storage failed; only a restart helps, if anything.
    #[error("this member cannot go on: {0}")]
    Failed(String),
    /// It is no member any more.
    #[error("{REMOVED}: this was member {id:x}; its data directory {dir} must be deleted")]
    Removed {
        /// Its id.
        id: u64,
        /// Its directory.
        dir: PathBuf,
    },
}

impl RunError {
    /// Whether nothing is wrong: the member was removed from the cluster, also if that was long ago. As
    /// with etcd the process then ends well, so that no supervisor starts it again and again.
    #[must_use]
    pub fn is_removal(&self) -> bool {
        match self {
            Self::Removed { .. } => true,
            Self::Start(StartError::Node(node::StartError::Bootstrap(error))) => {
                matches!(error, BootstrapError::Removed { .. })
            }
            Self::Start(_) | Self::Failed(_) => false,
        }
    }
}

/// A server with its client port open.
pub struct Running {
    node: Arc<Node>,
    client_addresses: Vec<SocketAddr>,
    client_urls: Vec<String>,
    stop: CancellationToken,
    serving: JoinHandle<()>,
    background: TaskTracker,
    tracer: Option<Arc<Tracer>>,
}

/// Starts a server. The client port is open when this returns; there may be no leader yet, see
/// [`Running::ready`].
///
/// # Errors
/// [`StartError`].
pub async fn start(settings: Settings) -> Result<Running, StartError> {
    for warning in &settings.warnings {
        tracing::warn!("{warning}");
    }
    // First, so that a port in use is found before the data directory is touched.
    let port = http::bind(&settings.listen).map_err(StartError::Listen)?;
    let client = settings.tls.client.as_ref();
    let followed = client.map(|client| tls::accepting(client, &CLIENT_PROTOCOLS)).transpose()?;
    let authorities = settings.tls.checks_ca.as_deref().map(tls::checking);
    let authorities = authorities.transpose().map_err(StartError::Checks)?;
    let (client_addresses, client_urls) = (port.addresses(), port.urls());
    let settings = Arc::new(settings);
    let node = Node::start(Arc::clone(&settings)).await?;
    let stop = CancellationToken::new();
    let acceptor = followed.map(|followed| accept_by_tls(&node, Arc::new(followed), &stop));
    let (reader, feed) = (node.reader().clone(), Arc::clone(node.auth()));
    let auth = Auth::new(reader, feed, &settings.auth, node.timeout())?;
    let counted = |tls| tls::observed(tls, node.counts().tls.files("checks"));
    let trust = Trust::new(authorities.map(counted));
    let tracer = settings.trace.as_ref().map(Tracer::new).transpose()?.map(Arc::new);
    let context = Context {
        auth: Arc::new(auth),
        metrics: Arc::new(Metrics::new(&node)),
        node: Arc::clone(&node),
        limits: settings.limits,
        long_reads: LongReads::new(settings.limits.answer_bytes_max),
        grants: Grants::new(&settings.limits, node.counts()),
        background: TaskTracker::new(),
    };
    tokio::spawn(see_leaders(context.clone()));
    tokio::spawn(registry::lead(context.clone(), trust));
    tokio::spawn(withdraw_orphans(context.clone()));
    tokio::spawn(watch_space(context.clone()));
    let background = context.background.clone();
    let router = Router::new(services(context.clone()), context, tracer.clone());
    let serving = tokio::spawn(port.serve(router, acceptor, stop.clone()));
    Ok(Running { node, client_addresses, client_urls, stop, serving, background, tracer })
}

/// Shakes hands with clients by what the files say, and follows the files.
fn accept_by_tls(
    node: &Node,
    followed: Arc<Followed<ServerTls>>,
    stop: &CancellationToken,
) -> Arc<Acceptor> {
    let settings = node.settings().tls.client.as_ref();
    let settings = settings.expect("followed files are those of these settings");
    let counts = node.counts().tls.port("client");
    tokio::spawn(tls::follow(followed.clone(), counts.clone(), stop.clone()));
    Arc::new(Acceptor::new(followed, settings, counts))
}

/// Counts changes of leader; the metric of it is of no use if only looks count.
async fn see_leaders(context: Context) {
    let mut tick = tokio::time::interval(LEADER_LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let stopping = context.node.stopping().clone();
    let watching = async {
        loop {
            tick.tick().await;
            context.metrics.see_leader(context.node.status().leader);
        }
    };
    tokio::select! {
        () = stopping.cancelled() => {}
        () = watching => {}
    }
}

/// Raises the alarm for writes beyond this member's quota that others let through.
async fn watch_space(context: Context) {
    let space = Arc::clone(context.node.space());
    let stopping = context.node.stopping().clone();
    let watching = async {
        loop {
            space.overrun().await;
            context.raise_no_space().await;
        }
    };
    tokio::select! {
        () = stopping.cancelled() => {}
        () = watching => {}
    }
}

impl Running {
    /// The node behind the port.
    #[must_use]
    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// Where clients connect by TCP, with the ports that the system chose.
    #[must_use]
    pub fn client_addresses(&self) -> &[SocketAddr] {
        &self.client_addresses
    }

    /// URLs for clients on this host.
    #[must_use]
    pub fn client_urls(&self) -> Vec<String> {
        self.client_urls.clone()
    }

    /// Waits until there is a leader and this member serves linearizable requests; then says so in
    /// the log, in the words that drivers of etcd wait for.
    ///
    /// # Errors
    /// The reason why the member failed, if it did.
    pub async fn ready(&self) -> Result<(), String> {
        self.node.wait_ready().await?;
        for url in &self.client_urls {
            let is_secure = url.starts_with("https") || url.starts_with("unixs");
            let (_, address) = url.split_once("://").unwrap_or_default();
            tracing::info!(
                %address,
                traffic = if is_secure { "secure" } else { "insecure" },
                member_id = %format_args!("{:x}", self.node.member_id()),
                "ready to serve client requests"
            );
        }
        supervisor::ready();
        Ok(())
    }

    /// Hands leadership over, ends calls and closes everything.
    pub async fn stop(self) {
        // Streams end first, or the port would wait for them; and leadership goes while this member can
        // still answer those whose calls are under way.
        self.node.stopping().cancel();
        self.node.hand_over().await;
        self.stop.cancel();
        if let Err(error) = self.serving.await {
            tracing::warn!(%error, "the client port ended abnormally");
        }
        self.background.close();
        if tokio::time::timeout(BACKGROUND_TIMEOUT, self.background.wait()).await.is_err() {
            tracing::info!(tasks = self.background.len(), "work in the background was given up");
        }
        if let Some(tracer) = self.tracer {
            tracer.end().await;
        }
        self.node.shutdown().await;
    }
}

/// Runs a server until `shutdown` completes.
///
/// # Errors
/// [`RunError`]: it did not start, or a failure of raft or the storage ended it.
pub async fn run(settings: Settings, shutdown: impl Future<Output = ()>) -> Result<(), RunError> {
    tokio::pin!(shutdown);
    let running = tokio::select! {
        // Waiting for peers may take for ever, and reading a long log minutes.
        () = &mut shutdown => {
            tracing::info!("stopped before this member had started");
            return Ok(());
        }
        started = start(settings) => started?,
    };
    let end = {
        let failed = async {
            match running.ready().await {
                Ok(()) => running.node.failed().await,
                Err(reason) => reason,
            }
        };
        let removed = async {
            running.node.removed().await;
            // Whoever asked for it, perhaps here, gets the answer.
            tokio::time::sleep(REMOVED_GRACE).await;
        };
        let ended = async {
            tokio::select! {
                () = &mut shutdown => End::Asked,
                reason = failed => End::Failed(reason),
                () = removed => End::Removed,
            }
        };
        let live = supervisor::live(&running.node);
        tokio::pin!(ended);
        tokio::select! {
            end = &mut ended => end,
            () = live => ended.await,
        }
    };
    supervisor::stopping();
    match end {
        End::Asked => {
            tracing::info!("stopping");
            running.stop().await;
            tracing::info!("stopped");
            Ok(())
        }
        End::Removed => {
            tracing::warn!("stopping, because this member was removed from the cluster");
            let (id, dir) = (running.node.member_id(), running.node.settings().data_dir.clone());
            running.stop().await;
            Err(RunError::Removed { id, dir })
        }
        // Nothing of it can be trusted to end in order.
        End::Failed(reason) => Err(RunError::Failed(reason)),
    }
}

/// Why a server that ran ends.
enum End {
    Asked,
    Removed,
    Failed(String),
}
