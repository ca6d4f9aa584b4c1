//! Members that do not hear each other, while clients reach all of them.
//!
//! A leader that is cut off serves nothing that another one could have changed; whoever holds something through it
//! knows that it is lost before others get it; and where a majority is connected somehow, there is a leader, without
//! elections that never end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use conclave_client::Client as Native;
use conclave_client::kv::put;
use conclave_jepsen_tests::network::Network;
use conclave_jepsen_tests::network::cut::{self, Way};
use tokio::task::JoinSet;

use crate::support::{Client, HASTY, Nodes, START_TIMEOUT, eventually, is_long};

/// Patience of those who ask the member that is cut off, again and again.
const ATTEMPT: Duration = Duration::from_secs(2);
/// So many attempts of a kind are made there while others serve.
const ATTEMPTS: usize = 3;
/// Of a session that is to be lost, and not before the leader is cut off.
const TTL: Duration = Duration::from_secs(10);
/// Of a session that is not to be lost.
const LONG_TTL: Duration = Duration::from_secs(120);
/// In so many election timeouts of [`HASTY`] each member could begin about as many terms.
const PARTED_FOR: Duration = Duration::from_secs(12);
/// One is needed; more are a loaded machine's.
const TERMS_MAX: u64 = 5;

/// What is asked of a leader that is cut off.
struct Asked {
    /// The value of `k`, of which nobody else knows before there is a new one.
    is_replaced: AtomicBool,
    /// Reads and puts that were begun after that.
    late: [AtomicUsize; 2],
}

/// Reads `k` again and again; what was there before must not be answered once there is something newer.
async fn read(client: Client, asked: Arc<Asked>) {
    loop {
        let is_late = asked.is_replaced.load(Ordering::SeqCst);
        let answer = tokio::time::timeout(ATTEMPT, client.get("k")).await;
        if let Ok(Ok(value)) = answer {
            assert!(!is_late, "a linearizable read brought {value:?} of the past");
        }
        asked.late[0].fetch_add(usize::from(is_late), Ordering::SeqCst);
    }
}

