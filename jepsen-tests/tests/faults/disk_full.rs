//! No space left on the disk of one member: it says so and what to do, the others go on, and doing it helps. On the
//! disks of all: nothing acknowledged is lost.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use conclave_jepsen_tests::members;

use crate::disks::{ALL, turn};
use crate::support::{Client, HASTY, Nodes, START_TIMEOUT, eventually, files, skipped};

const VICTIM: usize = 2;
const OTHER: usize = 0;
const ADVICE: &str = "nothing acknowledged is lost; free space and start";
/// More than two segments of the log.
const DISK_MEGABYTES: u32 = 160;
/// More values than fit into two segments.
const VALUES_MAX: usize = 150;
const VALUE_BYTES: usize = 1_000_000;
/// The state is flushed every ten entries, at most once a second.
const PUTS_MAX: usize = 300;
const PUT_PAUSE: Duration = Duration::from_millis(100);
/// With one put while members end one after the other.
const PATIENCE: Duration = Duration::from_secs(1);

/// A small file system of its own, gone with this value.
struct SmallDisk {
    at: PathBuf,
}

impl SmallDisk {
    /// Mounts it; `None` where that is not permitted.
    fn mount(test: &str, at: &Path, megabytes: u32) -> Option<Self> {
        std::fs::create_dir_all(at).expect("a directory");
        let size = format!("size={megabytes}m");
        let mut mount = Command::new("mount");
        let output = mount.args(["-t", "tmpfs", "-o", &size, "conclave-faults"]).arg(at).output();
        match output {
            Ok(output) if output.status.success() => Some(Self { at: at.to_owned() }),
            Ok(output) => {
                skipped(test, String::from_utf8_lossy(&output.stderr).trim());
                None
            }
            Err(error) => {
                skipped(test, &format!("mount: {error}"));
                None
            }
        }
    }

    /// Takes all space that is left.
    fn fill(&self) {
        let path = self.at.join("filler");
        let filler = std::fs::File::options().create(true).append(true).open(path);
        let mut file = filler.expect("a file");
        let mut source = std::io::repeat(7);
        let error = std::io::copy(&mut source, &mut file).expect_err("the disk is small");
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    }

    fn free(&self) {
        std::fs::remove_file(self.at.join("filler")).expect("the filler");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a node that still runs after a failed test ends a moment later.
        let status = Command::new("umount").arg("--lazy").arg(&self.at).status();
        if !status.is_ok_and(|status| status.success()) {
            eprintln!("could not unmount {}", self.at.display());
        }
    }
}

