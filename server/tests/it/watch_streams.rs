//! Streams of watches: slow ones, crowded ones, and how they end.

use std::sync::atomic::Ordering;
use std::time::Duration;

use conclave_proto::etcdserverpb::watch_request::RequestUnion;
use conclave_proto::etcdserverpb::{WatchRequest, WatchResponse};
use conclave_server::watch::Limits;
use tonic::Code;
use tonic::metadata::MetadataMap;

use crate::cluster::eventually;
use crate::watch_rules::one;
use crate::watch_support::{Node, Watching, events, on_key, on_range};

#[tokio::test]
async fn a_client_that_does_not_read_costs_nobody_and_misses_nothing() {
    let limits = Limits { ring_bytes: 100 << 10, mailbox_deliveries: 16, ..Limits::default() };
    let node = Node::start(limits).await;
    let mut stalled = node.open().await;
    stalled.create(on_range("k", "l")).await;
    let mut reading = node.open().await;
    reading.create(on_range("k", "l")).await;
    let value = "v".repeat(4_000);
    let count = 3_000;
    for n in 0..count {
        node.put(&format!("k{n}"), &value);
        if n % 100 == 0 {
            tokio::task::yield_now().await;
        }
    }
    // What `etcd_debugging_mvcc_slow_watcher_total` shows.
    eventually("a stream lags", || node.hub.stats().slow_streams > 0).await;
    for client in [&mut reading, &mut stalled] {
        let mut next = 2;
        while next < count + 2 {
            for (revision, _) in events(&client.next().await) {
                assert_eq!(revision, next, "every revision once, in order");
                next += 1;
            }
        }
    }
    assert_eq!(node.hub.stats().watchers, 2);
}

#[tokio::test]
async fn ten_thousand_watchers_share_one_stream() {
    let node = Node::start(Limits::default()).await;
    let mut watching = node.open().await;
    let requests = watching.requests.clone();
    let create = tokio::spawn(async move {
        for n in 0..10_000 {
            let key = if n % 2 == 0 { format!("k{n}") } else { "shared".to_owned() };
            let union = RequestUnion::CreateRequest(on_key(&key));
            requests.send(WatchRequest { request_union: Some(union) }).await.unwrap();
        }
    });
    for id in 0..10_000 {
        let answer = watching.next().await;
        assert_eq!((answer.created, answer.canceled, answer.watch_id), (true, false, id));
    }
    create.await.unwrap();
    assert_eq!(node.hub.stats().watchers, 10_000);
    node.put("k4242", "value");
    let response = watching.next().await;
    assert_eq!((response.watch_id, events(&response)), (4_242, one(2, "k4242")));
    node.put("shared", "value");
    let mut ids = Vec::new();
    for _ in 0..5_000 {
        ids.push(watching.next().await.watch_id);
    }
    ids.sort_unstable();
    assert_eq!(ids, (0..10_000).filter(|id| id % 2 == 1).collect::<Vec<_>>());
    // Each key changes once in one revision.
    let keys: Vec<String> = (0..10_000).step_by(2).map(|n| format!("k{n}")).collect();
    node.put_all(&keys, "value");
    let mut ids: Vec<i64> = Vec::new();
    for _ in 0..5_000 {
        ids.push(watching.next().await.watch_id);
    }
    ids.sort_unstable();
    assert_eq!(ids, (0..10_000).step_by(2).collect::<Vec<_>>());
}

#[tokio::test]
async fn watchers_leave_with_their_stream() {
    let node = Node::start(Limits::default()).await;
    let client = node.connect().await;
    let mut first = Watching::open(client.clone()).await;
    let mut second = Watching::open(client).await;
    first.create(on_key("k")).await;
    second.create(on_key("k")).await;
    assert_eq!((node.hub.stats().streams, node.hub.stats().watchers), (2, 2));
    drop(first);
    let left = || (node.hub.stats().streams, node.hub.stats().watchers);
    eventually("the watcher is gone", || left() == (1, 1)).await;
    node.put("k", "value");
    assert_eq!(events(&second.next().await), one(2, "k"));
}

#[tokio::test]
async fn a_half_closed_stream_goes_on() {
    let node = Node::start(Limits::default()).await;
    let mut watching = node.open().await;
    watching.create(on_key("k")).await;
    let Watching { requests, responses } = watching;
    let (unused, _) = tokio::sync::mpsc::channel(1);
    drop(requests);
    let mut watching = Watching { requests: unused, responses };
    for at in 2..5 {
        node.put("k", "value");
        assert_eq!(events(&watching.next().await), one(at, "k"));
    }
}

#[tokio::test]
async fn a_stopping_server_says_so() {
    let node = Node::start(Limits::default()).await;
    let mut watching = node.open().await;
    watching.create(on_key("k")).await;
    node.shutdown.cancel();
    let status = watching.try_next().await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::Unavailable, "etcdserver: server stopped")
    );
}

#[tokio::test]
async fn who_insists_on_a_leader_hears_when_it_is_gone() {
    let limits = Limits { leaderless: Duration::from_millis(300), ..Limits::default() };
    let node = Node::start(limits).await;
    let mut insisting = MetadataMap::new();
    insisting.insert("hasleader", "true".parse().unwrap());
    let client = node.connect().await;
    let mut indifferent = Watching::open(client.clone()).await;
    indifferent.create(on_key("k")).await;
    let mut watching = Watching::try_open(client.clone(), insisting.clone()).await.unwrap();
    watching.create(on_key("k")).await;
    node.store.has_leader.store(false, Ordering::Relaxed);
    let refused = Watching::try_open(client, insisting).await.map(drop).unwrap_err();
    let ended = watching.try_next().await.unwrap_err();
    for status in [refused, ended] {
        let got = (status.code(), status.message());
        assert_eq!(got, (Code::Unavailable, "etcdserver: no leader"));
    }
    node.put("k", "value");
    assert_eq!(events(&indifferent.next().await), one(2, "k"));
}

#[tokio::test]
async fn a_request_beyond_the_limit_ends_its_stream_only() {
    let node = Node::start(Limits::default()).await;
    let client = node.connect().await;
    let mut other = Watching::open(client.clone()).await;
    other.create(on_key("k")).await;
    let mut watching = Watching::open(client).await;
    watching.create(on_key("k")).await;
    watching.send(RequestUnion::CreateRequest(on_key(&"k".repeat(3 << 20)))).await;
    let status = watching.try_next().await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().starts_with("grpc: received message larger than max ("));
    node.put("k", "value");
    assert_eq!(events(&other.next().await), one(2, "k"));
}

#[tokio::test]
async fn events_that_were_never_published_are_read_from_the_store() {
    let node = Node::start(Limits { inbox_events: 5, ..Limits::default() }).await;
    let mut watching = node.open().await;
    watching.create(on_range("k", "l")).await;
    // On this thread nothing is dispatched until it waits: the inbox runs over.
    for n in 0..500 {
        node.put(&format!("k{n}"), "value");
    }
    let mut found: Vec<i64> = Vec::new();
    while found.len() < 500 {
        let response: WatchResponse = watching.next().await;
        found.extend(events(&response).iter().map(|(revision, _)| revision));
    }
    assert_eq!(found, (2..502).collect::<Vec<_>>());
}
