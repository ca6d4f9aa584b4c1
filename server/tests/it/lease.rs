//! Leases across members.

use std::sync::Arc;
use std::time::{Duration, Instant};

use conclave_server::node::Node;
use conclave_state_machine::leases;

use crate::cluster::{Cluster, DEADLINE, HASTY, eventually, must_grant, within};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_member_renews_and_shows_leases() {
    let cluster = Cluster::start(3, &[]).await;
    let follower = cluster.follower().await;
    must_grant(cluster.node(follower), 7, 600).await;
    for i in 0..3 {
        let lessor = cluster.node(i).lessor();
        assert_eq!(within("a renewal", lessor.renew_all(&[7])).await.unwrap(), [600], "at {i}");
        assert_eq!(
            within("a renewal", lessor.renew_all(&[8])).await.unwrap(),
            [0],
            "unknown, at {i}"
        );
        let left = within("a remaining time", lessor.remaining(7)).await.unwrap().unwrap();
        assert!(left > Duration::from_secs(500), "{left:?}");
        assert_eq!(within("a remaining time", lessor.remaining(8)).await.unwrap(), None);
        let all = within("all leases", lessor.leases()).await.unwrap();
        assert_eq!(all.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [7]);
    }
}

/// Renewals of many streams share calls to the leader; each has the answers to what it asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn renewals_that_come_together_are_answered_apart() {
    const STREAMS: i64 = 200;
    let cluster = Cluster::start(3, &[]).await;
    let node = cluster.node(cluster.follower().await).clone();
    futures::future::join_all((1..=STREAMS).map(|id| must_grant(&node, id, 600 + id))).await;
    let renewals = (1..=STREAMS).map(|id| {
        let (lessor, unknown) = (node.lessor().clone(), STREAMS + id);
        // One stream asks for as many leases as its number says, and for one that there is not.
        let ids: Vec<i64> = (1..=id).chain([unknown]).collect();
        async move {
            let ttls = within("a renewal", lessor.renew_all(&ids)).await.unwrap();
            assert!(ttls.into_iter().eq((601..=600 + id).chain([0])), "stream {id}");
        }
    });
    futures::future::join_all(renewals).await;
    assert_eq!(node.lessor().renew_all(&[]).await.unwrap(), [0_i64; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_survives_a_leader_change_and_then_ends() {
    const TTL: i64 = 10;
    let mut cluster = Cluster::start(3, &[HASTY]).await;
    let leader = cluster.leader().await;
    must_grant(cluster.node(leader), 7, TTL).await;
    let granted = Instant::now();
    cluster.crash(leader);
    let new = cluster.leader().await;
    let node = cluster.node(new).clone();
    let asked = Instant::now();
    let renewed = within("a renewal", node.lessor().renew_all(&[7])).await.unwrap();
    assert_eq!(renewed, [TTL], "{:?} after the grant", granted.elapsed());
    eventually("the lease ends", || leases::lease(node.reader(), 7).unwrap().is_none()).await;
    // It was renewed after it was asked to be.
    assert!(asked.elapsed() >= Duration::from_secs(TTL.unsigned_abs()), "{:?}", asked.elapsed());
}

/// A lease whose time is over, but whose end is not in the log, may live on under another leader.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_lease_is_told_to_have_ended_while_it_is_there() {
    let alone = Cluster::start(1, &[]).await;
    ends_are_told_when_they_are_there(alone.node(0)).await;
    // A follower asks for all its clients in one call.
    let cluster = Cluster::start(3, &[]).await;
    let follower = cluster.follower().await;
    ends_are_told_when_they_are_there(cluster.node(follower)).await;
}

async fn ends_are_told_when_they_are_there(node: &Arc<Node>) {
    const LEASES: i64 = 5_000;
    /// A lease that lives on, asked for together with those that end.
    const LASTING: i64 = LEASES + 1;
    // As long as a TTL must be at least with this election timeout.
    futures::future::join_all((1..=LEASES).map(|id| must_grant(node, id, 8))).await;
    must_grant(node, LASTING, 3600).await;
    let deadline = Instant::now() + DEADLINE;
    loop {
        let term = node.status().term;
        let leases = within("all leases", node.lessor().leases()).await.unwrap();
        if leases.len() == 1 {
            return;
        }
        assert!(Instant::now() < deadline, "{} of {LEASES} leases are there", leases.len());
        // Less than a millisecond is told as none: what has none now has ended after that.
        tokio::time::sleep(Duration::from_millis(2)).await;
        let over = leases.iter().filter(|(_, left)| left.is_zero()).map(|(id, _)| *id);
        let asked: Vec<i64> = over.chain([LASTING]).collect();
        // Without a leader nothing is renewed; the next one gives every lease its time again.
        let renewed = within("a renewal", node.lessor().renew_all(&asked)).await;
        let Ok(mut ttls) = renewed else { continue };
        assert_eq!(ttls.pop(), Some(3600));
        within("a read barrier", node.read_barrier()).await.unwrap();
        if node.status().term != term {
            // The next leader gives every lease its time again.
            continue;
        }
        for (id, ttl) in asked.iter().zip(ttls) {
            assert_eq!(ttl, 0, "lease {id} is renewed after its end");
            assert!(leases::lease(node.reader(), *id).unwrap().is_none(), "lease {id}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_leases_that_expire_together_all_end() {
    const LEASES: i64 = 50_000;
    const TTL: i64 = 20;
    /// Few enough that a slow machine answers them all before a request's deadline.
    const AT_ONCE: i64 = 2_000;
    let cluster = Cluster::start(3, &[]).await;
    let node = cluster.node(cluster.leader().await).clone();
    for first in (1..=LEASES).step_by(AT_ONCE as usize) {
        let grants = (first..first + AT_ONCE).map(|id| {
            let node = node.clone();
            async move { must_grant(&node, id, TTL).await }
        });
        futures::future::join_all(grants).await;
    }
    let count = || leases::all(node.reader()).unwrap().len();
    eventually("they begin to end", || count() < usize::try_from(LEASES).unwrap()).await;
    eventually("all have ended", || count() == 0).await;
}
