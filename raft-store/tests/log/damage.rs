//! Bytes changed behind the log's back: a torn end is cut off, anything else is refused.

use std::sync::Arc;

use conclave_raft_store::log::sim::SimDisk;
use conclave_raft_store::log::{Disk, LogOptions, LogStore, OpenError};
use conclave_raft_store::types::{TypeConfig, Vote};
use openraft::storage::{IOFlushed, RaftLogReader, RaftLogStorage};
use openraft::type_config::TypeConfigExt;

use crate::model::{State, entry, open, options};

/// Appends entries of `bytes` each, every one a group of its own.
pub(crate) async fn append_each(log: &LogStore, indexes: std::ops::Range<u64>, bytes: usize) {
    let mut log = log.clone();
    for index in indexes {
        let (sender, receiver) = TypeConfig::oneshot();
        let flushed = IOFlushed::signal(sender);
        log.append([entry(1, index, bytes)], flushed).await.expect("an open log");
        receiver.await.expect("an answer").expect("a durable entry");
    }
}

fn segments(disk: &SimDisk) -> Vec<String> {
    let mut names = disk.list().expect("a directory");
    names.retain(|name| name.ends_with(".segment"));
    names.sort();
    names
}

/// A log of four segments and a bit, closed in order.
async fn filled() -> SimDisk {
    let disk = SimDisk::new();
    let log = open(&disk).expect("an empty disk");
    log.clone().save_vote(&Vote::new(1, 1)).await.expect("an open log");
    append_each(&log, 0..35, 1000).await;
    drop(log);
    disk.kill()
}

fn damage_of(disk: &SimDisk) -> (String, u64) {
    match open(disk) {
        Err(error @ OpenError::Damaged { .. }) => {
            let text = error.to_string();
            assert!(text.contains("delete its data directory"), "says what to do: {text}");
            let OpenError::Damaged { path, offset, .. } = error else { unreachable!() };
            let name = path.file_name().expect("a file").to_string_lossy().into_owned();
            (name, offset)
        }
        Err(other) => panic!("refused for another reason: {other}"),
        Ok(_) => panic!("a damaged log opened"),
    }
}

#[tokio::test]
async fn damage_in_the_middle_is_refused_and_located() {
    let disk = filled().await;
    let names = segments(&disk);
    for name in &names[..4] {
        let disk = filled().await;
        disk.damage(name, |bytes| bytes[512 + 1100] ^= 1).expect("a segment");
        let (file, offset) = damage_of(&disk);
        assert_eq!(&file, name);
        assert!((512..=512 + 1100).contains(&offset), "{offset}");
        // A refusal changes nothing: it is repeated.
        assert_eq!(damage_of(&disk), (file, offset));
    }
    for name in &names[..4] {
        let disk = filled().await;
        disk.damage(name, |bytes| bytes[..512].fill(0)).expect("a segment");
        assert_eq!(&damage_of(&disk).0, name, "a lost header");
    }
}

#[tokio::test]
async fn a_lost_segment_is_refused() {
    for lost in 0..4 {
        let disk = filled().await;
        disk.remove(&segments(&disk)[lost]).expect("a segment");
        damage_of(&disk);
    }
}

#[tokio::test]
async fn any_flipped_byte_is_refused_or_cuts_only_the_last_group() {
    let whole = {
        let log = open(&filled().await).expect("a sound log");
        State::of(&log).await
    };
    let mut without_last = whole.clone();
    without_last.entries.pop();
    without_last.last = without_last.entries.last().map(|entry| entry.log_id);

    let mut outcomes = [0, 0, 0];
    for at in (0..8192).step_by(37) {
        let disk = filled().await;
        let tail = tail_of(&disk);
        disk.damage(&tail, |bytes| bytes[at] ^= 0x10).expect("a segment");
        match open(&disk) {
            Ok(log) => {
                let found = State::of(&log).await;
                assert!(found == whole || found == without_last, "byte {at}");
                outcomes[usize::from(found == whole)] += 1;
            }
            Err(OpenError::Damaged { .. }) => outcomes[2] += 1,
            Err(other) => panic!("{other}"),
        }
    }
    assert!(outcomes.iter().all(|count| *count > 0), "{outcomes:?}");
}

/// The last segment with records.
fn tail_of(disk: &SimDisk) -> String {
    let used = segments(disk).into_iter().rfind(|name| {
        let file = disk.open(name).expect("a segment");
        let mut header = [0; 8];
        file.read_exact_at(&mut header, 0).expect("a header");
        header != [0; 8]
    });
    used.expect("a segment with records")
}

#[tokio::test]
async fn a_torn_end_is_cut_off_and_written_over() {
    for kept in [520, 1500, 2200] {
        let disk = filled().await;
        let tail = tail_of(&disk);
        let before = State::of(&open(&disk.kill()).expect("a sound log")).await;
        let disk = disk.kill();
        disk.damage(&tail, |bytes| bytes[kept..].fill(0)).expect("a segment");
        let log = open(&disk).expect("a torn end is no damage");
        let found = State::of(&log).await;
        assert!(before.entries.starts_with(&found.entries), "{kept}");
        let next = found.last.map_or(0, |id| id.index + 1);
        append_each(&log, next..40, 300).await;
        drop(log);
        let again = State::of(&open(&disk.kill()).expect("a sound log")).await;
        assert_eq!(again.entries.len(), 40);
        assert_eq!(again.entries[..next as usize], found.entries[..]);
    }
}

