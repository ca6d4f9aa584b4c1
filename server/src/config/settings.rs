//! The resolved settings of a server: typed, checked, immutable.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use conclave_transport::{Allowed, Pair, Policy};

use super::cluster::InitialCluster;
use super::gates::Gates;
use super::urls::ListenUrl;

/// All settings of a server.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Human name of this member.
    pub name: String,
    /// Directory of everything this member keeps.
    pub data_dir: PathBuf,
    /// Directory of the raft log, if it is not in the data directory.
    pub wal_dir: Option<PathBuf>,
    /// Limits of the store.
    pub store: StoreSettings,
    /// Raft timing and log retention.
    pub raft: RaftSettings,
    /// Addresses to listen on and to advertise.
    pub listen: ListenSettings,
    /// TLS of the two ports.
    pub tls: TlsSettings,
    /// How the cluster begins.
    pub bootstrap: BootstrapSettings,
    /// Rules for membership changes.
    pub membership: MembershipSettings,
    /// Periodic checks and compaction.
    pub checks: CheckSettings,
    /// Limits on what clients may request.
    pub limits: Limits,
    /// Users and tokens.
    pub auth: AuthSettings,
    /// Settings of HTTP besides gRPC.
    pub web: WebSettings,
    /// Settings of the log.
    pub log: LogSettings,
    /// Collector for spans of calls; `None` if tracing is off.
    pub trace: Option<TraceSettings>,
    /// Thresholds above which slow work is logged.
    pub slow: SlowSettings,
    /// etcd's feature gates.
    pub gates: Gates,
    /// Whether durations of calls are measured.
    pub measures_calls: bool,
    /// Settings of the service registry.
    pub registry: RegistrySettings,
    /// How often an idle watcher that asked for progress notifications gets one.
    pub watch_progress_interval: Duration,
    /// Accepted settings that deserve a warning in the log.
    pub warnings: Vec<String>,
}

/// Limits of the store.
#[derive(Clone, Copy, Debug)]
pub struct StoreSettings {
    /// Logical size at which writes are refused; `None` for no quota.
    pub quota_bytes: Option<i64>,
    /// Memory for cached blocks.
    pub cache_bytes: usize,
}

/// Settings of OpenTelemetry tracing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceSettings {
    /// URL of the collector.
    pub endpoint: String,
    /// Service name in the spans.
    pub service_name: String,
    /// Instance id in the spans.
    pub instance_id: Option<String>,
    /// How many of a million calls are traced if their callers do not trace.
    pub samples_per_million: u32,
}

/// Thresholds above which slow work is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlowSettings {
    /// Applying one piece of the log.
    pub apply: Duration,
    /// A unary call.
    pub request: Duration,
}

/// Users and tokens.
#[derive(Clone, Debug)]
pub struct AuthSettings {
    /// How long an unused simple token lives.
    pub token_ttl: Duration,
    /// bcrypt's cost: two to the power of this is the work for one hash.
    pub bcrypt_cost: u32,
    /// Signed tokens instead of simple ones.
    pub jwt: Option<JwtSettings>,
}

/// The options of `--auth-token=jwt,...`.
#[derive(Clone, Debug)]
pub struct JwtSettings {
    /// `RS256`, `ES256`, ...
    pub method: String,
    /// File with the verifying key; required without a private key.
    pub public_key: Option<PathBuf>,
    /// File with the signing key; without it this member issues no tokens.
    pub private_key: Option<PathBuf>,
    /// How long a token is valid.
    pub ttl: Duration,
}

/// Raft timing and log retention.
#[derive(Clone, Copy, Debug)]
pub struct RaftSettings {
    /// Interval between two heartbeats of a leader.
    pub heartbeat_interval: Duration,
    /// Time without a leader before an election; at least five heartbeats.
    pub election_timeout: Duration,
    /// Applied entries between two flushes of the state.
    pub snapshot_count: u64,
    /// Entries kept behind a flush so that a slow follower needs no snapshot.
    pub snapshot_catchup_entries: u64,
}

/// Settings of the service registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegistrySettings {
    /// Lost instances are kept for a while if most instances of a service are lost at once.
    pub is_guarded: bool,
    /// Instances that come and go too often are not shown as healthy for a while.
    pub is_damping: bool,
    /// Which active checks this member performs as leader, and lets owners request.
    pub checks: ChecksAllowed,
}