/// Puts again and again; nothing may be acknowledged.
async fn write(client: Client, asked: Arc<Asked>) {
    for number in 0.. {
        let is_late = asked.is_replaced.load(Ordering::SeqCst);
        let answer = tokio::time::timeout(ATTEMPT, client.put(&format!("cut-{number}"), "v")).await;
        assert!(!matches!(answer, Ok(Ok(_))), "a put without a quorum was acknowledged");
        asked.late[1].fetch_add(usize::from(is_late), Ordering::SeqCst);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_answers_nothing_of_the_past_and_acknowledges_nothing() {
    let (nodes, network) = Nodes::parted(3, &[HASTY]).await;
    let old = nodes.leader().await;
    let client = nodes.client(old).await;
    client.insist("k", b"old").await;
    network.cut(cut::isolated(old, 3));
    let asked = Arc::new(Asked { is_replaced: AtomicBool::default(), late: Default::default() });
    let mut asking = JoinSet::new();
    asking.spawn(read(nodes.client(old).await, Arc::clone(&asked)));
    asking.spawn(write(nodes.client(old).await, Arc::clone(&asked)));

    let new = nodes.leader_of(&others(old)).await;
    let other = nodes.client(new).await;
    other.insist("k", b"new").await;
    asked.is_replaced.store(true, Ordering::SeqCst);
    eventually("it is asked often enough", 4 * START_TIMEOUT, async || {
        assert!(asking.try_join_next().is_none(), "see above");
        asked.late.iter().all(|late| late.load(Ordering::SeqCst) >= ATTEMPTS)
    })
    .await;
    asking.shutdown().await;
    // Clients reach it all the while: whoever asks for no more than that gets what it knows.
    assert_eq!(client.get_local("k").await.expect("an answer"), Some(b"old".to_vec()));
    assert_eq!(other.get("k").await.expect("an answer"), Some(b"new".to_vec()));

    network.heal();
    nodes.all_serve().await;
    assert_eq!(client.get("k").await.expect("an answer"), Some(b"new".to_vec()));
    let last = other.insist("last", b"v").await;
    nodes.must_agree(last).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_holds_through_a_leader_that_is_cut_off_knows_first_that_it_is_lost() {
    let (nodes, network) = Nodes::parted(3, &[HASTY]).await;
    let old = nodes.leader().await;
    let one = native(&[nodes.endpoint(old)]);
    let holder = one.session().ttl(TTL).owner("one").await.expect("a session");
    let held = holder.lock("jobs").await.expect("the lock");
    let lease = one.lease_grant(60, 0).await.expect("a lease").id;
    let two = native(&others(old).map(|node| nodes.endpoint(node)));
    let session = two.session().ttl(LONG_TTL).owner("two").await.expect("a session");

    network.cut(cut::isolated(old, 3));
    let waits = tokio::spawn({
        let holder = holder.clone();
        async move {
            let next = session.lock("jobs").wait(4 * START_TIMEOUT).await.expect("the lock");
            // By the clock of the client, at the moment at which somebody else has it.
            (next, holder.is_lost())
        }
    });
    tokio::time::timeout(START_TIMEOUT, holder.jeopardy()).await.expect("it is warned");
    let (next, is_lost) = waits.await.expect("somebody else gets it");
    assert!(is_lost, "two hold it");
    assert!(held.lost().is_cancelled() || held.session().is_some_and(|held| held.is_lost()));
    assert!(next.token() > held.token(), "{} after {}", next.token(), held.token());

    // Another member leads, and the time is over in which the old one could think that it does.
    assert!(next.is_held().await.expect("an answer"));
    let hasty = one.with_timeout(ATTEMPT);
    for _ in 0..ATTEMPTS {
        let kept = hasty.lease_keep_alive_once(lease).await;
        assert!(kept.is_err(), "a leader that is cut off keeps nothing alive: {kept:?}");
    }
    let written = held.txn().then(put("state", "of the past")).commit().await;
    assert!(written.is_err(), "{written:?}");
    network.heal();
    nodes.all_serve().await;
    assert!(next.is_held().await.expect("an answer"), "nor does it come back");
    assert!(one.get("state").await.expect("an answer").one().is_none());
}

fn native(endpoints: &[String]) -> Native {
    Native::builder(endpoints.to_vec()).build().expect("a client")
}

fn others(node: usize) -> [usize; 2] {
    [(node + 1) % 3, (node + 2) % 3]
}

/// Cuts these ways for long: puts through `connected` are acknowledged, and terms do not go up and up. How far.
async fn goes_on(nodes: &Nodes, network: &Network, ways: Vec<Way>, connected: usize) -> u64 {
    let client = nodes.client(connected).await;
    let before = newest_term(nodes).await;
    network.cut(ways.clone());
    client.insist("first", b"v").await;
    tokio::time::sleep(if is_long() { 5 * PARTED_FOR } else { PARTED_FOR }).await;
    client.insist("later", b"v").await;
    let terms = newest_term(nodes).await - before;
    assert!(terms <= TERMS_MAX, "{terms} terms without {ways:?}: elections without end");
    network.heal_broken();
    nodes.all_serve().await;
    let last = client.insist("last", b"v").await;
    nodes.must_agree(last).await;
    terms
}

/// Of all members, which may know of different ones.
async fn newest_term(nodes: &Nodes) -> u64 {
    let mut newest = 0;
    for node in 0..nodes.cluster.nodes().len() {
        newest = newest.max(nodes.client(node).await.status().await.expect("an answer").raft_term);
    }
    newest
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_not_heard_or_does_not_hear_is_replaced_once() {
    let (nodes, network) = Nodes::parted(3, &[HASTY]).await;
    for cut in [cut::mute, cut::deaf] {
        let leader = nodes.leader().await;
        let terms = goes_on(&nodes, &network, cut(leader, 3), others(leader)[0]).await;
        println!("{terms} terms");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_hear_each_other_through_a_third_one_only_do_not_elect_without_end() {
    let (nodes, network) = Nodes::parted(3, &[HASTY]).await;
    // The leader in the middle, then at one end.
    let middle = nodes.leader().await;
    let around_leader = goes_on(&nodes, &network, cut::bridge(middle, 3), middle).await;

    let leader = nodes.leader().await;
    let [middle, end] = others(leader);
    network.cut(cut::bridge(middle, 3));
    let client = nodes.client(end).await;
    eventually("the other end hears no leader, or the middle leads", START_TIMEOUT, async || {
        let errors = client.status().await.expect("an answer").errors;
        errors.iter().any(|error| error.contains("no leader")) || nodes.leader().await == middle
    })
    .await;
    let beside_leader = goes_on(&nodes, &network, cut::bridge(middle, 3), middle).await;
    println!("{around_leader} terms with the leader in the middle, {beside_leader} at one end");
}
