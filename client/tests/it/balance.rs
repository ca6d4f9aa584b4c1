//! Calls spread over real gRPC servers, while some of them come and go.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use conclave_client::balance::{
    BalancedChannel, Balancer, BreakerOptions, ConsistentHash, Ctx, Instance, Node, OutlierOptions,
    Pick, RoundRobin, Snapshot, SnapshotOptions,
};
use conclave_client::pb::PutRequest;
use conclave_client::pb::kv_client::KvClient;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tonic::{Code, Request};

use crate::backend::{backends, call, call_about, counts, instances};
use crate::server::free_port;
use crate::{SOON, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_one_of_three_costs_only_the_calls_in_flight_on_it() {
    const WORKERS: usize = 8;
    let mut backends = backends();
    let (_lists, list) = watch::channel(instances(&backends));
    let options = SnapshotOptions { slow_start: Duration::ZERO, ..SnapshotOptions::default() };
    let open_max = Duration::from_secs(2);
    let breaker = BreakerOptions { open_max, ..BreakerOptions::default() };
    let channel = BalancedChannel::builder().snapshot(options).breaker(breaker).watch(list);
    let is_over = Arc::new(AtomicBool::new(false));
    let mut workers = JoinSet::new();
    for _ in 0..WORKERS {
        let (channel, is_over) = (channel.clone(), Arc::clone(&is_over));
        workers.spawn(async move {
            let (mut calls, mut failures) = (0_usize, Vec::new());
            while !is_over.load(Ordering::Relaxed) {
                calls += 1;
                if let Err(error) = call(&channel).await {
                    failures.push(error);
                }
            }
            (calls, failures)
        });
    }
    let wait = async |name: &str, is_expected: bool| {
        eventually("the calls follow", async || {
            let mut is_seen = false;
            for _ in 0..50 {
                // The workers count the failures.
                is_seen |= call(&channel).await.is_ok_and(|answered| answered == name);
            }
            (is_seen == is_expected).then_some(())
        })
        .await;
    };
    wait("b", true).await;
    backends[1].kill();
    wait("b", false).await;
    backends[1].serve();
    wait("b", true).await;
    is_over.store(true, Ordering::Relaxed);
    let (mut total, mut failed) = (0, 0);
    while let Some(worker) = workers.join_next().await {
        let (calls, failures) = worker.expect("no panic");
        total += calls;
        failed += failures.len();
        // One call in flight when the server stopped, and perhaps one on a connection that its
        // listener still accepted.
        assert!(failures.len() <= 2, "{failures:?}");
    }
    assert!(total > 100 && failed <= 2 * WORKERS, "{failed} of {total} failed");
}

#[tokio::test]
async fn instances_are_called_at_the_endpoint_that_is_chosen() {
    let backends = backends();
    let [a, b, c] = [0, 1, 2].map(|number| backends[number].instance());
    // The address of each instance belongs to another one, which must not answer.
    let at = |own: &Instance, other: &Instance| {
        let endpoints = BTreeMap::from([("api".to_owned(), own.address.clone())]);
        Instance { address: other.address.clone(), endpoints, ..own.clone() }
    };
    let (lists, list) = watch::channel(vec![at(&a, &c), at(&b, &c), c.clone()]);
    let builder = BalancedChannel::builder().policy(RoundRobin::default());
    let channel = builder.endpoint("api").watch(list.clone());
    assert_eq!(counts(&channel, 30).await.keys().collect::<Vec<_>>(), ["a", "b"]);
    let serving = channel.serving().instances;
    let addresses: Vec<_> = serving.iter().map(|instance| &instance.address).collect();
    assert_eq!(addresses, [&a.address, &b.address], "who has none is left out");
    let by_address = BalancedChannel::builder().watch(list);
    assert_eq!(counts(&by_address, 30).await.keys().collect::<Vec<_>>(), ["c"]);
    // A known instance now has another endpoint.
    lists.send(vec![at(&b, &a), at(&c, &a)]).expect("a receiver");
    assert_eq!(counts(&channel, 30).await.keys().collect::<Vec<_>>(), ["b", "c"]);
    lists.send(vec![a]).expect("a receiver");
    assert_eq!(counts(&channel, 30).await.len(), 2);
    assert!(channel.serving().is_kept, "nobody has this endpoint");
}

#[tokio::test]
async fn the_last_good_list_stays_in_use() {
    let backends = backends();
    let channel = {
        let (lists, list) = watch::channel(Vec::new());
        let channel = BalancedChannel::builder().policy(RoundRobin::default()).watch(list);
        let early = tokio::spawn({
            let channel = channel.clone();
            async move { call(&channel).await }
        });
        lists.send(instances(&backends)).expect("a receiver");
        early.await.expect("no panic").expect("a call waits for the first list");
        assert_eq!(counts(&channel, 30).await.len(), 3);
        assert!(!channel.serving().is_kept);

        lists.send(instances(&backends[..2])).expect("a receiver");
        assert_eq!(counts(&channel, 30).await.keys().collect::<Vec<_>>(), ["a", "b"]);
        lists.send(Vec::new()).expect("a receiver");
        assert_eq!(counts(&channel, 30).await.len(), 2);
        assert!(channel.serving().is_kept, "an empty list is not believed");
        lists.send(instances(&backends[1..])).expect("a receiver");
        assert_eq!(counts(&channel, 30).await.keys().collect::<Vec<_>>(), ["b", "c"]);
        assert!(!channel.serving().is_kept);
        channel
    };
    assert_eq!(counts(&channel, 30).await.len(), 2);
    assert!(channel.serving().is_kept, "nobody feeds it any more");

    let list = instances(&backends);
    let stream = futures::stream::iter([Vec::new(), list]);
    let channel = BalancedChannel::builder().follow(stream);
    assert!(counts(&channel, 60).await.len() > 1);
}

#[tokio::test]
async fn who_keeps_failing_is_left_alone_and_comes_back() {
    let backends = backends();
    let (_lists, list) = watch::channel(instances(&backends));
    let options = SnapshotOptions { slow_start: Duration::ZERO, ..SnapshotOptions::default() };
    let open_min = Duration::from_millis(300);
    let breaker = BreakerOptions { open_min, ..BreakerOptions::default() };
    let builder = BalancedChannel::builder().policy(RoundRobin::default()).snapshot(options);
    let channel = builder.breaker(breaker).watch(list);
    backends[0].is_failing.store(true, Ordering::Relaxed);
    let mut failures = 0;
    for _ in 0..60 {
        failures += usize::from(call(&channel).await.is_err());
    }
    // Without a breaker every third call would fail. On a slow machine it may be tried again
    // meanwhile.
    assert!((1..15).contains(&failures), "{failures} of 60 calls failed");
    backends[0].is_failing.store(false, Ordering::Relaxed);
    eventually("it is used again", async || {
        call(&channel).await.is_ok_and(|name| name == "a").then_some(())
    })
    .await;
    assert_eq!(counts(&channel, 30).await["a"], 10);
}

#[tokio::test]
async fn calls_about_the_same_thing_go_to_the_same_instance() {
    let backends = backends();
    let (lists, list) = watch::channel(instances(&backends));
    let channel = BalancedChannel::builder().policy(ConsistentHash::default()).watch(list);
    let mut owners = BTreeMap::new();
    for round in 0..3 {
        for key in 0..20 {
            let key = format!("user-{key}");
            let name = call_about(&channel, Some(&key)).await.expect("an answer");
            assert_eq!(*owners.entry(key).or_insert_with(|| name.clone()), name, "round {round}");
        }
    }
    assert!(owners.values().any(|name| name == "a") && owners.values().any(|name| name == "b"));
    lists.send(instances(&backends[1..])).expect("a receiver");
    for (key, owner) in owners {
        let name = call_about(&channel, Some(&key)).await.expect("an answer");
        assert!(name == owner || owner == "a", "{key} moved from {owner} to {name}");
    }
}

#[tokio::test]
async fn every_call_has_a_deadline() {
    let backends = backends();
    let limit = Duration::from_millis(200);
    let (_lists, list) = watch::channel(instances(&backends));
    let (_nothing, nothing) = watch::channel(Vec::new());
    for list in [list, nothing] {
        let channel = BalancedChannel::builder().timeout(limit).watch(list);
        let start = Instant::now();
        let mut kv = KvClient::new(channel);
        let put = timeout(SOON, kv.put(PutRequest::default()));
        let status = put.await.expect("in time").expect_err("nobody answers");
        assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
        assert!(start.elapsed() >= limit);
    }
    let (_lists, list) =
        watch::channel(vec![Instance::new("x", format!("127.0.0.1:{}", free_port()))]);
    let channel = BalancedChannel::builder().watch(list);
    let status = call(&channel).await.expect_err("nobody is there");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
}

#[tokio::test]
async fn a_call_may_have_a_shorter_deadline() {
    let backends = backends();
    let (_lists, list) = watch::channel(instances(&backends));
    let channel = BalancedChannel::builder().timeout(Duration::MAX).watch(list);
    let mut put = Request::new(PutRequest::default());
    put.set_timeout(Duration::from_millis(100));
    let mut kv = KvClient::new(channel);
    let put = timeout(SOON, kv.put(put));
    let status = put.await.expect("in time").expect_err("nobody answers");
    assert!(matches!(status.code(), Code::Cancelled | Code::DeadlineExceeded), "{status:?}");
}

/// An address that neither accepts nor refuses connections: its backlog is full.
async fn black_hole() -> (TcpListener, Vec<TcpStream>) {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a free port");
    let listener = socket.listen(1).expect("it listens");
    let address = listener.local_addr().expect("its address");
    let mut queued = Vec::new();
    while let Ok(stream) = timeout(Duration::from_millis(500), TcpStream::connect(address)).await {
        queued.push(stream.expect("it is not refused"));
        assert!(queued.len() < 100, "the queue has an end");
    }
    (listener, queued)
}

#[tokio::test]
async fn connecting_has_a_time_limit_of_its_own() {
    let (hole, _queued) = black_hole().await;
    let address = hole.local_addr().expect("its address").to_string();
    let (_lists, list) = watch::channel(vec![Instance::new("hole", address)]);
    let (brief, long) = (Duration::from_millis(100), Duration::from_secs(600));
    for (connecting, whole, code) in
        [(brief, long, Code::Unavailable), (long, brief, Code::DeadlineExceeded)]
    {
        let channel = BalancedChannel::builder()
            .connect_timeout(connecting)
            .timeout(whole)
            .watch(list.clone());
        let status = call(&channel).await.expect_err("nobody is there");
        assert_eq!(status.code(), code, "{status:?}");
    }
}

/// A policy that chooses an instance outside the list.
#[derive(Debug)]
struct Astray;

impl Balancer for Astray {
    fn pick(&self, _: &Snapshot, ctx: &Ctx<'_>) -> Option<Pick> {
        Some(Pick::new(&Arc::new(Node::new(Instance::new("elsewhere", "x:1"), ctx.now))))
    }
}

#[tokio::test]
async fn a_policy_that_goes_astray_fails_the_call_only() {
    let backends = backends();
    let (_lists, list) = watch::channel(instances(&backends));
    let channel = BalancedChannel::builder().policy(Astray).watch(list);
    let status = call(&channel).await.expect_err("it is not in the list");
    assert_eq!(status.code(), Code::Internal, "{status:?}");
}

/// A vanished peer acknowledges nothing and sends no packet.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn the_system_probes_connections_to_instances() {
    let backends = backends();
    let (_lists, list) = watch::channel(vec![backends[0].instance()]);
    let channel = BalancedChannel::builder().watch(list);
    call(&channel).await.expect("an answer");
    let peer = format!("0100007F:{:04X}", backends[0].address.port());
    eventually("a timer of probes runs on the connection", async || {
        let table = std::fs::read_to_string("/proc/net/tcp").expect("the table of connections");
        let mut rows = table.lines().map(|row| row.split_whitespace().collect::<Vec<_>>());
        // sl, local, remote, state (1: established), queues, timer (2: probes) and when it fires.
        rows.any(|row| row[2] == peer && row[3] == "01" && row[5].starts_with("02:")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_instance_that_hangs_is_noticed_by_pings() {
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = silent.local_addr().expect("its address").to_string();
    let (_lists, list) = watch::channel(vec![Instance::new("x", address)]);
    let channel = BalancedChannel::builder()
        .timeout(Duration::from_secs(600))
        .keep_alive(Duration::from_millis(100), Duration::from_millis(100))
        .watch(list);
    let status = timeout(SOON, call(&channel)).await.expect("in time").expect_err("it hangs");
    assert!(status.code() != Code::DeadlineExceeded, "{status:?}");
}

#[tokio::test]
async fn an_instance_that_fails_more_often_than_the_others_is_left_alone() {
    let backends = backends();
    let (_lists, list) = watch::channel(instances(&backends));
    let long = Duration::from_secs(3_600);
    let outliers = OutlierOptions {
        interval: Duration::from_secs(1),
        requests_min: 6,
        ejection_min: long,
        ejection_max: long,
        // Latency on a loaded machine means nothing.
        latency_factor: u32::MAX,
        ..OutlierOptions::default()
    };
    let channel = BalancedChannel::builder()
        .policy(RoundRobin::default())
        .outliers(outliers)
        .snapshot(SnapshotOptions { slow_start: Duration::ZERO, ..SnapshotOptions::default() })
        .watch(list);
    // Too rare for a breaker.
    backends[1].fails_one_in.store(3, Ordering::Relaxed);
    eventually("it is ejected", async || {
        for _ in 0..300 {
            call(&channel).await.ok();
        }
        let snapshot = channel.snapshot();
        let node = snapshot.nodes().iter().find(|node| node.instance().id == "b").expect("listed");
        node.is_ejected(std::time::Instant::now()).then_some(())
    })
    .await;
    let counts = counts(&channel, 60).await;
    assert_eq!(counts.keys().collect::<Vec<_>>(), ["a", "c"], "{counts:?}");
}