/// Value of `--registry-checks`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChecksAllowed {
    /// No checks.
    Off,
    /// Only checks of the address under which the instance is registered.
    Own,
    /// Checks of any address.
    Any,
}

/// Addresses and URLs of this member.
#[derive(Clone, Debug)]
pub struct ListenSettings {
    /// Addresses for clients.
    pub client: Vec<ListenUrl>,
    /// Addresses for everything but gRPC.
    pub http: Vec<ListenUrl>,
    /// Addresses for `/metrics` and `/health`, in addition to those for clients.
    pub metrics: Vec<ListenUrl>,
    /// Addresses for other members.
    pub peer: Vec<ListenUrl>,
    /// Client URLs that members advertise.
    pub advertise_client_urls: Vec<String>,
    /// Peer URLs that members advertise; the member id is computed from them.
    pub advertise_peer_urls: Vec<String>,
    /// Whether several processes may listen on the same port.
    pub reuses_ports: bool,
}

/// TLS of the two ports, each present if it has a certificate, and of the registry's checks.
#[derive(Clone, Debug, Default)]
pub struct TlsSettings {
    /// TLS of the client port.
    pub client: Option<PortTls>,
    /// TLS of the peer port, and of connections to other members.
    pub peer: Option<PortTls>,
    /// CA certificates that the registry's checks trust; `None` for the system's.
    pub checks_ca: Option<PathBuf>,
}

/// TLS of one port.
#[derive(Clone, Debug)]
pub struct PortTls {
    /// The port's own certificate.
    pub identity: PortIdentity,
    /// The certificate shown to other members, if it is another.
    pub outgoing: Option<Pair>,
    /// CA certificates that the other side's certificate must be signed by; `None` requests no
    /// certificate.
    pub trusted_ca: Option<PathBuf>,
    /// Whether a client certificate's common name is its user.
    pub names_users: bool,
    /// File of revoked certificates.
    pub revocations: Option<PathBuf>,
    /// Names of which the other side's certificate must have one.
    pub allowed: Allowed,
    /// Versions and cipher suites.
    pub policy: Policy,
    /// Whether the names in a client's certificate are compared with its address.
    pub checks_addresses: bool,
}

/// Where a port's certificate comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortIdentity {
    /// From files.
    Files(Pair),
    /// Made by this member at its first start.
    SelfSigned {
        /// Directory where it is kept.
        dir: PathBuf,
        /// Names and addresses it is valid for.
        hosts: Vec<String>,
        /// Validity in years.
        years: u32,
    },
}

/// How the cluster begins. Has no effect once the data directory holds a member.
#[derive(Clone, Debug)]
pub struct BootstrapSettings {
    /// The initial members.
    pub initial_cluster: InitialCluster,
    /// Whether the cluster already exists.
    pub state: ClusterState,
    /// Distinguishes clusters with equal URLs.
    pub token: String,
    /// Where to look up the initial members instead.
    pub srv: Option<SrvDiscovery>,
}

/// Discovery of initial members by SRV records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SrvDiscovery {
    /// Domain of the records.
    pub domain: String,
    /// Suffix of the SRV service name; empty for none.
    pub name: String,
    /// DNS server to ask, if not the system's.
    pub server: Option<SocketAddr>,
}

/// Settings of HTTP besides gRPC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebSettings {
    /// Origins whose pages may see answers; `None` for all.
    pub origins: Option<Vec<String>>,
    /// Hosts that requests without TLS may name; `None` for all.
    pub hosts: Option<Vec<String>>,
    /// Whether calls may be made in JSON.
    pub has_gateway: bool,
}

/// Value of `--initial-cluster-state`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterState {
    /// This member helps to found the cluster.
    New,
    /// This member joins a running cluster.
    Existing,
}

/// Rules for membership changes.
#[derive(Clone, Debug)]
pub struct MembershipSettings {
    /// Refuses changes that could cost the quorum.
    pub is_strict: bool,
    /// Most learners at a time.
    pub learners_max: usize,
    /// Cluster token; new members' ids are computed from it.
    pub token: String,
    /// Continue with this member alone, with the data it has.
    pub force_new_cluster: bool,
}

