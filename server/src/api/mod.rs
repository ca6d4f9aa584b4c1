//! etcd's v3 services over one node.
//!
//! | module | what |
//! |---|---|
//! | `context` | the node, the checks and the error conversions that all services share |
//! | `kv`, `range_stream`, `lease`, `watch`, `cluster`, `maintenance`, `snapshot`, `auth`, `lock`, `election` | one service each |
//! | `health`, `reflection` | gRPC's health service and server reflection |
//! | `long_read`, `pieces` | large reads: their turns and memory limits, reading in pieces |
//! | `queue` | the queue behind locks and elections: first come, first served |
//! | `carried` | work that continues after its caller has gone |
//! | `check`, `limits` | validation of requests, and their size and storage cost |
//! | `grants` | limits on the number and rate of lease grants |
//! | `convert`, `stream_end`, `taken` | answers as messages, ends of streams, clients that stop reading |

mod auth;
mod carried;
pub(crate) mod check;
mod cluster;
pub(crate) mod context;
pub(crate) mod convert;
mod election;
pub(crate) mod grants;
mod health;
pub(crate) mod kv;
pub(crate) mod lease;
pub(crate) mod limits;
mod lock;
pub(crate) mod long_read;
mod maintenance;
mod pieces;
mod queue;
mod range_stream;
pub(crate) mod reflection;
mod snapshot;
pub(crate) mod stream_end;
mod taken;
pub mod watch;

use std::sync::Arc;

use conclave_proto::etcdserverpb as etcd;
use conclave_proto::v3electionpb::election_server::ElectionServer;
use conclave_proto::v3lockpb::lock_server::LockServer;
use etcd::kv_server::KvServer;
use etcd::lease_server::LeaseServer;
use tokio::sync::Semaphore;
use tonic::codec::CompressionEncoding;
use tonic::service::Routes;
use tonic_health::pb::health_server::HealthServer;

use crate::coordination;
use context::Context;
use watch::{WatchCounts, WatchService, WatchSettings};

use crate::metrics::Method;

/// The gRPC services, ready to route calls to. The services that are called most are fields of
/// their own, so that no route lookup is needed for them.
#[derive(Clone)]
pub(crate) struct Services {
    pub(crate) kv: KvServer<kv::KvService>,
    pub(crate) lease: LeaseServer<lease::LeaseService>,
    pub(crate) lock: LockServer<lock::LockService>,
    pub(crate) others: Routes,
}

/// The prefix of the paths of [`Services::kv`].
pub(crate) const KV_PATH: &str = "/etcdserverpb.KV/";
/// The prefix of the paths of [`Services::lease`].
pub(crate) const LEASE_PATH: &str = "/etcdserverpb.Lease/";
/// The prefix of the paths of [`Services::lock`].
pub(crate) const LOCK_PATH: &str = "/v3lockpb.Lock/";
/// The prefix of the paths of etcd's Election service, which [`Services::others`] serves.
pub(crate) const ELECTION_PATH: &str = "/v3electionpb.Election/";

/// Compression accepted in requests, as in etcd. Size limits apply to the decompressed message.
/// Responses are never compressed: not every client would want to pay for it.
pub(crate) const COMPRESSION: CompressionEncoding = CompressionEncoding::Gzip;

/// Builds all services of a node.
pub(crate) fn services(context: Context) -> Services {
    use etcd::auth_server::AuthServer;
    use etcd::cluster_server::ClusterServer;
    use etcd::maintenance_server::MaintenanceServer;

    let receive_bytes_max = context.limits.receive_bytes_max();
    // As in etcd, one size limit applies to every call of the port.
    macro_rules! bounded {
        ($server:expr) => {
            $server.accept_compressed(COMPRESSION).max_decoding_message_size(receive_bytes_max)
        };
    }
    let kv = bounded!(KvServer::new(kv::KvService { context: context.clone() }));
    let watch_settings = WatchSettings {
        receive_bytes_max,
        progress_interval: context.node.settings().watch_progress_interval,
    };
    let watch_counts = WatchCounts {
        calls: context.metrics.calls(Method::Watch),
        events: context.node.counts().watch_events.clone(),
        broken: context.metrics.requests.broken_watches(),
    };
    let watch = WatchService::new(Arc::clone(context.node.watch()), watch_settings);
    let watch = watch.counted(watch_counts).guarded(Arc::clone(&context.auth));
    let health = HealthServer::new(health::CountedHealth::new(Arc::clone(&context.metrics)));
    let queue = Arc::new(queue::Queue::new(context.clone()));
    let maintenance = maintenance::MaintenanceService {
        context: context.clone(),
        snapshots: Arc::new(Semaphore::new(snapshot::SNAPSHOTS_MAX)),
    };
    let lease = bounded!(LeaseServer::new(lease::LeaseService { context: context.clone() }));
    let cluster = ClusterServer::new(cluster::ClusterService { context: context.clone() });
    let auth = AuthServer::new(auth::AuthService { context: context.clone() });
    let lock = bounded!(LockServer::new(lock::LockService { queue: Arc::clone(&queue) }));
    let election = ElectionServer::new(election::ElectionService { queue });
    let others = Routes::new(watch)
        .add_service(bounded!(cluster))
        .add_service(bounded!(MaintenanceServer::new(maintenance)))
        .add_service(bounded!(auth))
        .add_service(bounded!(election))
        .add_service(bounded!(health));
    let others = reflection::add(coordination::add(others, &context)).prepare();
    Services { kv, lease, lock, others }
}
