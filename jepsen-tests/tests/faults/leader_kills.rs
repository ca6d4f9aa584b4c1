//! The leader dies under load: writes are acknowledged again soon, and none that were are lost.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::support::{Client, HASTY, Nodes, Writers, is_long};

const WRITERS: usize = 8;
/// A new attempt begins this often: an attempt may wait for a leader.
const ATTEMPT_PAUSE: Duration = Duration::from_millis(10);
const ATTEMPTS_MAX: usize = 6_000;
const WRITES_BEFORE: usize = 100;
/// Of an optimised server on a machine of its own.
const GAP_MAX: Duration = Duration::from_secs(2);

/// Until one of many puts through the survivors is acknowledged.
async fn next_write(survivors: &[Client], kill: usize) {
    let mut attempts = JoinSet::new();
    for number in 0..ATTEMPTS_MAX {
        let client = survivors[number % survivors.len()].clone();
        attempts.spawn(async move { client.put(&format!("p-{kill}-{number}"), "v").await });
        tokio::select! {
            Some(Ok(Ok(_))) = attempts.join_next() => return,
            () = tokio::time::sleep(ATTEMPT_PAUSE) => {}
        }
    }
    panic!("no put was acknowledged");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_go_on_soon_after_the_leader_was_killed() {
    let kills = if is_long() { 10 } else { 1 };
    let mut nodes = Nodes::serving(3, &[HASTY]).await;
    let mut acknowledged = BTreeMap::new();
    let mut gaps = Vec::new();
    for kill in 0..kills {
        let leader = nodes.leader().await;
        let mut endpoints = nodes.cluster.endpoints();
        endpoints.remove(leader);
        let survivors = [
            Client::open(&endpoints[0]).await.expect("a connection"),
            Client::open(&endpoints[1]).await.expect("a connection"),
        ];
        let writers = Writers::start(&format!("k-{kill}"), &nodes.cluster.endpoints(), WRITERS);
        // Under load, not at its beginning.
        for number in 0..WRITES_BEFORE {
            survivors[0].insist(&format!("p-{kill}-before-{number}"), b"v").await;
        }
        let begin = Instant::now();
        nodes.cluster.kill(leader).expect("it can be killed");
        next_write(&survivors, kill).await;
        gaps.push(begin.elapsed());
        acknowledged.append(&mut writers.stop().await);
        nodes.cluster.start(leader).expect("the program starts");
        nodes.all_serve().await;
    }
    println!("{} puts acknowledged; gaps {gaps:?}", acknowledged.len());
    nodes.must_have("k", &acknowledged).await;
    assert!(!is_long() || gaps.iter().all(|gap| *gap < GAP_MAX), "{gaps:?}");
}
