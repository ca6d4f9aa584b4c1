//! A disk fails or becomes read-only under a running member: it ends with a line that says so and acknowledges nothing
//! more, the others go on, and on a disk that works it comes back with everything.

use std::collections::BTreeMap;

use conclave_jepsen_tests::disk::Disk;

use crate::disks::turn;
use crate::support::{HASTY, Nodes, Writers, is_long};

const WRITERS: usize = 6;
const PUTS_BEFORE: usize = 50;
/// The state is flushed at once, so that what happens to its disk is noticed.
const FLUSHING: &str = "--snapshot-count=10";

type Fault = fn(&Disk) -> anyhow::Result<()>;
/// What happens to disks, and what the system says of it.
const FAULTS: [(Fault, &str); 2] =
    [(Disk::fail, "Input/output error"), (Disk::make_read_only, "Read-only file system")];

/// The member has ended by itself, and its last line says what failed and why.
fn must_say(nodes: &mut Nodes, victim: usize, what: &str, why: &str) {
    nodes.fails(victim);
    let words = nodes.last_words(victim);
    assert!(words.contains(what) && words.contains(why), "{words}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_whose_disk_fails_ends_and_the_others_go_on() {
    let Some(_turn) = turn("a_member_whose_disk_fails").await else { return };
    let mut nodes = Nodes::on_disks(3, &[HASTY, FLUSHING]);
    nodes.serve().await;
    let mut acknowledged = BTreeMap::new();
    let rounds = if is_long() { 4 } else { 2 };
    for round in 0..rounds {
        // Of the long variant: a follower's disk fails, and a leader's becomes read-only, too.
        let (fault, why) = FAULTS[(round + round / 2) % 2];
        let leader = nodes.leader().await;
        let (victim, other) = ((leader + round % 2) % 3, (leader + 2) % 3);
        let name = format!("k-{round}");
        let writers = Writers::start(&name, &nodes.cluster.endpoints(), WRITERS);
        let client = nodes.client(other).await;
        for number in 0..PUTS_BEFORE {
            client.insist(&format!("p-{round}-{number}"), b"v").await;
        }
        fault(&nodes.disks[victim]).expect("the disk can fail");
        must_say(&mut nodes, victim, "", why);
        client.insist(&format!("p-{round}-after"), b"the others go on").await;
        acknowledged.append(&mut writers.stop().await);
        nodes.restore(&[victim]);
        nodes.all_serve().await;
        nodes.must_have("k", &acknowledged).await;
        nodes.must_be_equal().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_alone_acknowledges_nothing_after_its_disk_failed() {
    let Some(_turn) = turn("a_member_alone_acknowledges_nothing").await else { return };
    let mut nodes = Nodes::on_disks(1, &[]);
    nodes.serve().await;
    let mut acknowledged = BTreeMap::new();
    for (round, (fault, why)) in FAULTS.into_iter().enumerate() {
        let client = nodes.client(0).await;
        let key = format!("k-{round}");
        let revision = client.put(&key, "v").await.expect("the disk still works");
        acknowledged.insert(key, revision);
        fault(&nodes.disks[0]).expect("the disk can fail");
        client.put(&format!("k-{round}-late"), "v").await.expect_err("its record is nowhere");
        must_say(&mut nodes, 0, "the raft log failed", why);
        // As an operator who has not found the reason yet: it still says what is wrong.
        nodes.cluster.start(0).expect("the program starts");
        must_say(&mut nodes, 0, "", why);
        nodes.restore(&[0]);
        nodes.all_serve().await;
        let (_, keys) = nodes.client(0).await.keys("k").await.expect("an answer");
        assert_eq!(keys, acknowledged, "what was acknowledged, and nothing else");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_whose_state_cannot_be_written_ends_although_its_log_can() {
    let Some(_turn) = turn("a_member_whose_state_cannot_be_written").await else { return };
    let wal = tempfile::tempdir().expect("a directory");
    let flag = format!("--wal-dir={}", wal.path().display());
    let mut acknowledged = BTreeMap::new();
    let mut nodes = Nodes::on_disks(1, &[FLUSHING, &flag]);
    nodes.serve().await;
    for (round, (fault, why)) in FAULTS.into_iter().enumerate() {
        fault(&nodes.disks[0]).expect("the disk can fail");
        let writers = Writers::start(&format!("k-{round}"), &nodes.cluster.endpoints(), WRITERS);
        must_say(&mut nodes, 0, "state", why);
        // The log is whole, so what is acknowledged stays, whatever became of the state.
        acknowledged.append(&mut writers.stop().await);
        nodes.restore(&[0]);
        nodes.all_serve().await;
        nodes.must_have("k", &acknowledged).await;
    }
}
