//! A holder that is paused past its TTL wakes up and writes: without the guard an update of the next holder
//! is lost, with it the write is refused.

use std::time::Duration;

use conclave_client::Client;
use conclave_client::kv::put;
use conclave_jepsen_tests::hold;

use crate::holder::Holder;
use crate::support::{Nodes, START_TIMEOUT};

const NUMBER: &str = "stock/number";
const IN_STOCK: i64 = 10;
/// Of the session of who is paused, which is waited for.
const TTL_SECONDS: u64 = 3;

/// Takes one away by a holder that sleeps through the end of its session, and one by the next holder.
/// Whether the first one wrote, and what is left.
async fn take_two(nodes: &Nodes, client: &Client, more: &[&str]) -> (bool, i64) {
    client.put(NUMBER, IN_STOCK.to_string()).await.expect("a put");
    let mut paused =
        Holder::start(&nodes.cluster.endpoints(), ("stock", NUMBER), TTL_SECONDS, more);
    let (token, seen) = paused.held();
    assert_eq!(seen, IN_STOCK);
    paused.signal("STOP");
    let session = client.session().ttl(Duration::from_secs(60)).await.expect("a session");
    let acquire = session.lock("stock").wait(START_TIMEOUT).await;
    let guard = acquire.expect("the lock, as soon as the session of the paused one expired");
    assert!(guard.token() > token, "tokens grow");
    let left = hold::number(client, NUMBER).await.expect("a number") - 1;
    guard.txn().then(put(NUMBER, left.to_string())).commit().await.expect("it holds");
    paused.signal("CONT");
    let has_written = paused.goes_on() == "written";
    guard.release().await.expect("released");
    session.close().await.expect("closed");
    (has_written, hold::number(client, NUMBER).await.expect("a number"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_holder_never_writes_through_its_guard() {
    let nodes = Nodes::serving(3, &[]).await;
    let client = Client::builder(nodes.cluster.endpoints()).build().expect("a client");
    let (has_written, left) = take_two(&nodes, &client, &["--unguarded"]).await;
    println!("TTL {TTL_SECONDS} s, unguarded: written {has_written}, {left} of {IN_STOCK} left");
    assert!(has_written && left == IN_STOCK - 1, "without the guard an update is lost");
    let (has_written, left) = take_two(&nodes, &client, &[]).await;
    println!("TTL {TTL_SECONDS} s, guarded: written {has_written}, {left} of {IN_STOCK} left");
    assert!(!has_written && left == IN_STOCK - 1, "with it the write is refused");
}
