//! Many leases with one deadline, and none that ends before it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use conclave_proto::etcdserverpb::{
    LeaseGrantRequest, LeaseLeasesRequest, PutRequest, WatchCreateRequest, WatchRequest,
    watch_request,
};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;

use crate::support::{Client, Nodes, eventually, is_long};

const TTL_SECONDS: i64 = 10;
const GRANTERS: usize = 100;
/// Every so many leases have a key.
const KEY_EVERY: usize = 50;
const END_PATIENCE: Duration = Duration::from_secs(60);
/// Of an optimised server on a machine of its own.
const LATE_MAX: Duration = Duration::from_secs(2);

/// When a lease may end at the earliest, and should have ended at the latest.
type Deadlines = BTreeMap<String, (Instant, Instant)>;

/// Grants `count` leases, every fiftieth with a key of its own.
async fn grant(client: Client, granter: usize, count: usize) -> Deadlines {
    let ttl = Duration::from_secs(TTL_SECONDS.unsigned_abs());
    let mut deadlines = Deadlines::new();
    for number in 0..count {
        let asked = Instant::now();
        let request = LeaseGrantRequest { ttl: TTL_SECONDS, id: 0 };
        let granted = client.lease().lease_grant(request).await.expect("a lease").into_inner();
        let answered = Instant::now();
        let key = format!("k-{granter}-{number}");
        if number % KEY_EVERY == 0 {
            let (key, lease) = (key.clone().into(), granted.id);
            let put = PutRequest { key, lease, ..Default::default() };
            client.kv().put(put).await.expect("a put");
        }
        deadlines.insert(key, (asked + ttl, answered + ttl));
    }
    deadlines
}

/// Reports every deletion when it is seen.
async fn watch_deletions(client: Client, seen: mpsc::Sender<(String, Instant)>) {
    use watch_request::RequestUnion;
    let create =
        // However late it begins, it misses nothing.
        WatchCreateRequest { key: "k".into(), range_end: "l".into(), start_revision: 1, ..Default::default() };
    let (requests, outgoing) = mpsc::channel(1);
    let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    requests.try_send(request).expect("room");
    let mut responses =
        client.watch().watch(ReceiverStream::new(outgoing)).await.expect("a stream").into_inner();
    while let Ok(Some(response)) = responses.message().await {
        for event in response.events.iter().filter(|event| event.r#type == 1) {
            let key = String::from_utf8_lossy(&event.kv.as_ref().expect("a key").key).into_owned();
            if seen.send((key, Instant::now())).await.is_err() {
                return;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_that_expire_together_are_gone_at_once_and_none_before_its_time() {
    let leases = if is_long() { 50_000 } else { 5_000 };
    let nodes = Nodes::serving(3, &[]).await;
    let (seen, mut deletions) = mpsc::channel(leases);
    let watching = tokio::spawn(watch_deletions(nodes.client(2).await, seen));
    let begin = Instant::now();
    let mut granters = JoinSet::new();
    for granter in 0..GRANTERS {
        let client = nodes.client(granter % 3).await;
        granters.spawn(grant(client, granter, leases / GRANTERS));
    }
    let mut deadlines = Deadlines::new();
    while let Some(granted) = granters.join_next().await {
        deadlines.append(&mut granted.expect("leases are granted"));
    }
    println!("{leases} leases granted in {:?}", begin.elapsed());
    let last = deadlines.values().map(|(_, latest)| *latest).max().expect("a lease");
    tokio::time::sleep_until(last.into()).await;
    let client = nodes.client(1).await;
    let count = async || {
        let answer = client.lease().lease_leases(LeaseLeasesRequest {}).await;
        answer.map_or(usize::MAX, |answer| answer.into_inner().leases.len())
    };
    eventually("all leases end", END_PATIENCE, async || count().await == 0).await;
    let late = last.elapsed();

    let mut latest = Duration::ZERO;
    for _ in 0..leases / KEY_EVERY {
        let (key, at) = deletions.recv().await.expect("a deletion of every key");
        let (deadline, expected) = deadlines[&key];
        assert!(at >= deadline, "{key} was deleted {:?} too early", deadline - at);
        latest = latest.max(at.saturating_duration_since(expected));
    }
    watching.abort();
    println!("all gone {late:?} after the last deadline; a key at most {latest:?} after its own");
    assert!(!is_long() || late.max(latest) < LATE_MAX, "{late:?}, {latest:?}");
}
