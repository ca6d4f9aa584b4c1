//! What a cluster of members does, without clients.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use conclave_server::node::{StartError, TransferError};
use conclave_server::propose::ProposeError;
use conclave_state_machine::leases;

use crate::cluster::{
    Cluster, HASTY, eventually, get, must_grant, must_put, put, put_again_and_again, start_again,
    within,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_member_writes_reads_and_keeps_it() {
    let mut cluster = Cluster::start(1, &[]).await;
    let applied = must_put(cluster.node(0), "a", b"1").await;
    assert_eq!(applied.revision, 2);
    assert_eq!(get(cluster.node(0), "a").await.unwrap(), b"1");
    let (member, id) = (cluster.node(0).member_id(), cluster.node(0).cluster_id());
    cluster.stop(0).await;
    cluster.restart(0).await;
    assert_eq!((cluster.node(0).member_id(), cluster.node(0).cluster_id()), (member, id));
    assert_eq!(get(cluster.node(0), "a").await.unwrap(), b"1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_member_writes_and_reads() {
    let cluster = Cluster::start(3, &[]).await;
    for i in 0..3 {
        must_put(cluster.node(i), &format!("k{i}"), b"v").await;
        for reader in 0..3 {
            let found = get(cluster.node(reader), &format!("k{i}")).await;
            assert_eq!(found.unwrap(), b"v", "written at {i}, read at {reader}");
        }
    }
    cluster.converge().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_of_many_callers_share_entries() {
    let cluster = Cluster::start(3, &[]).await;
    let follower = cluster.follower().await;
    let before = cluster.node(follower).status().last_index;
    let puts = (0..2000).map(|n| {
        let node = cluster.node(follower).clone();
        async move { must_put(&node, &format!("k{n}"), b"v").await }
    });
    futures::future::join_all(puts).await;
    let entries = cluster.node(follower).status().last_index - before;
    assert!(entries < 500, "{entries} entries for 2000 puts");
    cluster.converge().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_only_replicates_is_known_to_be_there() {
    let cluster = Cluster::start(3, &[HASTY]).await;
    let leader = cluster.leader().await;
    let node = cluster.node(leader).clone();
    let written = Arc::new(AtomicU64::new(0));
    let count = written.clone();
    let load = tokio::spawn(async move {
        loop {
            put_again_and_again(&node, "k", b"v").await;
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    // Under load no heartbeats are sent; the last one has to be too old to tell anything.
    let began = Instant::now();
    eventually("the load went on for longer than a heartbeat tells", || {
        began.elapsed() > Duration::from_secs(3) && written.load(Ordering::Relaxed) > 100
    })
    .await;
    cluster.leader().await;
    load.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_leader_hands_over_and_rejoins() {
    let mut cluster = Cluster::start(3, &[]).await;
    let old = cluster.leader().await;
    must_put(cluster.node(old), "before", b"1").await;
    cluster.stop(old).await;
    let new = cluster.leader().await;
    assert_ne!(new, old);
    put_again_and_again(cluster.node(new), "while away", b"2").await;
    cluster.restart(old).await;
    assert_eq!(get(cluster.node(old), "while away").await.unwrap(), b"2");
    must_put(cluster.node(old), "after", b"3").await;
    cluster.converge().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_stop_together_all_stop() {
    let cluster = Cluster::start(3, &[]).await;
    cluster.leader().await;
    let stops = cluster.nodes.iter().flatten().map(|node| node.shutdown());
    within("all members stop", futures::future::join_all(stops)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_moves_on_request() {
    let cluster = Cluster::start(3, &[]).await;
    let (leader, follower) = (cluster.leader().await, cluster.follower().await);
    let to = cluster.node(follower).member_id();
    let refused = cluster.node(follower).transfer_leader(to).await;
    assert_eq!(refused, Err(TransferError::NotLeader));
    let refused = cluster.node(leader).transfer_leader(1).await;
    assert_eq!(refused, Err(TransferError::BadTarget));
    let moved = async {
        // Somebody else may be elected meanwhile.
        while cluster.leader().await != follower {
            let leader = cluster.leader().await;
            cluster.node(leader).transfer_leader(to).await.ok();
        }
    };
    within("a transfer", moved).await;
    must_put(cluster.node(leader), "after", b"1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_emptied_member_is_refused() {
    let mut cluster = Cluster::start(3, &[]).await;
    let follower = cluster.follower().await;
    cluster.stop(follower).await;
    let dir = cluster.data_dir(follower);
    eventually("the directory can be removed", || {
        std::fs::remove_dir_all(&dir).is_ok() || !dir.exists()
    })
    .await;
    let settings = cluster.settings(follower, "new");
    let refused = within("a refusal", start_again(&settings)).await.map(drop).unwrap_err();
    assert!(matches!(refused, StartError::Bootstrap(_)), "{refused}");
    assert!(refused.to_string().contains("member remove"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_resume_soon_after_the_leader_crashes() {
    // Even a third election, if votes are split, ends before the deadline of a write.
    let mut cluster = Cluster::start(3, &["--election-timeout=3000"]).await;
    let (leader, follower) = (cluster.leader().await, cluster.follower().await);
    let node = cluster.node(follower).clone();
    // More callers than entries in flight, so that waiting ones would show if slots stayed taken.
    let written: Vec<_> = (0..64).map(|_| Arc::<AtomicU64>::default()).collect();
    let writers = written.iter().enumerate().map(|(w, written)| {
        let (node, written) = (node.clone(), written.clone());
        tokio::spawn(async move {
            loop {
                let n = written.load(Ordering::Relaxed);
                match node.propose(put(&format!("w{w}/{n}"), b"v")).await {
                    Ok(_) => written.fetch_add(1, Ordering::Relaxed),
                    // Went down with the leader, which is found out long before the deadline.
                    Err(ProposeError::LeaderLost) => continue,
                    Err(error) => panic!("{error}"),
                };
            }
        })
    });
    let writers: Vec<_> = writers.collect();
    let counts = || written.iter().map(|count| count.load(Ordering::Relaxed)).collect::<Vec<_>>();
    eventually("writes flow", || counts().iter().all(|&count| count > 4)).await;
    cluster.crash(leader);
    let before = counts();
    // What was under way may have been answered before the leader ended.
    let goes_on = || counts().iter().zip(&before).all(|(now, before)| *now > before + 2);
    let ended = || writers.iter().any(|writer| writer.is_finished());
    eventually("all writers go on", || goes_on() || ended()).await;
    for writer in writers {
        writer.abort();
        assert!(writer.await.unwrap_err().is_cancelled(), "no write waits for its deadline");
    }
    cluster.restart(leader).await;
    cluster.converge().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_request_limit_does_not_bind_the_members_own_commands() {
    let cluster = Cluster::start(1, &["--max-request-bytes=100"]).await;
    let node = cluster.node(0);
    let grants = (1..=64).map(|n| must_grant(node, i64::MAX - n, 1));
    futures::future::join_all(grants).await;
    eventually("all leases end together", || leases::all(node.reader()).unwrap().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_members_crash_and_nothing_is_lost() {
    let mut cluster = Cluster::start(3, &[]).await;
    for round in 0..3 {
        for i in 0..3 {
            must_put(cluster.node(i), &format!("{round}/{i}"), b"v").await;
        }
        for i in 0..3 {
            cluster.crash(i);
        }
        cluster.restart_all().await;
        for i in 0..3 {
            assert_eq!(get(cluster.node(i), &format!("{round}/{i}")).await.unwrap(), b"v");
        }
    }
    cluster.converge().await;
}
