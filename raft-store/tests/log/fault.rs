//! A disk that fails: the log ends at once, answers nothing it did not write, and loses nothing.

use std::io::ErrorKind;
use std::sync::Arc;

use conclave_raft_store::log::sim::{Operation, SimDisk};
use conclave_raft_store::log::{Disk, LogFailure, LogOptions, LogStore};
use conclave_raft_store::types::{TypeConfig, Vote};
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::type_config::TypeConfigExt;
use parking_lot::Mutex;

use crate::damage::append_each;
use crate::model::{State, entry, open, options};

type Failures = Arc<Mutex<Vec<String>>>;

fn watched(disk: &SimDisk) -> (LogStore, Failures) {
    let failures = Failures::default();
    let seen = failures.clone();
    let on_failure = Box::new(move |failure: &LogFailure| {
        let kind = match failure {
            LogFailure::NoSpace { .. } => "no space",
            LogFailure::Write { .. } => "write",
            LogFailure::Sync { .. } => "sync",
        };
        seen.lock().push(format!("{kind}: {failure}"));
    });
    let options = LogOptions { on_failure, ..options() };
    let log = LogStore::open_on(Arc::new(disk.clone()), options).expect("a sound disk");
    (log, failures)
}

/// Appends one entry; whether it became durable.
async fn append(log: &LogStore, index: u64, bytes: usize) -> bool {
    let (sender, receiver) = TypeConfig::oneshot();
    let flushed = IOFlushed::signal(sender);
    let appended = log.clone().append([entry(1, index, bytes)], flushed).await;
    appended.is_ok() && matches!(receiver.await, Ok(Ok(())))
}

#[tokio::test]
async fn a_failed_sync_or_write_ends_the_log() {
    for (operation, kind) in [(Operation::Sync, "sync"), (Operation::Write, "write")] {
        let disk = SimDisk::new();
        let (log, failures) = watched(&disk);
        // The next segment is being prepared; only then is the fault the writer's.
        while disk.list().expect("a directory").iter().filter(|n| n.ends_with(".segment")).count()
            < 2
        {
            tokio::task::yield_now().await;
        }
        append_each(&log, 0..3, 100).await;
        disk.fail(operation, 0, ErrorKind::Other);
        assert!(!append(&log, 3, 100).await);
        assert!(failures.lock()[0].starts_with(kind), "{failures:?}");
        assert!(!append(&log, 4, 100).await, "nothing works any more");
        assert!(log.clone().save_vote(&Vote::new(9, 9)).await.is_err());
        assert_eq!(failures.lock().len(), 1);
        drop(log);
        let found = State::of(&open(&disk.kill()).expect("a sound log")).await;
        assert!(found.entries.len() >= 3);
        assert_eq!(found.vote, None);
    }
}

#[tokio::test]
async fn a_full_disk_ends_the_log_and_loses_nothing() {
    let disk = SimDisk::new();
    let (log, failures) = watched(&disk);
    disk.set_space(Some(40 * 1024));
    let mut durable = 0;
    while append(&log, durable, 1000).await {
        durable += 1;
        assert!(durable < 1000, "the disk is never full");
    }
    assert!(durable > 20);
    let failure = failures.lock()[0].clone();
    assert!(failure.starts_with("no space") && failure.contains("free space"), "{failure}");
    drop(log);

    let disk = disk.kill();
    disk.set_space(None);
    let log = open(&disk).expect("a sound log");
    let found = State::of(&log).await;
    assert!(found.entries.len() as u64 >= durable);
    append_each(&log, found.entries.len() as u64..200, 1000).await;
}

#[tokio::test]
async fn space_that_returns_in_time_is_used() {
    let disk = SimDisk::new();
    let (log, failures) = watched(&disk);
    append_each(&log, 0..2, 1000).await;
    disk.fail(Operation::Create, 0, ErrorKind::StorageFull);
    append_each(&log, 2..60, 1000).await;
    assert!(failures.lock().is_empty());
}

#[tokio::test]
async fn purged_segments_are_written_again_so_a_bounded_log_needs_bounded_space() {
    let disk = SimDisk::new();
    let (log, failures) = watched(&disk);
    disk.set_space(Some(10 * 8192));
    for round in 0..50 {
        append_each(&log, round * 20..round * 20 + 20, 1000).await;
        log.clone().purge(crate::model::id(1, round * 20 + 15)).await.expect("an open log");
    }
    assert!(failures.lock().is_empty());
    assert_eq!(State::of(&log).await.entries.len(), 4);
}

const CHILD: &str = "CONCLAVE_LOG_TEST_CHILD";

/// Not a test of its own: what [`the_process_aborts_when_a_sync_fails`] runs in a process.
#[tokio::test]
async fn child() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let disk = SimDisk::new();
    let options = LogOptions { segment_bytes: 8192, ..LogOptions::new(1) };
    let log = LogStore::open_on(Arc::new(disk.clone()), options).expect("an empty disk");
    append_each(&log, 0..3, 100).await;
    // The thread that prepares segments may meet the first one.
    for index in 3..30 {
        disk.fail(Operation::Sync, 0, ErrorKind::Other);
        append(&log, index, 1000).await;
    }
}

#[test]
fn the_process_aborts_when_a_sync_fails() {
    use std::os::unix::process::ExitStatusExt;
    let program = std::env::current_exe().expect("this program");
    let output = std::process::Command::new(program)
        .args(["--exact", "fault::child", "--test-threads=1"])
        .env(CHILD, "1")
        .output()
        .expect("a child");
    assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{output:?}");
}
