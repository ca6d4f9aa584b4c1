//! Values read only when metrics are scraped: from raft, the store, watchers and the system.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::{Metrics, process};
use crate::api::context::Context;
use crate::node::Node;

/// A gauge of seconds.
type Seconds = Gauge<f64, AtomicU64>;
/// Local and remote member.
type PeerLabels = [(&'static str, String); 2];

/// Values read when metrics are scraped.
#[derive(Default)]
pub(super) struct Scraped {
    has_leader: Gauge,
    is_leader: Gauge,
    is_learner: Gauge,
    pub(super) leader_changes: Counter,
    proposals_committed: Gauge,
    proposals_applied: Gauge,
    quota_bytes: Gauge,
    total_bytes: Gauge,
    in_use_bytes: Gauge,
    keys: Gauge,
    current_revision: Gauge,
    compact_revision: Gauge,
    auth_revision: Gauge,
    watch_streams: Gauge,
    watchers: Gauge,
    slow_streams: Gauge,
    pending_events: Gauge,
    answer_bytes: Gauge,
    refused_reads: Counter,
    refused_watchers: Counter,
    resident_bytes: Gauge,
    virtual_bytes: Gauge,
    virtual_bytes_max: Gauge<f64, AtomicU64>,
    cpu_seconds: Counter<f64, AtomicU64>,
    start_seconds: Seconds,
    open_fds: Gauge,
    max_fds: Gauge,
    known_peers: Family<PeerLabels, Gauge>,
    active_peers: Family<PeerLabels, Gauge>,
    /// Held during a scrape, so that only one at a time clears and refills the families.
    pub(super) one_look: Mutex<()>,
}

impl Metrics {
    /// Updates which other members there are and whether they are heard from.
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

    pub(super) fn scrape(&self, context: &Context) {
        let scraped = &self.scraped;
        let status = context.node.status();
        self.see_leader(status.leader);
        scraped.has_leader.set(status.leader.is_some().into());
        scraped.is_leader.set((status.leader == Some(context.node.member_id())).into());
        scraped.is_learner.set(status.is_learner.into());
        scraped.proposals_committed.set(signed(status.committed_index));
        scraped.proposals_applied.set(signed(status.applied_index));
        scraped.quota_bytes.set(context.node.space().quota_bytes().unwrap_or(0));
        let reader = context.node.reader();
        let (sizes, head) = (reader.sizes(), reader.head());
        scraped.total_bytes.set(sizes.total);
        scraped.in_use_bytes.set(sizes.in_use);
        scraped.keys.set(head.key_count);
        scraped.current_revision.set(head.revision);
        scraped.compact_revision.set(head.compacted);
        scraped.auth_revision.set(signed(head.auth.revision));
        let watch = context.node.watch().stats();
        scraped.watch_streams.set(clamped(watch.streams));
        scraped.watchers.set(clamped(watch.watchers));
        scraped.slow_streams.set(clamped(watch.slow_streams));
        scraped.pending_events.set(clamped(watch.pending_events));
        scraped.refused_watchers.inner().store(watch.refused_total, Ordering::Relaxed);
        scraped.answer_bytes.set(signed(context.long_reads.bytes()));
        let refused = context.long_reads.refused();
        scraped.refused_reads.inner().store(refused, Ordering::Relaxed);
        self.instances.scrape(reader);
        self.scrape_peers(&context.node);
        let process = process::Process::now();
        scraped.resident_bytes.set(signed(process.resident_bytes));
        scraped.virtual_bytes.set(signed(process.virtual_bytes));
        // As Go's Prometheus client: no limit is the largest number.
        scraped.virtual_bytes_max.set(process.virtual_bytes_max as f64);
        // The system counts; the total is passed on.
        scraped.cpu_seconds.inner().store(process.cpu_seconds.to_bits(), Ordering::Relaxed);
        scraped.open_fds.set(signed(process.open_fds));
        scraped.max_fds.set(signed(process.max_fds));
    }
}

impl Scraped {
    pub(super) fn register(&self, registry: &mut Registry) {
        // etcd calls two gauges `_total`; see the test of the names.
        let gauges: [(&str, &str, &Gauge); 17] = [
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
            (
                "etcd_debugging_mvcc_db_total_size_in_bytes",
                "Logical size, as etcd_mvcc_db_total_size_in_bytes",
                &self.total_bytes,
            ),
            ("etcd_debugging_auth_revision", "Revision of users and roles", &self.auth_revision),
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
        ];
        for (name, help, gauge) in gauges {
            registry.register(name, help, gauge.clone());
        }
        registry.register(
            "etcd_server_leader_changes_seen",
            "Changes of leader that this member saw",
            self.leader_changes.clone(),
        );
        self.register_memory(registry);
        self.register_peers(registry);
        self.register_process(registry);
    }

    /// Registers memory held by answers, and what was refused to limit it.
    fn register_memory(&self, registry: &mut Registry) {
        registry.register(
            "conclave_answer_bytes",
            "Memory of answers to long reads that are not sent yet",
            self.answer_bytes.clone(),
        );
        registry.register(
            "conclave_long_reads_refused",
            "Long reads that were refused because of too many others, or for want of memory",
            self.refused_reads.clone(),
        );
        registry.register(
            "conclave_watch_watchers_refused",
            "Watchers that were refused because their stream, their connection or this member had too many",
            self.refused_watchers.clone(),
        );
    }

    fn register_process(&self, registry: &mut Registry) {
        for (name, help, gauge) in [
            ("process_resident_memory_bytes", "Resident memory", &self.resident_bytes),
            ("process_virtual_memory_bytes", "Virtual memory", &self.virtual_bytes),
            ("process_open_fds", "Open file descriptors", &self.open_fds),
            ("process_max_fds", "Most open file descriptors", &self.max_fds),
            ("os_fd_used", "Open file descriptors", &self.open_fds),
            ("os_fd_limit", "Most open file descriptors", &self.max_fds),
        ] {
            registry.register(name, help, gauge.clone());
        }
        registry.register(
            "process_virtual_memory_max_bytes",
            "Most virtual memory",
            self.virtual_bytes_max.clone(),
        );
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

fn clamped(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

pub(super) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
