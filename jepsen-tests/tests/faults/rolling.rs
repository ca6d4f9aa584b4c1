//! Members are restarted one after the other, as for an upgrade, while clients write: a request that fails
//! succeeds elsewhere at once, because whoever stops hands its leadership over first.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::support::{Client, Nodes, START_TIMEOUT, eventually, is_long};

const WRITERS: usize = 8;
/// Before each restart so many puts more are acknowledged.
const PUTS_BETWEEN: usize = 200;
/// Rounds over all members.
const ROUNDS: usize = 1;
const ROUNDS_LONG: usize = 5;

/// What one writer saw.
#[derive(Default)]
struct Seen {
    /// Keys that were acknowledged, and when.
    acknowledged: BTreeMap<String, Instant>,
    /// Requests that were sent a second time.
    retried: usize,
    /// What the second attempts said that failed, too.
    failed: Vec<String>,
}

/// Writes ever new keys to one member, and goes to the next when that one fails.
async fn write(writer: usize, endpoints: Vec<String>, is_over: Arc<AtomicBool>) -> Seen {
    let mut seen = Seen::default();
    let mut at = writer;
    let mut client = None;
    for number in 0_u64.. {
        if is_over.load(Ordering::Relaxed) {
            break;
        }
        let key = format!("rolling-{writer}-{number:06}");
        let mut answer = put(&mut client, &endpoints[at % endpoints.len()], &key).await;
        if answer.is_err() {
            seen.retried += 1;
            at += 1;
            answer = put(&mut client, &endpoints[at % endpoints.len()], &key).await;
        }
        match answer {
            Ok(()) => drop(seen.acknowledged.insert(key, Instant::now())),
            Err(error) => seen.failed.push(format!("{key}: {error}")),
        }
    }
    seen
}

/// One attempt; a connection that failed is not used again.
async fn put(client: &mut Option<Client>, endpoint: &str, key: &str) -> anyhow::Result<()> {
    let connected = match client.take() {
        Some(connected) => connected,
        None => Client::open(endpoint).await?,
    };
    connected.put(key, "v").await?;
    *client = Some(connected);
    Ok(())
}

async fn writes_go_on(nodes: &Nodes, member: usize) {
    let client = nodes.client(member).await;
    let written = async || client.keys("rolling-").await.map_or(0, |(_, keys)| keys.len());
    let before = written().await;
    eventually("writes go on", START_TIMEOUT, async || written().await >= before + PUTS_BETWEEN)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_twice_while_all_members_are_restarted() {
    let mut nodes = Nodes::serving(3, &[]).await;
    let is_over = Arc::new(AtomicBool::new(false));
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        writers.spawn(write(writer, nodes.cluster.endpoints(), Arc::clone(&is_over)));
    }
    let mut restarts = Vec::new();
    let rounds = if is_long() { ROUNDS_LONG } else { ROUNDS };
    for member in (0..rounds).flat_map(|_| 0..3) {
        writes_go_on(&nodes, member).await;
        let was_leader = nodes.leader().await == member;
        let began = Instant::now();
        let ended = tokio::task::block_in_place(|| nodes.cluster.terminate(member, START_TIMEOUT));
        ended.expect("it ends by itself, with code 0");
        restarts.push((began, Instant::now(), was_leader));
        nodes.cluster.start(member).expect("the program starts");
        nodes.all_serve().await;
    }
    writes_go_on(&nodes, 0).await;
    is_over.store(true, Ordering::Relaxed);
    let (mut all, mut retried, mut failed) = (BTreeMap::new(), 0, Vec::new());
    while let Some(seen) = writers.join_next().await {
        let mut seen = seen.expect("a writer");
        all.append(&mut seen.acknowledged);
        retried += seen.retried;
        failed.append(&mut seen.failed);
    }
    let (_, stored) = nodes.client(0).await.keys("rolling-").await.expect("a read");
    let lost: Vec<_> = all.keys().filter(|key| !stored.contains_key(*key)).collect();
    assert!(lost.is_empty(), "acknowledged and gone: {lost:?}");
    let gaps = gaps(all.values().copied().collect(), &restarts);
    println!("{} puts, {retried} sent twice, over {} restarts{gaps}", all.len(), restarts.len());
    assert!(failed.is_empty(), "failed twice: {failed:#?}");
}

/// The longest times without an acknowledgement, one line for each restart.
fn gaps(mut acknowledged: Vec<Instant>, restarts: &[(Instant, Instant, bool)]) -> String {
    acknowledged.sort_unstable();
    let line = |(began, ended, was_leader): &(Instant, Instant, bool)| {
        let around = acknowledged.windows(2).filter(|pair| pair[1] >= *began && pair[0] <= *ended);
        let gap = around.map(|pair| pair[1] - pair[0]).max().unwrap_or(Duration::ZERO);
        format!("\n  {gap:?} without an acknowledgement; it led: {was_leader}")
    };
    restarts.iter().map(line).collect()
}
