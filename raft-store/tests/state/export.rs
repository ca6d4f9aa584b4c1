//! Backups in etcd's form: everything comes back, row by row, and nothing damaged does.

use std::path::Path;

use bytes::Bytes;
use conclave_proto::etcdserverpb as etcd;
use conclave_proto::internal::command::Command;
use conclave_raft_store::backup::{BackupError, BackupFile, Check, NewMember, Restored};
use conclave_raft_store::types::{MemberNode, Nodes};
use conclave_raft_store::{EngineKind, Identity, Reader};
use conclave_state_machine::command::Range;
use conclave_state_machine::read::{Read as _, Table};
use conclave_state_machine::response::RangeResponse;
use conclave_state_machine::{auth, leases};

use crate::harness::{ENGINES, State, compact, delete, entry, membership_entry, put};

fn grant(id: i64, ttl: i64) -> Command {
    Command::LeaseGrant(etcd::LeaseGrantRequest { id, ttl })
}

fn leased(key: &'static str, lease: i64) -> Command {
    Command::Put(etcd::PutRequest { key: key.into(), lease, ..Default::default() })
}

/// A state with history, a compaction that is not swept, leases, and values of many pages.
async fn saved_state(dir: &Path, engine: EngineKind) -> State {
    let mut state = State::open(dir, engine);
    state.reader.claim(Identity { cluster: 1, member: 2 }).unwrap();
    state.apply([membership_entry(1)]).await;
    state.apply([entry(2, vec![grant(77, 600), grant(-5, 60), grant(300, 9_000_000_000)])]).await;
    for i in 3..90 {
        let batch = vec![put(format!("key{}", i % 7), vec![7; 900]), put("other", "v")];
        state.apply([entry(i, batch)]).await;
    }
    state.apply([entry(90, vec![put("large", vec![9; 100_000]), leased("leased", 77)])]).await;
    state.apply([entry(91, vec![delete("key3", ""), leased("again", 300)])]).await;
    state.apply([entry(92, vec![compact(130), delete("key4", "key6")])]).await;
    state
}

/// Writes a backup as a client would.
fn save(reader: &Reader, file: &Path) {
    let mut export = reader.export("test").unwrap();
    let (mut bytes, mut left) = (Vec::<u8>::new(), None);
    while let Some(piece) = export.next_piece().unwrap() {
        assert!(piece.bytes.len() <= 32 * 1024);
        bytes.extend_from_slice(&piece.bytes);
        let all = *left.get_or_insert(piece.remaining + bytes.len() as u64);
        assert_eq!(piece.remaining, all.saturating_sub(bytes.len() as u64));
    }
    assert_eq!(left, Some(bytes.len() as u64 - 32), "the digest is not counted");
    assert_eq!(bytes.len() % 512, 32, "as etcdctl wants it");
    std::fs::write(file, bytes).unwrap();
}

fn new_member() -> NewMember {
    let node = MemberNode { name: "new".to_owned(), ..MemberNode::default() };
    NewMember { identity: Identity { cluster: 7, member: 70 }, members: Nodes::from([(70, node)]) }
}

fn restore(file: &Path, check: Check, dir: &Path) -> Result<Restored, BackupError> {
    let mut progress = Vec::new();
    let mut on_progress = |done, total| progress.push((done, total));
    let file = BackupFile::open(file, check, &mut on_progress)?;
    let restored = file.restore_state(dir, &new_member(), 0, &mut on_progress)?;
    assert!(progress.iter().all(|(done, total)| done <= total), "{progress:?}");
    Ok(restored)
}

/// What can be read of all keys at every revision.
fn everything(reader: &Reader) -> Vec<RangeResponse> {
    let head = reader.head();
    let zero = Bytes::from_static(b"\0");
    let at = |revision| Range {
        key: zero.clone(),
        range_end: zero.clone(),
        revision,
        ..Range::default()
    };
    let revisions = head.compacted.max(1)..=head.revision;
    revisions.map(|revision| reader.range(&at(revision)).unwrap().0).collect()
}

/// All rows but those that name the members, and those of keys: how often one changed is counted anew.
fn rows(reader: &Reader) -> Vec<(Table, Vec<u8>, Vec<u8>)> {
    let mut rows = Vec::new();
    for table in Table::ALL {
        if matches!(table, Table::Member | Table::Key) {
            continue;
        }
        let mut visit = |key: &[u8], row: &[u8]| {
            if !key.starts_with(b"raft/") {
                rows.push((table, key.to_vec(), row.to_vec()));
            }
            Ok(std::ops::ControlFlow::Continue(()))
        };
        reader.scan(table, &[], None, &mut visit).unwrap();
    }
    rows
}

