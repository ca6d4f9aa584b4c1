//! A member that hears nobody asks whether it would be elected before it begins a term (pre-vote).

use std::time::Duration;

use crate::support::{HASTY, Nodes, START_TIMEOUT, eventually};

/// Many election timeouts of [`HASTY`].
const ALONE_FOR: Duration = Duration::from_secs(6);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_cut_off_begins_no_terms() {
    let mut nodes = Nodes::serving(3, &[HASTY]).await;
    let leader = nodes.leader().await;
    let (alone, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let client = nodes.client(alone).await;
    for node in [leader, other] {
        nodes.cluster.pause(node).expect("it can be stopped");
    }
    eventually("it hears nobody", START_TIMEOUT, async || {
        let status = client.status().await;
        status.is_ok_and(|status| status.errors.iter().any(|error| error.contains("no leader")))
    })
    .await;
    let before = client.status().await.expect("an answer").raft_term;
    tokio::time::sleep(ALONE_FOR).await;
    let after = client.status().await.expect("an answer").raft_term;
    assert_eq!(after, before, "it begins terms that nobody asked for");
    for node in [leader, other] {
        nodes.cluster.resume(node).expect("it goes on");
    }
    client.insist("k", b"v").await;
}
