//! Applying, restarting, reading.

use std::path::{Path, PathBuf};
use std::time::Duration;

use conclave_raft_store::types::{Batch, Entry, EntryPayload};
use conclave_raft_store::{Identity, OpenError, ReadError, StateStore, StoreOptions};
use conclave_state_machine::response::{Rejection, Response};

use crate::harness::{ENGINES, State, compact, crash_image, delete, entry, log_id, put};

#[tokio::test]
async fn answers_and_state_follow_the_log() {
    for engine in ENGINES {
        let dir = tempfile::tempdir().unwrap();
        let mut state = State::open(dir.path(), engine);
        assert_eq!(state.reader.applied(), None);
        state
            .apply([entry(1, vec![put("a", "1"), put("b", "2")]), entry(2, vec![put("a", "3")])])
            .await;
        assert_eq!(state.reader.applied(), Some(log_id(2)));
        assert_eq!(state.reader.head().revision, 4);
        assert_eq!(state.get("a", 0).unwrap(), "3");
        assert_eq!(state.get("a", 2).unwrap(), "1");
        let heard = state.heard.applied.lock();
        assert_eq!(heard.len(), 2);
        assert_eq!((heard[0].proposer, heard[0].sequence), (7, 1));
        let revisions: Vec<i64> = heard[0].results.iter().map(|applied| applied.revision).collect();
        assert_eq!(revisions, [2, 3]);
    }
}

/// A long piece must not keep raft, which has one thread on a small machine, from its heartbeats.
#[tokio::test]
async fn what_may_take_long_is_applied_on_a_thread_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let mut state = State::open(dir.path(), ENGINES[1]);
    state.apply([entry(1, vec![put("a", "1")])]).await;
    state.apply([entry(2, vec![put("a", "2"), delete("a", "b")])]).await;
    state.apply([entry(3, vec![put("a", "3"), delete("a", "")])]).await;
    let own = std::thread::current().id();
    let is_own: Vec<bool> =
        state.heard.threads.lock().iter().map(|thread| *thread == own).collect();
    assert_eq!(is_own, [true, false, true]);
    assert_eq!(state.reader.head().revision, 6);
}

#[tokio::test]
async fn only_who_waits_gets_what_was_deleted() {
    for engine in ENGINES {
        let dir = tempfile::tempdir().unwrap();
        let mut state = State::open(dir.path(), engine);
        state.heard.unawaited.lock().insert(2);
        let again = |index| entry(index, vec![put("a", "1"), delete("a", "b")]);
        state.apply((1..=3).map(again)).await;
        let heard = state.heard.applied.lock();
        let told = heard.iter().map(|entry| match &entry.results[1].outcome {
            Ok(Response::DeleteRange(answer)) => (answer.deleted, answer.prev_kvs.len()),
            other => panic!("{other:?}"),
        });
        assert_eq!(told.collect::<Vec<_>>(), [(1, 1), (1, 0), (1, 1)]);
    }
}

#[tokio::test]
async fn a_crash_returns_to_the_flushed_state_and_replay_makes_it_whole() {
    for engine in ENGINES {
        let dir = tempfile::tempdir().unwrap();
        let entries: Vec<Entry> = (1..=100)
            .map(|i| entry(i, vec![put(format!("k{}", i % 7), format!("v{i}"))]))
            .collect();
        let mut state = State::open(dir.path(), engine);
        state.apply(entries[..50].iter().cloned()).await;
        assert_eq!(state.reader.flushed().unwrap(), None);
        state.reader.flush().unwrap();
        assert_eq!(state.reader.flushed().unwrap(), Some(log_id(50)));
        state.apply(entries[50..].iter().cloned()).await;
        assert_eq!(state.reader.flushed().unwrap(), Some(log_id(50)));
        let (digest, hash) = (state.reader.head().digest, state.reader.hash_kv(0).unwrap());

        let crashed = crash_image(dir.path());
        let mut state = State::open(crashed.path(), engine);
        assert_eq!(state.reader.applied(), Some(log_id(50)));
        assert_eq!(state.reader.head().revision, 51);
        // Entries that are applied already are skipped.
        state.apply(entries[40..].iter().cloned()).await;
        assert_eq!(state.reader.head().digest, digest);
        assert_eq!(state.reader.hash_kv(0).unwrap(), hash);
    }
}

#[tokio::test]
async fn bytes_that_are_no_batch_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut state = State::open(dir.path(), ENGINES[0]);
    let payload = EntryPayload::Normal(Batch { bytes: vec![0xff; 9].into() });
    state.apply([Entry { log_id: log_id(1), payload }]).await;
    assert_eq!(state.reader.applied(), Some(log_id(1)));
    assert_eq!(state.reader.head().revision, 1);
}

