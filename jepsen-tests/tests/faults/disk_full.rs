//! No space left on one member's disk: it says so and what to do, the others go on, and doing it helps.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use conclave_jepsen_tests::members;

use crate::support::{Nodes, START_TIMEOUT, eventually, skipped};

const VICTIM: usize = 2;
const OTHER: usize = 0;
const ADVICE: &str = "nothing acknowledged is lost; free space and start";
/// Of the raft log.
const SEGMENT_MEGABYTES: u32 = 16;
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

    fn grow(&self, megabytes: u32) {
        let options = format!("remount,size={megabytes}m");
        let status = Command::new("mount").args(["-o", &options]).arg(&self.at).status();
        assert!(status.expect("mount runs").success());
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
    // Two segments of the log and some more.
    let Some(disk) = SmallDisk::mount(test, &data_dir, 3 * SEGMENT_MEGABYTES) else { return };
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
    assert!(ended.is_some_and(|status| !status.success()), "{ended:?}");
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
    // One segment and not another one.
    let Some(disk) = SmallDisk::mount(test, &wal, SEGMENT_MEGABYTES * 3 / 2) else { return };
    let mut nodes = Nodes::create(3, &[]);
    let mut program = nodes.cluster.program().clone();
    program.flags.push(format!("--wal-dir={}", wal.display()));
    nodes.cluster.start_as(VICTIM, &program).expect("the program starts");
    nodes.cluster.start_all().expect("the program starts");
    nodes.all_serve().await;
    let warning = "cannot prepare a raft log segment";
    eventually("the member warns", START_TIMEOUT, async || nodes.log(VICTIM).contains(warning))
        .await;

    let client = nodes.client(OTHER).await;
    let value = vec![b'v'; VALUE_BYTES];
    for number in 0..2 * SEGMENT_MEGABYTES {
        client.insist(&format!("k{number}"), &value).await;
    }
    nodes.fails(VICTIM);
    let words = nodes.last_words(VICTIM);
    assert!(words.contains("no space left for the raft log") && words.contains(ADVICE), "{words}");

    disk.grow(400);
    nodes.cluster.start_as(VICTIM, &program).expect("the program starts");
    recovers(&mut nodes).await;
    drop(nodes);
}
