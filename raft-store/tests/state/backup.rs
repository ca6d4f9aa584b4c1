//! Backups: what is saved comes back in a new member, and nothing damaged does.

use std::path::{Path, PathBuf};

use conclave_raft_store::backup::{BackupError, BackupFile, Check, NewMember, Restored};
use conclave_raft_store::log::{LogOptions, LogStore};
use conclave_raft_store::types::{MemberNode, Nodes};
use conclave_raft_store::{EngineKind, Identity, Reader, StateStore, StoreOptions, backup};
use openraft::storage::{RaftLogReader as _, RaftLogStorage as _, RaftStateMachine as _};

use crate::harness::{ENGINES, Heard, State, compact, entry, membership_entry, put};

const ROCKS: EngineKind = ENGINES[1];

/// A state with history, a compaction, and values of more than a block.
async fn saved_state(dir: &Path) -> State {
    let mut state = State::open(dir, ROCKS);
    state.reader.claim(Identity { cluster: 1, member: 2 }).unwrap();
    state.apply([membership_entry(1)]).await;
    for i in 2..60 {
        state.apply([entry(i, vec![put(format!("key{}", i % 7), vec![7; 2_000])])]).await;
    }
    state.apply([entry(60, vec![put("large", vec![9; 100_000]), compact(30)])]).await;
    state
}

/// Writes a backup as a client would.
fn save(reader: &Reader, file: &Path) -> i64 {
    let mut backup = reader.backup("test").unwrap();
    let (mut bytes, mut left) = (Vec::new(), backup.remaining());
    while let Some(piece) = backup.next_piece().unwrap() {
        assert!(piece.bytes.len() <= 32 * 1024);
        bytes.extend_from_slice(&piece.bytes);
        // The digest is not counted.
        left = left.saturating_sub(piece.bytes.len() as u64);
        assert_eq!(piece.remaining, left);
    }
    assert_eq!(bytes.len() % 512, 32, "as etcdctl wants it");
    std::fs::write(file, bytes).unwrap();
    backup.revision()
}

fn open(file: &Path, check: Check) -> Result<BackupFile, BackupError> {
    BackupFile::open(file, check, &mut |_, _| {})
}

fn new_member(id: u64) -> NewMember {
    let node = |id: u64| MemberNode { name: format!("new{id}"), ..MemberNode::default() };
    let members: Nodes = [(70, node(70)), (71, node(71))].into();
    NewMember { identity: Identity { cluster: 7, member: id }, members }
}

fn restore(file: &Path, check: Check, dir: &Path, by: i64) -> Result<Restored, BackupError> {
    let mut progress = Vec::new();
    let mut on_progress = |done, total| progress.push((done, total));
    let file = BackupFile::open(file, check, &mut on_progress)?;
    let restored = file.restore_state(&dir.join("state"), &new_member(70), by, &mut on_progress)?;
    assert!(progress.iter().all(|(done, total)| done <= total), "{progress:?}");
    backup::restore_log(&dir.join("log"), &new_member(70))?;
    Ok(restored)
}

struct Dirs {
    dir: tempfile::TempDir,
}