/// Starts the member again and compares it with the others.
async fn recovers(nodes: &mut Nodes) {
    nodes.cluster.start(VICTIM).expect("the program starts");
    nodes.all_serve().await;
    let (revision, keys) = nodes.client(OTHER).await.keys("k").await.expect("an answer");
    assert_eq!(nodes.client(VICTIM).await.keys("k").await.expect("an answer").1, keys);
    let mut violations = Vec::new();
    members::compare(&nodes.cluster.endpoints(), revision, &mut violations).await;
    assert!(violations.is_empty(), "{violations:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_under_the_state_ends_the_member_with_advice_that_helps() {
    let mut nodes = Nodes::create(3, &["--snapshot-count=10"]);
    let data_dir = nodes.data_dir(VICTIM).to_owned();
    let test = "a_full_disk_under_the_state";
    let Some(disk) = SmallDisk::mount(test, &data_dir, DISK_MEGABYTES) else { return };
    nodes.cluster.start_all().expect("the program starts");
    nodes.all_serve().await;
    // The second segment is prepared, or the log would be the first to miss the space.
    eventually("the log is prepared", START_TIMEOUT, async || nodes.segments(VICTIM).len() >= 2)
        .await;
    let client = nodes.client(OTHER).await;
    let mut ended = None;
    for number in 0..PUTS_MAX {
        // Again and again: a flush that fails leaves room behind.
        disk.fill();
        client.insist(&format!("k{number}"), b"v").await;
        ended = tokio::task::block_in_place(|| nodes.cluster.wait_for_end(VICTIM, PUT_PAUSE))
            .expect("a process");
        if ended.is_some() {
            break;
        }
    }
    match ended {
        Some(status) => assert!(!status.success(), "{status}"),
        // It was written to for long enough, and may be late.
        None => nodes.fails(VICTIM),
    }
    let words = nodes.last_words(VICTIM);
    assert!(words.contains("no space left for the state") && words.contains(ADVICE), "{words}");
    client.insist("k-alone", b"the others go on").await;

    // The database reserves space for its manifest and gives it back when it closes.
    disk.fill();
    nodes.cluster.start(VICTIM).expect("the program starts");
    nodes.fails(VICTIM);
    let words = nodes.last_words(VICTIM);
    assert!(words.contains("no space left") && words.contains(ADVICE), "still full: {words}");

    disk.free();
    recovers(&mut nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_under_the_log_is_told_before_it_matters_and_then_ends_the_member() {
    let dir = tempfile::tempdir().expect("a directory");
    let wal = dir.path().join("wal");
    let test = "a_full_disk_under_the_log";
    let Some(disk) = SmallDisk::mount(test, &wal, DISK_MEGABYTES) else { return };
    let mut nodes = Nodes::create(3, &[]);
    let mut program = nodes.cluster.program().clone();
    program.flags.push(format!("--wal-dir={}", wal.display()));
    nodes.cluster.start_as(VICTIM, &program).expect("the program starts");
    nodes.cluster.start_all().expect("the program starts");
    nodes.all_serve().await;
    // The one being written and the next one.
    eventually("the log is prepared", START_TIMEOUT, async || files(&wal, "segment").len() >= 2)
        .await;
    disk.fill();

    let client = nodes.client(OTHER).await;
    let value = vec![b'v'; VALUE_BYTES];
    let warning = "cannot prepare a raft log segment";
    for number in 0..VALUES_MAX {
        client.insist(&format!("k{number}"), &value).await;
        let ended = tokio::task::block_in_place(|| nodes.cluster.wait_for_end(VICTIM, PUT_PAUSE));
        if ended.expect("a process").is_some_and(|status| !status.success()) {
            break;
        }
    }
    let log = nodes.log(VICTIM);
    let (warned, last) = (log.find(warning), log.find("no space left for the raft log"));
    assert!(warned.is_some() && warned < last, "the member warns while it still has a segment");
    let words = nodes.last_words(VICTIM);
    assert!(words.contains("no space left for the raft log") && words.contains(ADVICE), "{words}");

    disk.free();
    nodes.cluster.start_as(VICTIM, &program).expect("the program starts");
    recovers(&mut nodes).await;
    drop(nodes);
}

/// Puts large values through any of the nodes until at least `count` of them have ended with advice.
async fn write_until_ended(
    nodes: &mut Nodes,
    (name, count): (&str, usize),
    acknowledged: &mut BTreeMap<String, i64>,
) -> Vec<usize> {
    let value = vec![b'v'; VALUE_BYTES];
    let mut ended = Vec::new();
    for number in 0..VALUES_MAX {
        for (node, status) in nodes.cluster.reap_dead().expect("processes") {
            let words = nodes.last_words(node);
            assert!(words.contains("no space left") && words.contains(ADVICE), "{status}: {words}");
            ended.push(node);
        }
        if ended.len() >= count {
            return ended;
        }
        for node in ALL.into_iter().filter(|node| !ended.contains(node)) {
            let key = format!("{name}-{number}-{node}");
            let Ok(client) = Client::open(&nodes.endpoint(node)).await else { continue };
            if let Ok(Ok(revision)) =
                tokio::time::timeout(PATIENCE, client.put(&key, &*value)).await
            {
                acknowledged.insert(key, revision);
            }
        }
    }
    panic!("{ended:?} ended of a log that needs more space than there is");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_disks_of_a_leader_and_of_everybody_lose_nothing_acknowledged() {
    let Some(_turn) = turn("full_disks_of_a_leader_and_of_everybody").await else { return };
    let mut nodes = Nodes::on_disks(3, &[HASTY]);
    nodes.serve().await;
    let mut acknowledged = BTreeMap::new();

    let leader = nodes.leader().await;
    nodes.disks[leader].fill().expect("the disk is small");
    let ended = write_until_ended(&mut nodes, ("k-leader", 1), &mut acknowledged).await;
    assert_eq!(ended, [leader]);
    let other = (leader + 1) % 3;
    nodes.client(other).await.insist("p-others", b"the others go on").await;
    nodes.disks[leader].free().expect("the filler");
    nodes.serve().await;
    nodes.must_have("k", &acknowledged).await;

    nodes.disks.iter().for_each(|disk| disk.fill().expect("the disk is small"));
    let ended = write_until_ended(&mut nodes, ("k-all", 2), &mut acknowledged).await;
    if let Some(alive) = ALL.into_iter().find(|node| !ended.contains(node))
        && let Ok(client) = Client::open(&nodes.endpoint(alive)).await
        && let Ok(value) = client.get_local("p-others").await
    {
        assert_eq!(value.as_deref(), Some(&b"the others go on"[..]), "it still tells what it has");
    }
    nodes.disks.iter().for_each(|disk| disk.free().expect("the filler"));
    nodes.cluster.reap_dead().expect("processes");
    nodes.serve().await;
    nodes.must_have("k", &acknowledged).await;
    nodes.must_be_equal().await;
    println!("{} puts acknowledged, none lost", acknowledged.len());
}
