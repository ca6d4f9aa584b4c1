//! The resolved settings of a server: typed, checked, immutable.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use conclave_transport::{Allowed, Pair, Policy};

use super::cluster::InitialCluster;
use super::gates::Gates;
use super::urls::ListenUrl;

/// Everything a server needs to know before it starts.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Human name of this member.
    pub name: String,
    /// Directory of everything this member keeps.
    pub data_dir: PathBuf,
    /// Directory of the raft log if it is to be elsewhere.
    pub wal_dir: Option<PathBuf>,
    /// Size of the store.
    pub store: StoreSettings,
    /// Raft timing and log retention.
    pub raft: RaftSettings,
    /// Addresses.
    pub listen: ListenSettings,
    /// TLS of the two ports.
    pub tls: TlsSettings,
    /// How the cluster begins.
    pub bootstrap: BootstrapSettings,
    /// Changes of the members.
    pub membership: MembershipSettings,
    /// What is done from time to time without anybody asking.
    pub checks: CheckSettings,
    /// What a client may ask for.
    pub limits: Limits,
    /// Users and tokens.
    pub auth: AuthSettings,
    /// HTTP beside gRPC.
    pub web: WebSettings,
    /// Log lines.
    pub log: LogSettings,
    /// Spans of calls are sent to a collector.
    pub trace: Option<TraceSettings>,
    /// What takes so long that it is worth a line.
    pub slow: SlowSettings,
    /// etcd's feature gates.
    pub gates: Gates,
    /// Durations of calls are measured.
    pub measures_calls: bool,
    /// The registry.
    pub registry: RegistrySettings,
    /// How often an idle watcher that asked for it hears of progress.
    pub watch_progress_interval: Duration,
    /// What was accepted but deserves a warning in the log.
    pub warnings: Vec<String>,
}

/// Size of the store.
#[derive(Clone, Copy, Debug)]
pub struct StoreSettings {
    /// Logical size at which writes are refused; `None` for no quota.
    pub quota_bytes: Option<i64>,
    /// Memory for cached blocks.
    pub cache_bytes: usize,
}

/// Spans of calls for OpenTelemetry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceSettings {
    /// URL of the collector.
    pub endpoint: String,
    /// Service that the spans are said to be of.
    pub service_name: String,
    /// Instance that the spans are said to be of.
    pub instance_id: Option<String>,
    /// Of a million calls whose callers do not trace, how many are traced.
    pub samples_per_million: u32,
}

/// What takes so long that it is worth a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlowSettings {
    /// Applying a piece of the log.
    pub apply: Duration,
    /// A call with one answer.
    pub request: Duration,
}

/// Users and tokens.
#[derive(Clone, Debug)]
pub struct AuthSettings {
    /// How long a simple token lives that is not used.
    pub token_ttl: Duration,
    /// Work for one hash of a password: two to the power of this.
    pub bcrypt_cost: u32,
    /// Signed tokens instead of simple ones.
    pub jwt: Option<JwtSettings>,
}

/// What `--auth-token=jwt,...` says.
#[derive(Clone, Debug)]
pub struct JwtSettings {
    /// `RS256`, `ES256`, ...
    pub method: String,
    /// File with the key that verifies; needed without a private one.
    pub public_key: Option<PathBuf>,
    /// File with the key that signs; without it this member gives out no tokens.
    pub private_key: Option<PathBuf>,
    /// How long a token is good.
    pub ttl: Duration,
}

/// Raft timing and log retention.
#[derive(Clone, Copy, Debug)]
pub struct RaftSettings {
    /// Between two heartbeats of a leader.
    pub heartbeat_interval: Duration,
    /// Without a leader until an election; at least five heartbeats.
    pub election_timeout: Duration,
    /// Entries between two snapshots.
    pub snapshot_count: u64,
    /// Entries kept behind a snapshot so that a slow follower needs no snapshot.
    pub snapshot_catchup_entries: u64,
}

/// Switches of the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegistrySettings {
    /// Lost instances are kept for a while if most of a service are lost at once.
    pub is_guarded: bool,
    /// Instances that come and go too often are not shown as healthy for a while.
    pub is_damping: bool,
    /// Which active checks this member makes as leader, and lets owners ask for.
    pub checks: ChecksAllowed,
}

/// Value of `--registry-checks`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChecksAllowed {
    /// None.
    Off,
    /// Only of the address under which the instance is registered.
    Own,
    /// Of any address.
    Any,
}

/// Where others reach this member.
#[derive(Clone, Debug)]
pub struct ListenSettings {
    /// Addresses for clients.
    pub client: Vec<ListenUrl>,
    /// Addresses for everything but gRPC.
    pub http: Vec<ListenUrl>,
    /// Addresses for `/metrics` and `/health` in addition to those for clients.
    pub metrics: Vec<ListenUrl>,
    /// Addresses for other members.
    pub peer: Vec<ListenUrl>,
    /// URLs that members tell clients.
    pub advertise_client_urls: Vec<String>,
    /// URLs that members tell each other; they decide the member id.
    pub advertise_peer_urls: Vec<String>,
    /// Several processes may listen on the same port.
    pub reuses_ports: bool,
}

/// TLS of the two ports, each there if a certificate is, and of checks.
#[derive(Clone, Debug, Default)]
pub struct TlsSettings {
    /// Of the client port.
    pub client: Option<PortTls>,
    /// Of the peer port, and of connections to the other members.
    pub peer: Option<PortTls>,
    /// Authorities that the registry's checks believe; `None` for the system's.
    pub checks_ca: Option<PathBuf>,
}