#[tokio::test]
async fn every_row_comes_back() {
    for engine in ENGINES {
        let dir = tempfile::tempdir().unwrap();
        let mut state = saved_state(&dir.path().join("saved"), engine).await;
        let (file, hash) = (dir.path().join("file"), state.reader.hash_kv(0).unwrap());
        let expected = (rows(&state.reader), everything(&state.reader));
        save(&state.reader, &file);
        // What comes later is not in it.
        state.apply([entry(93, vec![put("late", "later")])]).await;

        let status = BackupFile::open(&file, Check::Digest, &mut |_, _| {}).unwrap();
        let status = status.status().unwrap();
        assert_eq!((status.revision, status.version.as_str()), (hash.revision, "conclave test"));

        let restored = restore(&file, Check::Digest, &dir.path().join("new")).unwrap();
        assert_eq!((restored.revision, restored.compacted), (hash.revision, 130));
        assert!(!restored.is_copy && restored.reduced_roles.is_empty());
        let new = State::open(&dir.path().join("new"), ENGINES[1]);
        assert!(rows(&new.reader) == expected.0, "equal rows");
        assert!(everything(&new.reader) == expected.1, "equal keys");
        assert_eq!(new.reader.hash_kv(0).unwrap(), hash);
        assert_eq!(new.reader.identity().unwrap(), Some(new_member().identity));
        assert_eq!(new.get("large", 0).unwrap(), vec![9; 100_000]);
    }
}

#[tokio::test]
async fn a_fresh_state_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let state = State::open(&dir.path().join("saved"), ENGINES[1]);
    save(&state.reader, &dir.path().join("file"));
    let restored = restore(&dir.path().join("file"), Check::Digest, &dir.path().join("new"));
    assert_eq!(restored.unwrap().revision, 1);
    let new = State::open(&dir.path().join("new"), ENGINES[1]);
    assert_eq!(rows(&new.reader).len(), 1, "only the head");
}

#[tokio::test]
async fn what_an_etcd_wrote_to_since_is_taken_over_as_an_etcds() {
    let dir = tempfile::tempdir().unwrap();
    let state = saved_state(&dir.path().join("saved"), ENGINES[1]).await;
    let file = dir.path().join("file");
    save(&state.reader, &file);
    let mut bytes = std::fs::read(&file).unwrap();
    bytes.truncate(bytes.len() - 32);
    // The transaction of the first meta page, and the checksum over it.
    let meta = &mut bytes[16..80];
    meta[48..56].copy_from_slice(&2_u64.to_le_bytes());
    let hash = meta[..56].iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    meta[56..].copy_from_slice(&hash.to_le_bytes());
    std::fs::write(&file, bytes).unwrap();
    let restored = restore(&file, Check::Skip, &dir.path().join("new")).unwrap();
    assert!(restored.is_copy);
    let new = State::open(&dir.path().join("new"), ENGINES[1]);
    let head = state.reader.head();
    assert_eq!(new.reader.head().revision, head.revision);
    assert_eq!(new.reader.head().key_count, head.key_count);
    for key in ["key1", "other", "large", "leased", "again", "key3", "key4"] {
        assert_eq!(new.get(key, 0), state.get(key, 0), "{key}");
        assert_eq!(new.get(key, 140), state.get(key, 140), "{key}");
    }
    assert_eq!(leases::all(&new.reader).unwrap(), leases::all(&state.reader).unwrap());
    assert_eq!(
        leases::lease_keys(&new.reader, 77).unwrap(),
        leases::lease_keys(&state.reader, 77).unwrap()
    );
    assert_eq!(auth::users(&new.reader).unwrap(), auth::users(&state.reader).unwrap());
}

#[tokio::test]
async fn no_damaged_byte_is_restored() {
    let dir = tempfile::tempdir().unwrap();
    let mut state = State::open(&dir.path().join("saved"), ENGINES[1]);
    for i in 1..60 {
        state.apply([entry(i, vec![put(format!("key{i}"), "v")])]).await;
    }
    save(&state.reader, &dir.path().join("file"));
    let expected = rows(&state.reader);
    let whole = std::fs::read(dir.path().join("file")).unwrap();
    let (file, target) = (dir.path().join("changed"), dir.path().join("new"));
    let outcome = |bytes: &[u8], check| {
        std::fs::write(&file, bytes).unwrap();
        let outcome = restore(&file, check, &target);
        let came = outcome.is_ok().then(|| rows(&State::open(&target, ENGINES[1]).reader));
        if target.exists() {
            std::fs::remove_dir_all(&target).unwrap();
        }
        (outcome, came)
    };
    assert!(outcome(&whole, Check::Skip).0.is_ok());
    for at in (0..whole.len()).step_by(whole.len() / 40).chain((4_096..4_180).step_by(7)) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x10;
        let error = outcome(&damaged, Check::Digest).0.unwrap_err();
        assert!(matches!(error, BackupError::Digest { .. }), "{at}: {error}");
        // Without the digest what comes is what was saved, if anything comes.
        if let (Ok(_), Some(came)) = outcome(&damaged, Check::Skip) {
            assert!(came == expected, "{at}");
        }
    }
    for length in [0, 40, 4_096, 8_192, whole.len() - 33, whole.len() - 4_096] {
        for check in [Check::Digest, Check::Skip] {
            let outcome = outcome(&whole[..length], check).0;
            assert!(outcome.is_err(), "{length} bytes of {}", whole.len());
        }
    }
}
