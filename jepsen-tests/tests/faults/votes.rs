//! A member that hears nobody asks whether it would be elected before it begins a term (pre-vote).

use std::time::Duration;

use conclave_jepsen_tests::network::cut;

use crate::support::{HASTY, Nodes, START_TIMEOUT, eventually};

/// Many election timeouts of [`HASTY`].
const ALONE_FOR: Duration = Duration::from_secs(6);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_cut_off_begins_no_terms() {
    let (nodes, network) = Nodes::parted(3, &[HASTY]).await;
    let alone = (nodes.leader().await + 1) % 3;
    let client = nodes.client(alone).await;
    network.cut(cut::isolated(alone, 3));
    eventually("it hears nobody", START_TIMEOUT, async || {
        let status = client.status().await;
        status.is_ok_and(|status| status.errors.iter().any(|error| error.contains("no leader")))
    })
    .await;
    let before = client.status().await.expect("an answer").raft_term;
    tokio::time::sleep(ALONE_FOR).await;
    let after = client.status().await.expect("an answer").raft_term;
    assert_eq!(after, before, "it begins terms that nobody asked for");
    network.heal();
    client.insist("k", b"v").await;
}
