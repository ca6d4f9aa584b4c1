//! The metrics of a node, under etcd's names where etcd has them, so that its dashboards and alerts
//! work. One registry per node: several nodes may share a process.
//!
//! | module | what |
//! |---|---|
//! | `calls`, `requests`, `method` | calls of the client port |
//! | `applies`, `counts`, `peers`, `promotions` | what the parts of a node count and measure |
//! | `registry`, `turns` | the service registry; queues of locks and elections |
//! | `tls`, `probes` | certificates and handshakes, `/livez` and `/readyz` |
//! | `scraped`, `process`, `about` | values read when scraped; figures of the process; versions |
//! | `duration`, `exposition` | cheap histograms; the text format |

mod about;
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
mod scraped;
mod tls;
mod turns;

use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use tonic::{Response, Status};

pub(crate) use calls::{Answers, Calls, IS_LATE, OpenCall};
pub(crate) use counts::{Counts, Pending};
pub(crate) use method::Method;
pub(crate) use peers::{Peer, Peers};
pub(crate) use probes::{Check, Probe, Probes};
pub(crate) use promotions::Promotions;
use registry::RegistryCounts;
pub(crate) use requests::{Requests, is_failure};
use scraped::{Scraped, signed};
pub(crate) use tls::PortCounts;
use turns::TurnCounts;

use crate::api::context::Context;
use crate::node::Node;

/// Labels whose names and values are static.
type Labels<const N: usize> = [(&'static str, &'static str); N];
/// A label whose value is found at run time.
type Label = [(&'static str, String); 1];

/// The metrics of one node.
pub(crate) struct Metrics {
    registry: Registry,
    calls: Vec<Arc<Calls>>,
    /// Calls of `grpc.health.v1`.
    pub(crate) health_check: Arc<Calls>,
    pub(crate) health_watch: Arc<Calls>,
    /// Requests of clients.
    pub(crate) requests: Requests,
    /// Durations of defragmentations.
    pub(crate) defragmentations: Histogram,
    /// Defragmentations in progress.
    pub(crate) defragmenting: Gauge,
    /// Durations of sending the state to a client.
    pub(crate) snapshots: Histogram,
    /// Durations of hashing the whole store.
    pub(crate) hashes: Histogram,
    /// Durations of hashing the history up to a revision.
    pub(crate) history_hashes: Histogram,
    /// Bytes written to clients.
    pub(crate) client_sent_bytes: Counter,
    /// Bytes read from clients.
    pub(crate) client_received_bytes: Counter,
    /// Good answers of `/health`.
    pub(crate) health_success: Counter,
    /// Bad answers of `/health`.
    pub(crate) health_failures: Counter,
    /// Results of `/livez` and `/readyz`.
    pub(crate) probes: Probes,
    /// Metrics of the service registry.
    pub(crate) instances: RegistryCounts,
    /// Metrics of the queues for locks and leadership.
    pub(crate) turns: TurnCounts,
    /// Values read only when metrics are scraped.
    scraped: Scraped,
    /// The last leader seen, to count changes.
    leader_seen: Mutex<Option<u64>>,
}

impl Metrics {
    /// Registers all metrics for `node`.
    pub(crate) fn new(node: &Node) -> Self {
        let mut registry = Registry::default();
        let scraped = Scraped::default();
        scraped.register(&mut registry);
        let instances = RegistryCounts::register(&mut registry);
        let turns = TurnCounts::register(&mut registry);
        about::register_versions(&mut registry, node.member_id());
        about::register_features(&mut registry, node.settings().gates);
        node.counts().register(&mut registry);
        let calls = calls::register(&mut registry, node.settings());
        let requests = Requests::register(&mut registry);
        Self {
            calls: calls.methods,
            health_check: calls.health_check,
            health_watch: calls.health_watch,
            requests,
            defragmentations: durations(
                &mut registry,
                ("etcd_disk_backend_defrag_duration_seconds", "Durations of defragmentations"),
                (0.1, 13),
            ),
            snapshots: durations(
                &mut registry,
                (
                    "etcd_disk_backend_snapshot_duration_seconds",
                    "Durations of sending a snapshot of the state to a client",
                ),
                (0.01, 17),
            ),
            hashes: durations(
                &mut registry,
                ("etcd_mvcc_hash_duration_seconds", "Durations of hashing the store"),
                (0.01, 15),
            ),
            history_hashes: durations(
                &mut registry,
                ("etcd_mvcc_hash_rev_duration_seconds", "Durations of hashing up to a revision"),
                (0.01, 15),
            ),
            client_sent_bytes: counter(
                &mut registry,
                ("etcd_network_client_grpc_sent_bytes", "Bytes sent to clients"),
            ),
            client_received_bytes: counter(
                &mut registry,
                ("etcd_network_client_grpc_received_bytes", "Bytes received from clients"),
            ),
            health_success: counter(
                &mut registry,
                ("etcd_server_health_success", "Successful health checks"),
            ),
            health_failures: counter(
                &mut registry,
                ("etcd_server_health_failures", "Failed health checks"),
            ),
            probes: Probes::register(&mut registry),
            defragmenting: gauge(
                &mut registry,
                ("etcd_disk_defrag_inflight", "Defragmentations that are under way"),
            ),
            instances,
            turns,
            scraped,
            leader_seen: Mutex::new(None),
            registry,
        }
    }

    /// Counts a unary call and its outcome.
    pub(crate) fn call<T>(
        &self,
        method: Method,
        answer: impl Future<Output = Result<T, Status>>,
    ) -> impl Future<Output = Result<Response<T>, Status>> {
        self.calls[method as usize].unary(answer)
    }

    /// Counts a call with a stream of answers.
    pub(crate) async fn stream<T: 'static>(
        &self,
        method: Method,
        opened: impl Future<Output = Result<Answers<T>, Status>>,
    ) -> Result<Response<Answers<T>>, Status> {
        self.calls[method as usize].stream(opened).await
    }

    /// Counts client messages of calls in progress.
    pub(crate) fn received(&self, method: Method, messages: usize) {
        self.calls[method as usize].received(messages);
    }

    /// The counters of a method, for callers that update them themselves.
    pub(crate) fn calls(&self, method: Method) -> Arc<Calls> {
        self.calls[method as usize].clone()
    }

    /// The text of `/metrics`.
    pub(crate) fn exposition(&self, context: &Context) -> String {
        let _one_look = self.scraped.one_look.lock();
        self.scrape(context);
        exposition::text(&self.registry)
    }

    /// Counts a change of leader; must be called with every new leader.
    pub(crate) fn see_leader(&self, leader: Option<u64>) {
        let mut seen = self.leader_seen.lock();
        if leader.is_some() && *seen != leader {
            *seen = leader;
            self.scraped.leader_changes.inc();
        }
    }
}

/// Registers a histogram with this many buckets, each twice the previous one; `shortest` is the
/// first bound in seconds.
fn durations(
    registry: &mut Registry,
    (name, help): (&str, &str),
    (shortest, buckets): (f64, u16),
) -> Histogram {
    let histogram = Histogram::new(exponential_buckets(shortest, 2.0, buckets));
    registry.register(name, help, histogram.clone());
    histogram
}

fn counter(registry: &mut Registry, (name, help): (&str, &str)) -> Counter {
    let counter = Counter::default();
    registry.register(name, help, counter.clone());
    counter
}

fn gauge(registry: &mut Registry, (name, help): (&str, &str)) -> Gauge {
    let gauge = Gauge::default();
    registry.register(name, help, gauge.clone());
    gauge
}
