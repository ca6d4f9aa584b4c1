//! What happens when the log is cut.

use crate::cluster::{Cluster, eventually, get, must_put, put_again_and_again};

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
    cluster.crash(follower);
    let before = cluster.node(leader).status().last_index;
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
    assert!(purged <= before, "cut {purged} although a member has only {before}");
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
