//! Leaders are killed and cut off while a client counts: each of its writes takes effect once, also those whose answer went
//! down with a leader and that it sent again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use conclave_client::Client;
use conclave_jepsen_tests::network::cut;
use tokio::task::JoinSet;

use crate::support::{HASTY, Nodes, eventually, is_long};

const WRITERS: usize = 8;
/// Between kills there are so many puts more.
const PUTS_BETWEEN: i64 = 60;
/// Longer than any election here, so that every write is acknowledged in the end.
const PATIENCE: Duration = Duration::from_secs(120);

/// Puts one key over and over; the revisions that were acknowledged.
async fn count(client: Client, key: &'static str, is_over: Arc<AtomicBool>) -> Vec<i64> {
    let mut revisions = Vec::new();
    while !is_over.load(Ordering::Relaxed) {
        // The version of the key counts the puts.
        let put = client.put(key, "x").await.expect("it is sent until it is acknowledged");
        revisions.push(put.revision());
    }
    revisions
}

async fn version(client: &Client, key: &str) -> i64 {
    let kv = client.get(key).await.expect("a read").one();
    kv.map_or(0, |kv| kv.version)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_write_takes_effect_once_while_leaders_are_killed_and_cut_off() {
    let kills = if is_long() { 20 } else { 3 };
    let (mut nodes, network) = Nodes::parted(3, &[HASTY]).await;
    let client = Client::builder(nodes.cluster.endpoints()).timeout(PATIENCE).build();
    let client = client.expect("a client");
    let is_over = Arc::new(AtomicBool::new(false));
    let mut counting = JoinSet::new();
    for _ in 0..WRITERS {
        counting.spawn(count(client.clone(), "sum", Arc::clone(&is_over)));
    }
    let mut reached = 0;
    for number in 0..kills {
        let more = reached + PUTS_BETWEEN + rand::random_range(0..PUTS_BETWEEN);
        eventually("there are more puts", PATIENCE, async || {
            reached = version(&client, "sum").await;
            reached >= more
        })
        .await;
        // The one that was cut off is back with the next fault.
        network.heal();
        let leader = nodes.leader().await;
        if number % 2 == 0 {
            nodes.cluster.kill(leader).expect("it can be killed");
            nodes.cluster.start(leader).expect("the program starts");
        } else {
            network.cut(cut::isolated(leader, 3));
        }
    }
    network.heal();
    nodes.all_serve().await;
    is_over.store(true, Ordering::Relaxed);
    let mut revisions = Vec::new();
    while let Some(acknowledged) = counting.join_next().await {
        revisions.extend(acknowledged.expect("a writer"));
    }
    let acknowledged = i64::try_from(revisions.len()).expect("a count");
    assert_eq!(version(&client, "sum").await, acknowledged, "each took effect once");
    revisions.sort_unstable();
    revisions.dedup();
    assert_eq!(i64::try_from(revisions.len()).expect("a count"), acknowledged, "answered apart");
    println!("{acknowledged} puts, each once, over {kills} leaders");
}
