//! No space left on one member's disk: it says so and what to do, the others go on, and doing it helps.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use conclave_jepsen_tests::members;

use crate::support::{Nodes, START_TIMEOUT, eventually, files, skipped};

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
    drop(nodes);
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
