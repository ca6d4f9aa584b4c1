//! What happens when the log is cut.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use conclave_proto::etcdserverpb as etcd;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use crate::cluster::{Cluster, eventually, get, must_put, put_again_and_again, within};
use crate::support::{Plan, Server, range};

/// How long entries are kept for a member that is away.
const KEPT_FOR: Duration = Duration::from_secs(15);
/// Flush and cut as often as the controller looks.
const EAGER: [&str; 2] = ["--snapshot-count=20", "--snapshot-catchup-entries=5"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_is_cut_behind_what_everyone_has() {
    let mut cluster = Cluster::start(3, &EAGER).await;
    let leader = cluster.leader().await;
    let follower = cluster.follower().await;
    for n in 0..100 {
        must_put(cluster.node(leader), &format!("k{n}"), b"v").await;
    }
    let node = cluster.node(leader).clone();
    eventually("the leader cuts its log", || node.status().purged_index > 50).await;
    drop(node);

    // A member that was away for a moment gets entries, not a snapshot: they were kept for it.
    let before = cluster.node(leader).status().applied_index;
    let crashed = Instant::now();
    cluster.crash(follower);
    let node = cluster.node(leader).clone();
    // Each round is at least one look of the controller, which would cut in the next one.
    for round in 0..5 {
        for n in 0..30 {
            put_again_and_again(&node, &format!("m{round}/{n}"), b"v").await;
        }
        let last = node.status().last_index;
        eventually("the state is flushed", || {
            let flushed = node.reader().flushed().unwrap();
            flushed.is_some_and(|id| id.index + 20 > last)
        })
        .await;
    }
    drop(node);
    let purged = cluster.node(leader).status().purged_index;
    // Nobody is waited for much longer.
    if crashed.elapsed() < KEPT_FOR {
        assert!(purged <= before, "cut {purged} although a member has only {before}");
    }
    cluster.restart(follower).await;
    assert_eq!(get(cluster.node(follower), "m4/29").await.unwrap(), b"v");
    cluster.converge().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_far_behind_gets_a_snapshot() {
    let mut cluster = Cluster::start(3, &EAGER).await;
    let leader = cluster.leader().await;
    let follower = cluster.follower().await;
    must_put(cluster.node(leader), "a", b"1").await;
    cluster.crash(follower);
    for n in 0..100 {
        put_again_and_again(cluster.node(leader), &format!("k{n}"), b"v").await;
    }
    let node = cluster.node(leader).clone();
    node.cut_log().await.unwrap();
    let last = node.status().last_index;
    eventually("the log is cut", || node.status().purged_index + 20 > last).await;
    drop(node);
    cluster.restart(follower).await;
    assert_eq!(get(cluster.node(follower), "k99").await.unwrap(), b"v");
    assert_eq!(get(cluster.node(follower), "a").await.unwrap(), b"1");
    cluster.converge().await;
    must_put(cluster.node(follower), "after", b"2").await;
    // And once more after a restart of what was installed.
    cluster.crash(follower);
    cluster.restart(follower).await;
    assert_eq!(get(cluster.node(follower), "after").await.unwrap(), b"2");
    cluster.converge().await;
}

/// Bytes of one connection after which a proxy stops, once, and ends it when it is told to.
const CUT_BYTES: u64 = 8 * 1024 * 1024;
/// What may be under way at a cut: a piece that is not complete, and framing.
const SLACK_BYTES: u64 = 1024 * 1024;

/// What a proxy has carried, and its cut.
#[derive(Default)]
struct Proxy {
    bytes: AtomicU64,
    has_stopped: AtomicBool,
    cut: Notify,
}

/// Hands on connections from one port to another.
async fn proxy(from: u16, to: u16) -> Arc<Proxy> {
    let listener = TcpListener::bind(("127.0.0.1", from)).await.unwrap();
    let proxy = Arc::new(Proxy::default());
    let shared = proxy.clone();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let proxy = shared.clone();
            tokio::spawn(async move {
                let Ok(server) = TcpStream::connect(("127.0.0.1", to)).await else { return };
                let (from_client, mut to_client) = client.into_split();
                let (mut from_server, to_server) = server.into_split();
                tokio::select! {
                    () = proxy.carry(from_client, to_server) => {}
                    _ = tokio::io::copy(&mut from_server, &mut to_client) => {}
                }
            });
        }
    });
    proxy
}

impl Proxy {
    async fn carry(&self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
        let (mut buffer, mut own) = (vec![0; 16 * 1024], 0);
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            if to.write_all(&buffer[..length]).await.is_err() {
                return;
            }
            own += length as u64;
            self.bytes.fetch_add(length as u64, Ordering::Relaxed);
            if own > CUT_BYTES && !self.has_stopped.swap(true, Ordering::Relaxed) {
                return self.cut.notified().await;
            }
        }
    }
}

/// Bytes in the databases of a member.
fn stored(server: &Server) -> u64 {
    let state = server.running.node().settings().data_dir.join("state");
    let databases = std::fs::read_dir(state).unwrap().flatten();
    let databases = databases.filter(|e| e.file_name().to_string_lossy().starts_with("db-"));
    let files = databases.filter_map(|dir| std::fs::read_dir(dir.path()).ok()).flatten().flatten();
    files.filter_map(|file| Some(file.metadata().ok()?.len())).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_that_breaks_off_is_gone_on_with() {
    let mut plan = Plan::new(3, &[]);
    let (port, hidden) = plan.hide(2);
    let proxy = proxy(port, hidden).await;
    let (first, second) = tokio::join!(plan.start(0), plan.start(1));
    let mut value = String::new();
    for server in [&first, &second] {
        within("a server is ready", server.running.ready()).await.unwrap();
    }
    // No two blocks are alike, so that nothing is compressed.
    for n in 0..80_u64 {
        value.clear();
        let mut state = n + 1;
        while value.len() < 200_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            write!(value, "{state:016x}").unwrap();
        }
        first.put(&format!("k{n}"), &value).await;
    }
    for server in [&first, &second] {
        let node = server.running.node();
        node.cut_log().await.unwrap();
        eventually("the log is cut", || node.status().purged_index > 0).await;
    }
    let leader = if first.running.node().is_leader() { &first } else { &second };
    let (files, term) = (files(leader), leader.running.node().status().term);
    let before = proxy.bytes.load(Ordering::Relaxed);
    let late = plan.start(2).await;
    eventually("what was sent is stored", || stored(&late) > CUT_BYTES - SLACK_BYTES).await;
    proxy.cut.notify_one();
    within("the late server is ready", late.running.ready()).await.unwrap();
    let carried = proxy.bytes.load(Ordering::Relaxed) - before;
    let all = late.range(etcd::RangeRequest { count_only: true, ..range("k", "l") }).await;
    assert_eq!(all.count, 80);
    assert_eq!(late.range(range("k79", "")).await.kvs[0].value, value.as_bytes());
    let whole: u64 = files.values().sum();
    assert!(whole > 3 * CUT_BYTES / 2, "{whole} is cut in the middle");
    assert!(carried > whole, "{carried} carried of {whole}");
    // Another leader's files, or those after a compaction, are others.
    if leader.running.node().status().term == term && files == self::files(leader) {
        assert!(
            carried < whole + 2 * SLACK_BYTES,
            "{carried} carried of {whole}: some of it twice"
        );
    }
}

/// The large files of a state, by name.
fn files(server: &Server) -> BTreeMap<String, u64> {
    let backup = server.running.node().reader().backup("test").unwrap();
    let files = backup.files().iter().filter(|file| file.size > SLACK_BYTES);
    files.map(|file| (file.name.clone(), file.size)).collect()
}