impl Dirs {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

#[tokio::test]
async fn a_restored_state_is_the_saved_one() {
    let dirs = Dirs::new();
    let mut state = saved_state(&dirs.at("saved")).await;
    let (file, hash) = (dirs.at("file"), state.reader.hash_kv(0).unwrap());
    let revision = save(&state.reader, &file);
    let head = state.reader.head();
    assert_eq!(revision, head.revision);
    // What comes later is not in it.
    state.apply([entry(61, vec![put("late", "later")])]).await;

    let status = open(&file, Check::Digest).unwrap().status().unwrap();
    assert_eq!((status.revision, status.keys), (revision, 8));
    assert_eq!(status.bytes + 32, std::fs::metadata(&file).unwrap().len());
    assert_eq!(status.version, "conclave test");

    let target = dirs.at("new");
    let (plain, new) = (file.clone(), target.clone());
    let restore = move || restore(&plain, Check::Digest, &new, 0).unwrap();
    let restored = tokio::task::spawn_blocking(restore).await.unwrap();
    assert_eq!((restored.revision_saved, restored.revision), (revision, revision));
    assert_eq!((restored.compacted, restored.keys), (30, 8));
    let new = State::open(&target.join("state"), ROCKS);
    assert_eq!(new.reader.hash_kv(0).unwrap(), hash, "equal history at the backup's revision");
    assert_eq!(new.reader.head().digest, head.digest);
    assert_eq!(new.reader.identity().unwrap(), Some(new_member(70).identity));
    assert_eq!(new.get("large", 0).unwrap(), vec![9; 100_000]);
    assert_eq!(new.get("late", 0), None);
}

#[tokio::test]
async fn raft_finds_a_log_behind_what_is_applied() {
    let dirs = Dirs::new();
    let state = saved_state(&dirs.at("saved")).await;
    save(&state.reader, &dirs.at("file"));
    let (file, target) = (dirs.at("file"), dirs.at("new"));
    let work = move || restore(&file, Check::Digest, &target, 5).map(|_| ());
    tokio::task::spawn_blocking(work).await.unwrap().unwrap();

    let mut new = State::open(&dirs.at("new").join("state"), ROCKS);
    let (applied, membership) = new.machine.applied_state().await.unwrap();
    let voters: Vec<u64> = membership.voter_ids().collect();
    assert_eq!(voters, [70, 71]);
    let mut log = LogStore::open(&dirs.at("new").join("log"), LogOptions::new(70)).unwrap();
    let found = log.get_log_state().await.unwrap();
    assert_eq!((found.last_purged_log_id, found.last_log_id), (applied, applied));
    let vote = log.read_vote().await.unwrap().unwrap();
    assert_eq!(vote.leader_id.term, applied.unwrap().leader_id.term);
    assert!(!vote.committed, "nobody leads yet");
}

#[tokio::test]
async fn a_raised_revision_hides_what_was_before() {
    let dirs = Dirs::new();
    let state = saved_state(&dirs.at("saved")).await;
    let revision = save(&state.reader, &dirs.at("file"));
    let (file, target) = (dirs.at("file"), dirs.at("new"));
    let work = move || restore(&file, Check::Digest, &target, 1_000);
    let restored = tokio::task::spawn_blocking(work).await.unwrap().unwrap();
    let raised = revision + 1_000;
    assert_eq!((restored.revision, restored.compacted), (raised, raised));
    let mut new = State::open(&dirs.at("new").join("state"), ROCKS);
    assert!(new.reader.hash_kv(revision).is_err(), "the old history is gone");
    let before = new.get("key1", 0).unwrap();
    assert_eq!(new.get("key1", raised).unwrap(), before);
    new.apply([entry(2, vec![put("key1", "new")])]).await;
    assert_eq!(new.reader.head().revision, raised + 1);
    assert_eq!(new.get("key1", raised).unwrap(), before);
    // What is dead is swept as after any compaction, and the sizes come out right.
    let mut index = 3;
    while new.reader.head().has_dead_rows() {
        new.apply([entry(index, vec![compact(raised)])]).await;
        index += 1;
        assert!(index < 100, "the sweep ends");
    }
    assert_eq!(new.get("key1", raised).unwrap(), before);
    assert_eq!(new.reader.head().key_count, 8);

    for by in [i64::MAX, i64::MAX - revision, -1] {
        let (file, target) = (dirs.at("file"), dirs.at(&format!("beyond{by}")));
        let work = move || restore(&file, Check::Digest, &target, by).unwrap_err();
        let error = tokio::task::spawn_blocking(work).await.unwrap();
        assert!(matches!(error, BackupError::Bump { .. }), "{error}");
    }
}

/// What becomes of a file with one byte changed.
fn refusal(file: &Path, bytes: &[u8], dirs: &Dirs, check: Check) -> Option<BackupError> {
    std::fs::write(file, bytes).unwrap();
    let target = dirs.at("damaged");
    let result = restore(file, check, &target, 0);
    if target.exists() {
        std::fs::remove_dir_all(&target).unwrap();
    }
    result.err()
}

#[tokio::test]
async fn no_damaged_byte_is_restored() {
    let dirs = Dirs::new();
    let mut state = State::open(&dirs.at("saved"), ROCKS);
    state.apply([entry(1, vec![put("a", "1")])]).await;
    save(&state.reader, &dirs.at("file"));
    let work = move || {
        let whole = std::fs::read(dirs.at("file")).unwrap();
        let file = dirs.at("changed");
        for check in [Check::Digest, Check::Skip] {
            assert!(refusal(&file, &whole, &dirs, check).is_none());
        }
        let step = whole.len() / 400;
        for at in (0..whole.len()).step_by(step).chain(0..32) {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            let error = refusal(&file, &damaged, &dirs, Check::Digest).unwrap();
            assert!(matches!(error, BackupError::Digest { .. }), "{at}: {error}");
            // Without the digest the checksums of header and blocks remain; only the last sector may
            // be zeros that mean nothing.
            if at + 32 + 512 < whole.len() {
                let error = refusal(&file, &damaged, &dirs, Check::Skip);
                assert!(error.is_some(), "{at}");
            }
        }
        for length in [0, 1, 15, 16, 40, 512, whole.len() - 33, whole.len() - 1] {
            for check in [Check::Digest, Check::Skip] {
                let error = refusal(&file, &whole[..length], &dirs, check);
                assert!(error.is_some(), "{length} bytes of {}", whole.len());
            }
        }
        let cut = &whole[..whole.len() - 512];
        let error = refusal(&file, cut, &dirs, Check::Digest).unwrap();
        assert!(matches!(error, BackupError::Digest { .. }), "{error}");
        let error = refusal(&file, cut, &dirs, Check::Skip).unwrap();
        assert!(error.to_string().contains("and should have"), "{error}");
        let error = refusal(&file, b"", &dirs, Check::Digest).unwrap();
        assert!(matches!(error, BackupError::NoDigest { .. }), "{error}");
    };
    tokio::task::spawn_blocking(work).await.unwrap();
}

#[tokio::test]
async fn what_a_later_version_saved_is_refused_with_advice() {
    let dirs = Dirs::new();
    let mut state = State::open(&dirs.at("saved"), ROCKS);
    state.apply([entry(1, vec![put("a", "1")])]).await;
    save(&state.reader, &dirs.at("file"));
    let mut bytes = std::fs::read(dirs.at("file")).unwrap();
    bytes[16] = 9;
    std::fs::write(dirs.at("file"), bytes).unwrap();
    let error = open(&dirs.at("file"), Check::Skip).unwrap_err();
    assert!(matches!(error, BackupError::Format { found: 9, known: 1, .. }), "{error}");
    std::fs::write(dirs.at("file"), vec![7; 1024]).unwrap();
    let error = open(&dirs.at("file"), Check::Skip).unwrap_err();
    assert!(matches!(error, BackupError::Unknown { .. }), "{error}");
}

#[tokio::test]
async fn a_state_that_is_there_is_not_overwritten() {
    let dirs = Dirs::new();
    let state = saved_state(&dirs.at("saved")).await;
    save(&state.reader, &dirs.at("file"));
    drop(state);
    let file = open(&dirs.at("file"), Check::Digest).unwrap();
    let target = dirs.at("saved");
    let error = file.restore_state(&target, &new_member(70), 0, &mut |_, _| {}).unwrap_err();
    assert!(error.to_string().contains("is there already"), "{error}");
    let options = StoreOptions { engine: ROCKS };
    let opened = StateStore::open(&target, options, Box::new(Heard::default()));
    assert_eq!(opened.unwrap().1.head().key_count, 8);
}