/// Periodic checks and compaction.
#[derive(Clone, Copy, Debug)]
pub struct CheckSettings {
    /// Which history is compacted automatically.
    pub auto_compaction: AutoCompaction,
    /// Interval between two comparisons of everything the members store; `None` for never.
    pub corruption_interval: Option<Duration>,
    /// Whether this member compares itself with the others as soon as there is a leader.
    pub corruption_first: bool,
}

/// Which history is compacted automatically.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AutoCompaction {
    /// None.
    Off,
    /// History older than this.
    Periodic {
        /// Not zero.
        period: Duration,
    },
    /// All but the most recent revisions.
    Revision {
        /// Number of revisions kept.
        kept: i64,
    },
}

/// Limits on what clients may request.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Largest request as it would enter the log.
    pub request_bytes_max: usize,
    /// Most operations in one branch of a transaction.
    pub txn_ops_max: usize,
    /// Memory in bytes that answers to long reads may take until they are sent.
    pub answer_bytes_max: u64,
    /// Most calls in flight on one connection.
    pub concurrent_streams_max: u32,
    /// Most watchers on one stream.
    pub stream_watchers_max: usize,
    /// Most watchers on all streams of one connection.
    pub connection_watchers_max: usize,
    /// Most watchers on this member.
    pub watchers_max: usize,
    /// Number of leases in the cluster from which on this member grants no more.
    pub leases_max: usize,
    /// Most leases that this member grants in a second; `None` for unlimited.
    pub lease_grants_per_second_max: Option<u32>,
    /// Most connections of one address to the client port.
    pub address_connections_max: usize,
    /// How often an idle connection is pinged; `None` for never.
    pub keepalive_interval: Option<Duration>,
    /// How long a pinged client may take to answer.
    pub keepalive_timeout: Duration,
}

impl Limits {
    /// Space for the envelope around the largest request.
    const RECEIVE_SLACK_BYTES: usize = 512 * 1024;

    /// Largest message that is read from a client at all.
    pub fn receive_bytes_max(&self) -> usize {
        self.request_bytes_max.saturating_add(Self::RECEIVE_SLACK_BYTES)
    }
}

/// Settings of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSettings {
    /// Least severe level that is logged.
    pub level: tracing::Level,
    /// Format of a line.
    pub format: LogFormat,
    /// Where lines are written; to each of these.
    pub outputs: Vec<LogOutput>,
    /// Rotation of the log file; `None` for never.
    pub rotation: Option<LogRotation>,
}

/// When a log file is rotated, and which rotated files are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogRotation {
    /// Size at which a file is rotated.
    pub bytes_max: u64,
    /// Rotated files older than this are removed; `None` keeps them.
    pub age_max: Option<Duration>,
    /// Most rotated files, beyond which the oldest are removed; `None` keeps all.
    pub files_max: Option<usize>,
}

/// Format of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object.
    Json,
    /// Columns for human readers.
    Console,
}

/// Where log lines are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogOutput {
    /// Standard error.
    Stderr,
    /// Standard output.
    Stdout,
    /// Appended to a file.
    File(PathBuf),
}

impl Settings {
    /// Directory of the raft log.
    pub fn log_dir(&self) -> PathBuf {
        log_dir(&self.data_dir, self.wal_dir.as_deref())
    }

    /// Directory of the state store and its snapshots.
    pub fn state_dir(&self) -> PathBuf {
        state_dir(&self.data_dir)
    }

    /// Id of this member computed from the initial cluster; `None` if that does not name it.
    pub fn initial_member_id(&self) -> Option<u64> {
        self.bootstrap.initial_cluster.member_id(&self.name, &self.bootstrap.token)
    }

    /// Id of the cluster computed from the initial cluster.
    pub fn initial_cluster_id(&self) -> u64 {
        self.bootstrap.initial_cluster.cluster_id(&self.bootstrap.token)
    }
}

/// Directory of the raft log.
pub(crate) fn log_dir(data_dir: &Path, wal_dir: Option<&Path>) -> PathBuf {
    wal_dir.map_or_else(|| data_dir.join("log"), Path::to_owned)
}

/// Directory of the state store.
pub(crate) fn state_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("state")
}