#[tokio::test]
async fn a_condemned_log_never_opens_again() {
    let disk = filled().await;
    let log = open(&disk).expect("a sound log");
    let refusal = log.condemn("entry 7 was acknowledged").expect("a sound disk").to_string();
    assert!(
        refusal.contains("lost records or leads to a wrong state: entry 7 was acknowledged"),
        "{refusal}"
    );
    assert!(refusal.contains("delete its data directory"), "{refusal}");
    drop(log);
    for _ in 0..2 {
        let disk = disk.kill();
        match open(&disk) {
            Err(error @ OpenError::Lost { .. }) => assert_eq!(error.to_string(), refusal),
            Err(other) => panic!("refused for another reason: {other}"),
            Ok(_) => panic!("a condemned log opened"),
        }
    }
}

#[tokio::test]
async fn records_behind_a_torn_one_never_come_back() {
    let disk = SimDisk::new();
    let log = open(&disk).expect("an empty disk");
    append_each(&log, 0..2, 200).await;
    let torn_at = log.stats().written_bytes_total as usize;
    let (sender, receiver) = TypeConfig::oneshot();
    let group = (2..5).map(|index| entry(1, index, 200));
    log.clone().append(group, IOFlushed::signal(sender)).await.expect("an open log");
    receiver.await.expect("an answer").expect("durable entries");
    drop(log);
    let disk = disk.kill();
    disk.damage(&tail_of(&disk), |bytes| bytes[torn_at..torn_at + 40].fill(0)).expect("a segment");

    // One that is as long takes the place of the torn record; its old followers fit behind it.
    let log = open(&disk).expect("a torn end is no damage");
    assert_eq!(log.stats().next_index, 2);
    append_each(&log, 2..3, 200).await;
    drop(log);
    let log = open(&disk.kill()).expect("a sound log");
    assert_eq!(log.stats().next_index, 3);
}

#[tokio::test]
async fn a_read_notices_what_rots_while_the_log_is_open() {
    let disk = filled().await;
    let mut log = open(&disk).expect("a sound log");
    let name = segments(&disk)[1].clone();
    disk.damage(&name, |bytes| bytes[3000] ^= 1).expect("a segment");
    let error = log.try_get_log_entries(..).await.expect_err("a damaged entry");
    assert!(error.to_string().contains(&name), "{error}");
    assert_eq!(log.try_get_log_entries(0..3).await.expect("sound entries").len(), 3);
}

#[tokio::test]
async fn the_identity_is_checked() {
    let other = LogOptions { node: 2, on_failure: Box::new(|_| {}), ..options() };
    let disk = filled().await;
    let error = LogStore::open_on(Arc::new(disk.clone()), other).map(drop);
    assert!(matches!(error, Err(OpenError::OtherMember { found: 1, expected: 2, .. })));

    disk.damage("identity", |bytes| bytes[20] ^= 1).expect("the identity");
    damage_of(&disk);
    disk.remove("identity").expect("the identity");
    damage_of(&disk);
}

#[tokio::test]
async fn settings_out_of_bounds_are_refused() {
    for segment_bytes in [0, 4096, 2 << 30] {
        let options = LogOptions { segment_bytes, ..options() };
        let result = LogStore::open_on(Arc::new(SimDisk::new()), options).map(drop);
        assert!(matches!(result, Err(OpenError::SegmentBytes { .. })));
    }
}

#[tokio::test]
async fn segments_of_another_size_are_used_up() {
    let disk = filled().await;
    let before = State::of(&open(&disk).expect("a sound log")).await;
    for segment_bytes in [16 * 1024, 8 * 1024] {
        let disk = disk.kill();
        let options = LogOptions { segment_bytes, ..options() };
        let log = LogStore::open_on(Arc::new(disk), options).expect("another size");
        let next = log.stats().next_index;
        append_each(&log, next..next + 40, 1000).await;
        log.clone().purge(crate::model::id(1, next + 30)).await.expect("an open log");
        append_each(&log, next + 40..next + 80, 1000).await;
        let now = State::of(&log).await;
        assert_eq!(now.entries.len(), 49);
        assert_eq!(now.vote, before.vote);
    }
}

#[test]
fn a_directory_is_opened_once_and_found_again() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("log");
    let open = || LogStore::open(&path, options());
    runtime.block_on(async {
        let log = open().expect("a new directory");
        append_each(&log, 0..30, 1000).await;
        assert!(matches!(open().map(drop), Err(OpenError::InUse { .. })));
        let before = State::of(&log).await;
        drop(log);
        let log = open().expect("a closed log");
        assert_eq!(State::of(&log).await, before);
        assert!(log.stats().segments >= 4);
    });
}
