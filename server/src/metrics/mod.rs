//! What a node counts and measures, under etcd's names where etcd has one, so that its dashboards
//! and alerts work. One registry per node: several nodes may share a process.
//!
//! | module | what |
//! |---|---|
//! | `calls`, `requests`, `method` | calls of the client port |
//! | `applies`, `counts`, `peers`, `promotions` | what the parts of a node count and time |
//! | `registry`, `tls`, `probes` | the registry of services, certificates and handshakes, `/livez` and `/readyz` |
//! | `process` | what the system says of the process |
//! | `duration`, `exposition` | histograms that cost little; the text format |

mod applies;
mod calls;
mod counts;
mod duration;
mod exposition;
mod method;
mod peers;
mod probes;
mod process;
mod promotions;
mod registry;
mod requests;
mod tls;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use tonic::{Response, Status};

pub(crate) use calls::{Answers, Calls, OpenCall};
pub(crate) use counts::{Counts, Pending};
pub(crate) use method::Method;
pub(crate) use peers::{Peer, Peers};
pub(crate) use probes::{Check, Probe, Probes};
pub(crate) use promotions::Promotions;
use registry::RegistryCounts;
pub(crate) use requests::{Requests, is_failure};
pub(crate) use tls::PortCounts;

use crate::api::context::Context;
use crate::config::Gates;
use crate::node::Node;
use crate::version;