#[tokio::test]
async fn compacted_revisions_are_refused_and_hashes_stay_comparable() {
    let mut hashes = Vec::new();
    for engine in ENGINES {
        let dir = tempfile::tempdir().unwrap();
        let mut state = State::open(dir.path(), engine);
        for i in 1..=20 {
            state.apply([entry(i, vec![put("k", format!("{i}"))])]).await;
        }
        state.apply([entry(21, vec![compact(10)])]).await;
        let request = conclave_state_machine::command::Range {
            key: "k".into(),
            revision: 9,
            ..Default::default()
        };
        let refused = state.reader.range(&request).unwrap_err();
        assert!(matches!(refused, ReadError::Rejected(Rejection::Compacted)));
        let at_15 = state.reader.hash_kv(15).unwrap();
        state.apply([entry(22, vec![put("other", "x")])]).await;
        assert_eq!(state.reader.hash_kv(15).unwrap().hash, at_15.hash);
        hashes.push(state.reader.hash_kv(0).unwrap());
        assert_ne!(hashes[0].hash, at_15.hash);
        let sizes = state.reader.sizes();
        assert!(sizes.total >= sizes.in_use && sizes.in_use > 0);
        state.reader.defragment().unwrap();
        assert_eq!(state.reader.hash_kv(0).unwrap(), hashes[0]);
    }
    assert_eq!(hashes[0], hashes[1]);
}

#[tokio::test]
async fn waiting_ends_when_the_entry_is_applied() {
    let dir = tempfile::tempdir().unwrap();
    let mut state = State::open(dir.path(), ENGINES[0]);
    let reader = state.reader.clone();
    let waiting = tokio::spawn(async move { reader.wait_applied(2).await });
    state.apply([entry(1, vec![])]).await;
    state.apply([entry(2, vec![])]).await;
    tokio::time::timeout(Duration::from_secs(60), waiting).await.unwrap().unwrap();
}

/// Whoever waited for an entry finds what it told: a lease, a token.
#[tokio::test]
async fn the_sink_hears_of_entries_before_readers_see_them() {
    let dir = tempfile::tempdir().unwrap();
    let mut state = State::open(dir.path(), ENGINES[0]);
    state.apply([entry(1, vec![]), entry(2, vec![])]).await;
    state.apply([entry(3, vec![])]).await;
    let applying = state.heard.applying.lock().clone();
    assert_eq!(applying, [(1, None), (2, None), (3, Some(2))]);
}

#[tokio::test]
async fn a_directory_belongs_to_one_member_for_ever() {
    for engine in ENGINES {
        let dir = tempfile::tempdir().unwrap();
        let own = Identity { cluster: 5, member: 6 };
        let state = State::open(dir.path(), engine);
        assert_eq!(state.reader.identity().unwrap(), None);
        state.reader.claim(own).unwrap();
        drop(state);
        let state = State::open(dir.path(), engine);
        assert_eq!(state.reader.identity().unwrap(), Some(own));
        state.reader.claim(own).unwrap();
        let other = Identity { member: 7, ..own };
        assert!(
            state.reader.claim(other).unwrap_err().to_string().contains("member 6 of cluster 5")
        );
    }
}

/// Opens `root` as a state on disk, which must fail.
fn refused(root: &Path) -> OpenError {
    let options = StoreOptions { engine: ENGINES[1] };
    StateStore::open(root, options, Box::new(())).err().expect("a damaged state is refused")
}

fn files(database: &Path, extension: &str) -> Vec<PathBuf> {
    std::fs::read_dir(database)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .collect()
}

#[test]
fn a_state_that_cannot_be_opened_names_the_cause() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = refused(&file.join("state"));
    assert!(matches!(error, OpenError::Io { .. }), "{error:?}");
    assert!(error.to_string().contains("Not a directory"), "{error}");
}

#[tokio::test]
async fn a_damaged_state_is_refused_with_advice() {
    let dir = tempfile::tempdir().unwrap();
    let mut state = State::open(dir.path(), ENGINES[1]);
    state.apply((1..50).map(|i| entry(i, vec![put(format!("k{i}"), "v")]))).await;
    state.reader.flush().unwrap();
    drop(state);

    let damages: [fn(&Path); 4] = [
        |database| std::fs::remove_file(database.join("CURRENT")).unwrap(),
        |database| std::fs::remove_dir_all(database).unwrap(),
        |database| std::fs::remove_file(&files(database, "sst")[0]).unwrap(),
        |database| {
            for table in files(database, "sst") {
                let mut bytes = std::fs::read(&table).unwrap();
                bytes[10] ^= 1;
                std::fs::write(&table, bytes).unwrap();
            }
        },
    ];
    for (number, damage) in damages.into_iter().enumerate() {
        let image = crash_image(dir.path());
        damage(&image.path().join("db-1"));
        let error = refused(image.path());
        assert!(matches!(error, OpenError::Damaged { .. }), "damage {number}: {error:?}");
        assert!(error.to_string().contains("add it again as a new member"), "{error}");
    }
}