/// TLS of one port.
#[derive(Clone, Debug)]
pub struct PortTls {
    /// What it presents.
    pub identity: PortIdentity,
    /// What is presented to other members, if not the same.
    pub outgoing: Option<Pair>,
    /// Who must have signed the certificates of the others; `None` to ask for none.
    pub trusted_ca: Option<PathBuf>,
    /// A client's common name is its user.
    pub names_users: bool,
    /// Certificates that count no more.
    pub revocations: Option<PathBuf>,
    /// Names of which the others must have one.
    pub allowed: Allowed,
    /// Versions and cipher suites.
    pub policy: Policy,
    /// The names in the certificate of who connects are compared with its address.
    pub checks_addresses: bool,
}

/// Where a port's certificate comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortIdentity {
    /// From files.
    Files(Pair),
    /// Made here at the first start.
    SelfSigned {
        /// Where it is kept.
        dir: PathBuf,
        /// Names and addresses it is made for.
        hosts: Vec<String>,
        /// How long it is valid.
        years: u32,
    },
}

/// How the cluster begins. Without meaning once the data directory holds a member.
#[derive(Clone, Debug)]
pub struct BootstrapSettings {
    /// First members.
    pub initial_cluster: InitialCluster,
    /// Whether the cluster exists already.
    pub state: ClusterState,
    /// Distinguishes clusters with equal URLs.
    pub token: String,
    /// Where the first members are found instead.
    pub srv: Option<SrvDiscovery>,
}

/// First members from SRV records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SrvDiscovery {
    /// Their domain.
    pub domain: String,
    /// Suffix of the service; empty for none.
    pub name: String,
    /// DNS server to ask, if not the system's.
    pub server: Option<SocketAddr>,
}

/// HTTP beside gRPC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebSettings {
    /// Origins whose pages browsers let see answers; `None` for all.
    pub origins: Option<Vec<String>>,
    /// Hosts that a request without TLS may name; `None` for all.
    pub hosts: Option<Vec<String>>,
    /// Calls may be made in JSON.
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

/// How members may be changed.
#[derive(Clone, Debug)]
pub struct MembershipSettings {
    /// Refuse changes that could cost the quorum.
    pub is_strict: bool,
    /// Most learners at a time.
    pub learners_max: usize,
    /// Part of what the id of a new member is computed from.
    pub token: String,
    /// This member goes on alone, with the data that it has.
    pub force_new_cluster: bool,
}

/// What is done from time to time without anybody asking.
#[derive(Clone, Copy, Debug)]
pub struct CheckSettings {
    /// Which history is forgotten by itself.
    pub auto_compaction: AutoCompaction,
    /// Between two comparisons of all that the members store; `None` for never.
    pub corruption_interval: Option<Duration>,
    /// This member compares itself with the others as soon as there is a leader.
    pub corruption_first: bool,
}

/// Which history is forgotten by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AutoCompaction {
    /// None.
    Off,
    /// What is older than this.
    Periodic {
        /// Not zero.
        period: Duration,
    },
    /// All but the last revisions.
    Revision {
        /// So many are kept.
        kept: i64,
    },
}

/// What a client may ask for.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Largest request as it would enter the log.
    pub request_bytes_max: usize,
    /// Most operations in one branch of a transaction.
    pub txn_ops_max: usize,
    /// Memory that the answers to long reads may take until they are sent, in bytes.
    pub answer_bytes_max: u64,
    /// Most calls in flight on one connection.
    pub concurrent_streams_max: u32,
    /// Most watchers on one stream.
    pub stream_watchers_max: usize,
    /// Most watchers on all streams of one connection.
    pub connection_watchers_max: usize,
    /// Most watchers on this member.
    pub watchers_max: usize,
    /// Leases of the cluster beyond which this member grants none.
    pub leases_max: usize,
    /// Most leases that this member grants in a second; `None` for any number.
    pub lease_grants_per_second_max: Option<u32>,
    /// Most connections of one address to the client port.
    pub address_connections_max: usize,
    /// How often an idle connection is pinged; `None` for never.
    pub keepalive_interval: Option<Duration>,
    /// How long a pinged client may take to answer.
    pub keepalive_timeout: Duration,
}

impl Limits {
    /// Room for the envelope around the largest request.
    const RECEIVE_SLACK_BYTES: usize = 512 * 1024;

    /// Largest message that is read from a client at all.
    pub fn receive_bytes_max(&self) -> usize {
        self.request_bytes_max.saturating_add(Self::RECEIVE_SLACK_BYTES)
    }
}

/// Log lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSettings {
    /// Least severe level that is written.
    pub level: tracing::Level,
    /// Shape of a line.
    pub format: LogFormat,
    /// Where lines go; to each of these.
    pub outputs: Vec<LogOutput>,
    /// When a file counts as full; `None` for never.
    pub rotation: Option<LogRotation>,
}

/// When a log file counts as full, and what is kept of full ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogRotation {
    /// Size of a full file.
    pub bytes_max: u64,
    /// Full files older than this are removed; `None` to keep them.
    pub age_max: Option<Duration>,
    /// More full files than this are removed, the oldest first; `None` to keep them.
    pub files_max: Option<usize>,
}

/// Shape of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object.
    Json,
    /// Columns for people.
    Console,
}

/// Where log lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogOutput {
    /// Standard error.
    Stderr,
    /// Standard output.
    Stdout,
    /// The end of a file.
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

    /// Id of this member as the initial cluster implies it, `None` if it does not name it.
    pub fn initial_member_id(&self) -> Option<u64> {
        self.bootstrap.initial_cluster.member_id(&self.name, &self.bootstrap.token)
    }

    /// Id of the cluster as the initial cluster implies it.
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