/// Labels whose names and values are fixed when the program is written.
type Labels<const N: usize> = [(&'static str, &'static str); N];
/// A label whose value is found while the program runs.
type Label = [(&'static str, String); 1];
/// A gauge of seconds.
type Seconds = Gauge<f64, AtomicU64>;
/// Who and whom.
type PeerLabels = [(&'static str, String); 2];

/// The metrics of one node.
pub(crate) struct Metrics {
    registry: Registry,
    calls: Vec<Arc<Calls>>,
    /// Requests of clients.
    pub(crate) requests: Requests,
    /// Durations of defragmentations.
    pub(crate) defragmentations: Histogram,
    /// Defragmentations that are under way.
    pub(crate) defragmenting: Gauge,
    /// Durations of sending the state to a client.
    pub(crate) snapshots: Histogram,
    /// Durations of hashing the whole store.
    pub(crate) hashes: Histogram,
    /// Durations of hashing the history.
    pub(crate) history_hashes: Histogram,
    /// Bytes written to clients.
    pub(crate) client_sent_bytes: Counter,
    /// Bytes read from clients.
    pub(crate) client_received_bytes: Counter,
    /// Answers of `/health`.
    pub(crate) health_success: Counter,
    /// Answers of `/health` that were not good.
    pub(crate) health_failures: Counter,
    /// Answers of `/livez` and `/readyz`.
    pub(crate) probes: Probes,
    /// What the leader does for instances of services.
    pub(crate) instances: RegistryCounts,
    /// What is asked for only when somebody looks.
    scraped: Scraped,
    /// Leader at the last look, and how often it changed.
    leader_seen: Mutex<Option<u64>>,
}

/// Values that are read when somebody looks.
#[derive(Default)]
struct Scraped {
    has_leader: Gauge,
    is_leader: Gauge,
    is_learner: Gauge,
    leader_changes: Counter,
    proposals_committed: Gauge,
    proposals_applied: Gauge,
    quota_bytes: Gauge,
    total_bytes: Gauge,
    in_use_bytes: Gauge,
    keys: Gauge,
    current_revision: Gauge,
    compact_revision: Gauge,
    watch_streams: Gauge,
    watchers: Gauge,
    slow_streams: Gauge,
    pending_events: Gauge,
    resident_bytes: Gauge,
    cpu_seconds: Counter<f64, AtomicU64>,
    start_seconds: Seconds,
    open_fds: Gauge,
    max_fds: Gauge,
    known_peers: Family<PeerLabels, Gauge>,
    active_peers: Family<PeerLabels, Gauge>,
    /// Held by the one look that is taken: what is gone is forgotten before the rest is noted again.
    one_look: Mutex<()>,
}

impl Metrics {
    /// Registers everything for `node`.
    pub(crate) fn new(node: &Node) -> Self {
        let mut registry = Registry::default();
        let scraped = Scraped::default();
        scraped.register(&mut registry);
        let instances = RegistryCounts::register(&mut registry);
        register_versions(&mut registry, node.member_id());
        register_features(&mut registry, node.settings().gates);
        node.counts().register(&mut registry);
        let calls = calls::register(&mut registry, node.settings());
        let requests = Requests::register(&mut registry);
        let mut durations = |name: &str, help: &str, shortest: f64| {
            let histogram = Histogram::new(exponential_buckets(shortest, 2.0, 13));
            registry.register(name, help, histogram.clone());
            histogram
        };
        let defragmentations = durations(
            "etcd_disk_backend_defrag_duration_seconds",
            "Durations of defragmentations",
            0.1,
        );
        let snapshots = durations(
            "etcd_disk_backend_snapshot_duration_seconds",
            "Durations of sending a snapshot of the state to a client",
            0.01,
        );
        let hashes =
            durations("etcd_mvcc_hash_duration_seconds", "Durations of hashing the store", 0.01);
        let history_hashes = durations(
            "etcd_mvcc_hash_rev_duration_seconds",
            "Durations of hashing up to a revision",
            0.01,
        );
        let mut counter = |name: &str, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let client_sent_bytes =
            counter("etcd_network_client_grpc_sent_bytes", "Bytes sent to clients");
        let client_received_bytes =
            counter("etcd_network_client_grpc_received_bytes", "Bytes received from clients");
        let health_success = counter("etcd_server_health_success", "Successful health checks");
        let health_failures = counter("etcd_server_health_failures", "Failed health checks");
        let probes = Probes::register(&mut registry);
        let defragmenting = Gauge::default();
        registry.register(
            "etcd_disk_defrag_inflight",
            "Defragmentations that are under way",
            defragmenting.clone(),
        );
        Self {
            registry,
            calls,
            requests,
            defragmentations,
            defragmenting,
            snapshots,
            hashes,
            history_hashes,
            client_sent_bytes,
            client_received_bytes,
            health_success,
            health_failures,
            probes,
            instances,
            scraped,
            leader_seen: Mutex::new(None),
        }
    }

    /// Counts a call and its outcome.
    pub(crate) fn call<T>(
        &self,
        method: Method,
        answer: impl Future<Output = Result<T, Status>>,
    ) -> impl Future<Output = Result<Response<T>, Status>> {
        self.calls[method as usize].unary(answer)
    }

    /// Counts a call whose answers come one after the other.
    pub(crate) async fn stream<T: 'static>(
        &self,
        method: Method,
        opened: impl Future<Output = Result<Answers<T>, Status>>,
    ) -> Result<Response<Answers<T>>, Status> {
        let mut call = OpenCall::begin(self.calls(method));
        match opened.await {
            Ok(answers) => Ok(Response::new(call.count(answers))),
            Err(status) => {
                call.end(status.code());
                Err(status)
            }
        }
    }

    /// Counts messages of a client in calls that are under way.
    pub(crate) fn received(&self, method: Method, messages: usize) {
        self.calls[method as usize].received(messages);
    }

    /// The counters of a method, for who counts by itself.
    pub(crate) fn calls(&self, method: Method) -> Arc<Calls> {
        self.calls[method as usize].clone()
    }

    /// The text of `/metrics`.
    pub(crate) fn exposition(&self, context: &Context) -> String {
        let _one_look = self.scraped.one_look.lock();
        self.scrape(context);
        exposition::text(&self.registry)
    }

    /// Who the other members are and whether they are heard of.
    fn scrape_peers(&self, node: &Node) {
        let Scraped { known_peers, active_peers, .. } = &self.scraped;
        let own = format!("{:x}", node.member_id());
        known_peers.clear();
        active_peers.clear();
        for (id, is_heard) in node.peers_heard() {
            let labels = [("Local", own.clone()), ("Remote", format!("{id:x}"))];
            known_peers.get_or_create(&labels).set(1);
            active_peers.get_or_create(&labels).set(is_heard.into());
        }
    }

    fn scrape(&self, context: &Context) {
        let scraped = &self.scraped;
        let status = context.node.status();
        self.see_leader(status.leader);
        scraped.has_leader.set(status.leader.is_some().into());
        scraped.is_leader.set((status.leader == Some(context.node.member_id())).into());
        scraped.is_learner.set(status.is_learner.into());
        scraped.proposals_committed.set(signed(status.committed_index));
        scraped.proposals_applied.set(signed(status.applied_index));
        scraped.quota_bytes.set(context.quota_bytes.unwrap_or(0));
        let reader = context.node.reader();
        let (sizes, head) = (reader.sizes(), reader.head());
        scraped.total_bytes.set(sizes.total);
        scraped.in_use_bytes.set(sizes.in_use);
        scraped.keys.set(head.key_count);
        scraped.current_revision.set(head.revision);
        scraped.compact_revision.set(head.compacted);
        let watch = context.node.watch().stats();
        scraped.watch_streams.set(clamped(watch.streams));
        scraped.watchers.set(clamped(watch.watchers));
        scraped.slow_streams.set(clamped(watch.slow_streams));
        scraped.pending_events.set(clamped(watch.pending_events));
        self.instances.scrape(reader);
        self.scrape_peers(&context.node);
        let process = process::Process::now();
        scraped.resident_bytes.set(signed(process.resident_bytes));
        // The system counts; we only pass it on.
        scraped.cpu_seconds.inner().store(process.cpu_seconds.to_bits(), Ordering::Relaxed);
        scraped.open_fds.set(signed(process.open_fds));
        scraped.max_fds.set(signed(process.max_fds));
    }

    /// Counts a change of leader; to be told of every leader in turn.
    pub(crate) fn see_leader(&self, leader: Option<u64>) {
        let mut seen = self.leader_seen.lock();
        if leader.is_some() && *seen != leader {
            *seen = leader;
            self.scraped.leader_changes.inc();
        }
    }
}

fn clamped(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

impl Scraped {
    fn register(&self, registry: &mut Registry) {
        // etcd calls two gauges `_total`; see the test of the names.
        let gauges: [(&str, &str, &Gauge); 20] = [
            ("etcd_server_has_leader", "Whether a leader exists", &self.has_leader),
            ("etcd_server_is_leader", "Whether this member is the leader", &self.is_leader),
            ("etcd_server_is_learner", "Whether this member is a learner", &self.is_learner),
            (
                "etcd_server_proposals_committed_total",
                "Index of the last committed log entry",
                &self.proposals_committed,
            ),
            (
                "etcd_server_proposals_applied_total",
                "Index of the last applied log entry",
                &self.proposals_applied,
            ),
            ("etcd_server_quota_backend_bytes", "Quota, 0 for none", &self.quota_bytes),
            (
                "etcd_mvcc_db_total_size_in_bytes",
                "Logical size since the last defragmentation",
                &self.total_bytes,
            ),
            ("etcd_mvcc_db_total_size_in_use_in_bytes", "Logical size in use", &self.in_use_bytes),
            ("etcd_debugging_mvcc_keys_total", "Live keys", &self.keys),
            ("etcd_debugging_mvcc_current_revision", "Current revision", &self.current_revision),
            (
                "etcd_debugging_mvcc_compact_revision",
                "Revision of the last compaction",
                &self.compact_revision,
            ),
            ("etcd_debugging_mvcc_watch_stream_total", "Watch streams", &self.watch_streams),
            ("etcd_debugging_mvcc_watcher_total", "Watchers", &self.watchers),
            (
                "etcd_debugging_mvcc_slow_watcher_total",
                "Watch streams that are catching up",
                &self.slow_streams,
            ),
            (
                "etcd_debugging_mvcc_pending_events_total",
                "Events that no watcher was told of yet",
                &self.pending_events,
            ),
            ("process_resident_memory_bytes", "Resident memory", &self.resident_bytes),
            ("process_open_fds", "Open file descriptors", &self.open_fds),
            ("process_max_fds", "Most open file descriptors", &self.max_fds),
            ("os_fd_used", "Open file descriptors", &self.open_fds),
            ("os_fd_limit", "Most open file descriptors", &self.max_fds),
        ];
        for (name, help, gauge) in gauges {
            registry.register(name, help, gauge.clone());
        }
        registry.register(
            "etcd_server_leader_changes_seen",
            "Changes of leader that this member saw",
            self.leader_changes.clone(),
        );
        self.register_peers(registry);
        registry.register("process_cpu_seconds", "User and system time", self.cpu_seconds.clone());
        let start = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.start_seconds.set(start.as_secs_f64());
        registry.register(
            "process_start_time_seconds",
            "Start of the process, in seconds since 1970",
            self.start_seconds.clone(),
        );
    }

    fn register_peers(&self, registry: &mut Registry) {
        for (name, help, family) in [
            ("etcd_network_known_peers", "Other members", &self.known_peers),
            (
                "etcd_network_active_peers",
                "Whether this member heard of another lately, as its leader or its follower",
                &self.active_peers,
            ),
        ] {
            registry.register(name, help, family.clone());
        }
    }
}

fn register_features(registry: &mut Registry, gates: Gates) {
    let family = Family::<Labels<2>, Gauge>::default();
    for (name, stage, is_on) in gates.all() {
        family.get_or_create(&[("name", name), ("stage", stage)]).set(is_on.into());
    }
    let help = "Whether what a feature gate of etcd switches on is so here";
    registry.register("etcd_server_feature_enabled", help, family);
}

fn register_versions(registry: &mut Registry, member_id: u64) {
    let one = |name: &'static str, value: String| {
        let family = Family::<Vec<(&'static str, String)>, Gauge>::default();
        family.get_or_create(&vec![(name, value)]).set(1);
        family
    };
    registry.register(
        "etcd_server_version",
        "Version of etcd whose interface this server speaks",
        one("server_version", version::ETCD.to_owned()),
    );
    registry.register(
        "etcd_cluster_version",
        "Lowest such version in the cluster",
        one("cluster_version", "3.7".to_owned()),
    );
    registry.register(
        "etcd_server_id",
        "Id of this member",
        one("server_id", format!("{member_id:x}")),
    );
    registry.register(
        "conclave_build_info",
        "Version of this server",
        one("version", version::CONCLAVE.to_owned()),
    );
}
