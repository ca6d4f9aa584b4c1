//! Who waited by etcd's Lock service and went while nobody led leaves nothing behind.

use std::time::Duration;

use conclave_client::Client;
use conclave_proto::etcdserverpb::LeaseGrantRequest;
use conclave_proto::v3lockpb::{LockRequest, lock_client::LockClient};
use tokio::task::JoinSet;
use tonic::transport::Endpoint;

use crate::support::{HASTY, Nodes, START_TIMEOUT, eventually};

const NAME: &str = "orphanage";
const WAITERS: usize = 20;
/// Longer than this test may take: the ends of leases are not what clears the queue.
const TTL: Duration = Duration::from_secs(600);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_goes_while_nobody_leads_does_not_stay_in_the_queue() {
    let mut nodes = Nodes::serving(3, &[HASTY, "--log-level=debug"]).await;
    let endpoints = nodes.cluster.endpoints();
    let client = Client::builder(endpoints).build().expect("a client");
    let first = client.session().ttl(TTL).await.expect("a session");
    let _held = first.lock(NAME).await.expect("the lock");
    let leader = nodes.leader().await;
    let (stays, goes) = ((leader + 1) % 3, (leader + 2) % 3);
    let leases = nodes.client(leader).await;
    let channel = Endpoint::from_shared(nodes.endpoint(stays)).expect("an address").connect_lazy();
    let mut waiters = JoinSet::new();
    for _ in 0..WAITERS {
        let request = LeaseGrantRequest { ttl: TTL.as_secs().cast_signed(), id: 0 };
        let lease = leases.lease().lease_grant(request).await.expect("a lease").into_inner().id;
        let mut locks = LockClient::new(channel.clone());
        waiters.spawn(async move {
            locks.lock(LockRequest { name: NAME.into(), lease }).await.map(drop)
        });
    }
    let places = async || client.lock_inspect(NAME).await.ok().map(|queue| queue.places.len());
    eventually("all wait", START_TIMEOUT, async || places().await == Some(WAITERS + 1)).await;

    // One of three is left, so that nothing can be withdrawn.
    nodes.cluster.kill_together(&[leader, goes]).expect("they end");
    waiters.shutdown().await;
    nodes.says(stays, "not withdrawn yet").await;
    nodes.cluster.start(leader).expect("it starts");
    nodes.cluster.start(goes).expect("it starts");
    nodes.all_serve().await;
    eventually("nobody waits", START_TIMEOUT, async || places().await == Some(1)).await;
}
