//! Snapshots between two members, and everything that must be refused.

use std::io;

use conclave_raft_store::types::{MemberNode, Membership, Nodes, SnapshotMeta, StoredMembership};
use conclave_raft_store::{
    EngineKind, Identity, SnapshotContent, SnapshotFile, SnapshotSink, SnapshotSource, StagedFile,
};
use openraft::RaftSnapshotBuilder;
use openraft::storage::RaftStateMachine;

use crate::harness::{ENGINES, State, crash_image, entry, log_id, membership_entry, put};

const PIECE: usize = 1_000;

async fn sender(dir: &std::path::Path, engine: EngineKind) -> State {
    let mut state = State::open(dir, engine);
    state.reader.claim(Identity { cluster: 1, member: 1 }).unwrap();
    state.apply([membership_entry(1)]).await;
    for i in 2..300 {
        state.apply([entry(i, vec![put(format!("key{}", i % 50), vec![7; 100])])]).await;
    }
    state
}

async fn current(state: &mut State) -> (SnapshotMeta, SnapshotSource) {
    let snapshot = state.machine.get_current_snapshot().await.unwrap().unwrap();
    (snapshot.meta, snapshot.snapshot.into_source().unwrap())
}

/// Sends all pieces, each changed by `damage(file, offset, bytes)`.
fn send(
    source: &SnapshotSource,
    sink: &mut SnapshotSink,
    mut damage: impl FnMut(&str, u64, &mut Vec<u8>),
) {
    for (number, file) in source.files().iter().enumerate() {
        let mut offset = sink.received(number);
        while offset < file.size {
            let mut piece = source.read_at(number, offset, PIECE).unwrap().to_vec();
            let length = piece.len() as u64;
            damage(&file.name, offset, &mut piece);
            sink.write(number, offset, &piece).unwrap();
            offset += length;
        }
    }
}

fn no_damage(_: &str, _: u64, _: &mut Vec<u8>) {}

#[tokio::test]
async fn a_follower_becomes_equal_and_stays_itself() {
    for engine in ENGINES {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let mut from = sender(dirs[0].path(), engine).await;
        let mut to = State::open(dirs[1].path(), engine);
        let own = Identity { cluster: 1, member: 2 };
        to.reader.claim(own).unwrap();
        to.apply([entry(1, vec![put("gone", "soon")])]).await;

        let (meta, source) = current(&mut from).await;
        assert_eq!(meta.last_log_id, Some(log_id(299)));
        let mut sink = to.reader.receive_snapshot(meta.clone(), source.files().to_vec()).unwrap();
        send(&source, &mut sink, no_damage);
        let staged = sink.finish().unwrap();
        assert_eq!(to.get("gone", 0).unwrap(), "soon");
        to.machine.install_snapshot(&meta, staged).await.unwrap();
        assert_eq!(*to.heard.installing.lock(), [Some(1)], "told before a reader saw it");

        assert_eq!(to.get("gone", 0), None);
        assert_eq!(to.reader.hash_kv(0).unwrap(), from.reader.hash_kv(0).unwrap());
        assert_eq!(to.reader.head().digest, from.reader.head().digest);
        assert_eq!(to.machine.applied_state().await.unwrap().1, meta.last_membership);
        // Both go on from there alike.
        let next = entry(300, vec![put("next", "entry")]);
        to.apply([next.clone()]).await;
        from.apply([next]).await;
        assert_eq!(to.reader.head(), from.reader.head());

        // The installed state survives a crash without any further flush.
        let crashed = crash_image(dirs[1].path());
        let to = State::open(crashed.path(), engine);
        assert_eq!(to.reader.identity().unwrap(), Some(own));
        assert_eq!(to.reader.applied(), Some(log_id(299)));
    }
}

#[tokio::test]
async fn building_flushes_and_reports_what_is_flushed() {
    for engine in ENGINES {
        let dir = tempfile::tempdir().unwrap();
        let mut state = sender(dir.path(), engine).await;
        assert_eq!(state.reader.flushed().unwrap(), None);
        let mut builder = state.machine.try_create_snapshot_builder(true).await.unwrap();
        let built = builder.build_snapshot().await.unwrap();
        assert_eq!(built.meta.last_log_id, Some(log_id(299)));
        assert_eq!(built.meta.last_membership.log_id(), &Some(log_id(1)));
        assert_eq!(state.reader.flushed().unwrap(), Some(log_id(299)));
        assert!(matches!(built.snapshot, SnapshotContent::Flushed));
    }
}

#[tokio::test]
async fn a_damaged_file_is_refused() {
    for engine in ENGINES {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let mut from = sender(dirs[0].path(), engine).await;
        let to = State::open(dirs[1].path(), engine);
        let (meta, source) = current(&mut from).await;
        let mut sink = to.reader.receive_snapshot(meta, source.files().to_vec()).unwrap();
        send(&source, &mut sink, |name, offset, piece| {
            if (name.ends_with(".sst") || name == "rows") && offset == 0 {
                piece[20] ^= 1;
            }
        });
        assert_eq!(sink.finish().err().unwrap().kind(), io::ErrorKind::InvalidData);
        assert_eq!(to.reader.applied(), None);
    }
}

#[tokio::test]
async fn an_incomplete_or_misdescribed_one_is_refused() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let mut from = sender(dirs[0].path(), ENGINES[0]).await;
    let to = State::open(dirs[1].path(), ENGINES[0]);
    let (meta, source) = current(&mut from).await;
    let files = source.files().to_vec();

    let mut sink = to.reader.receive_snapshot(meta.clone(), files.clone()).unwrap();
    let second = to.reader.receive_snapshot(meta.clone(), files.clone()).err().unwrap();
    assert_eq!(second.kind(), io::ErrorKind::WouldBlock);
    sink.write(0, 0, b"x").unwrap();
    assert!(sink.write(0, 5, b"x").is_err(), "a gap");
    assert!(sink.write(0, 1, &vec![0; 1 << 20]).is_err(), "beyond the end");
    assert_eq!(sink.finish().err().unwrap().kind(), io::ErrorKind::InvalidData);

    let other_nodes: Nodes = [(9, MemberNode::default())].into();
    let other = Membership::new(vec![[9].into()], other_nodes).unwrap();
    let lies = [
        SnapshotMeta { last_log_id: Some(log_id(298)), ..meta.clone() },
        SnapshotMeta {
            last_membership: StoredMembership::new(Some(log_id(1)), other),
            ..meta.clone()
        },
    ];
    for lie in lies {
        let mut sink = to.reader.receive_snapshot(lie, files.clone()).unwrap();
        send(&source, &mut sink, no_damage);
        assert_eq!(sink.finish().err().unwrap().kind(), io::ErrorKind::InvalidData);
    }

    to.reader.claim(Identity { cluster: 2, member: 2 }).unwrap();
    let mut sink = to.reader.receive_snapshot(meta, files).unwrap();
    send(&source, &mut sink, no_damage);
    assert!(sink.finish().err().unwrap().to_string().contains("another cluster"));
}

/// Sends pieces until `bytes` have gone.
fn send_some(source: &SnapshotSource, sink: &mut SnapshotSink, bytes: u64) {
    let mut left = bytes;
    for (number, file) in source.files().iter().enumerate() {
        while sink.received(number) < file.size && left > 0 {
            let offset = sink.received(number);
            let piece = source.read_at(number, offset, PIECE.min(left as usize)).unwrap();
            sink.write(number, offset, &piece).unwrap();
            left -= piece.len() as u64;
        }
    }
    assert_eq!(left, 0, "the snapshot is larger");
}

fn keeping(source: &SnapshotSource, staged: &[StagedFile]) -> Vec<SnapshotFile> {
    let mut files = source.files().to_vec();
    for file in &mut files {
        file.kept = staged.iter().find(|s| s.name == file.name).map_or(0, |staged| staged.bytes);
    }
    files
}

#[tokio::test]
async fn a_transfer_that_broke_off_goes_on_where_it_stopped() {
    for engine in ENGINES {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let mut from = sender(dirs[0].path(), engine).await;
        let mut to = State::open(dirs[1].path(), engine);
        let (meta, source) = current(&mut from).await;
        assert_eq!(to.reader.staged_snapshot(), []);
        let size: u64 = source.files().iter().map(|file| file.size).sum();
        let mut files = source.files().to_vec();
        // Twice: the second attempt goes on with what the first one left, and leaves more.
        for attempt in 1..=2 {
            let mut sink = to.reader.receive_snapshot(meta.clone(), files).unwrap();
            assert_eq!(to.reader.staged_snapshot(), [], "nothing to go on with while it comes");
            send_some(&source, &mut sink, size / 3);
            drop(sink);
            let staged = to.reader.staged_snapshot();
            assert_eq!(staged.iter().map(|file| file.bytes).sum::<u64>(), attempt * (size / 3));
            for staged in &staged {
                let number = source.files().iter().position(|file| file.name == staged.name);
                let same = source.read_at(number.unwrap(), 0, staged.bytes as usize).unwrap();
                assert_eq!(crc32c::crc32c(&same), staged.crc32c, "{}", staged.name);
            }
            files = keeping(&source, &staged);
            assert_eq!(databases(dirs[1].path()), 2);
        }
        let mut sink = to.reader.receive_snapshot(meta.clone(), files).unwrap();
        send(&source, &mut sink, no_damage);
        let staged = sink.finish().unwrap();
        to.machine.install_snapshot(&meta, staged).await.unwrap();
        assert_eq!(to.reader.hash_kv(0).unwrap(), from.reader.hash_kv(0).unwrap());
        assert_eq!(to.reader.staged_snapshot(), []);
        let crashed = crash_image(dirs[1].path());
        assert_eq!(State::open(crashed.path(), engine).reader.applied(), Some(log_id(299)));
    }
}

#[tokio::test]
async fn what_is_kept_must_be_staged() {
    for engine in ENGINES {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let mut from = sender(dirs[0].path(), engine).await;
        let to = State::open(dirs[1].path(), engine);
        let (meta, source) = current(&mut from).await;
        let offer = |files| to.reader.receive_snapshot(meta.clone(), files);
        let largest = source.files().iter().max_by_key(|file| file.size).unwrap().clone();
        let keep = |kept| vec![SnapshotFile { kept, ..largest.clone() }];
        assert_eq!(offer(keep(1)).err().unwrap().kind(), io::ErrorKind::NotFound);
        for kept in [1, 11] {
            let mut sink = offer(keep(0)).unwrap();
            sink.write(0, 0, &[7; 10]).unwrap();
            drop(sink);
            assert_eq!(offer(keep(kept)).err().unwrap().kind(), io::ErrorKind::NotFound);
            assert_eq!(to.reader.staged_snapshot(), [], "it is given up");
        }
        let beyond = offer(keep(largest.size + 1)).err().unwrap();
        assert_eq!(beyond.kind(), io::ErrorKind::InvalidInput);
        let mut sink = offer(keep(0)).unwrap();
        sink.write(0, 0, &[7; 10]).unwrap();
        sink.discard();
        drop(sink);
        assert_eq!(to.reader.staged_snapshot(), []);
        assert_eq!(databases(dirs[1].path()), 1);
    }
}

#[tokio::test]
async fn a_state_that_caught_up_keeps_nothing_of_a_snapshot() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let mut from = sender(dirs[0].path(), ENGINES[0]).await;
    let mut to = State::open(dirs[1].path(), ENGINES[0]);
    let (meta, source) = current(&mut from).await;
    let mut sink = to.reader.receive_snapshot(meta, source.files().to_vec()).unwrap();
    send_some(&source, &mut sink, 10);
    drop(sink);
    to.apply([entry(298, vec![put("a", "1")])]).await;
    assert_ne!(to.reader.staged_snapshot(), []);
    to.apply([entry(299, vec![put("a", "2")])]).await;
    assert_eq!(to.reader.staged_snapshot(), []);
}

#[tokio::test]
async fn names_that_lead_elsewhere_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let state = State::open(dir.path(), ENGINES[0]);
    for name in ["../x", "a/b", "", ".", "..", ".hidden", "nul\0", &"x".repeat(65)] {
        let files = vec![SnapshotFile { name: name.to_owned(), size: 1, kept: 0 }];
        let refused = state.reader.receive_snapshot(SnapshotMeta::default(), files).err().unwrap();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidInput, "{name:?}");
    }
}

#[tokio::test]
async fn a_crash_before_the_flip_leaves_the_old_state_and_no_litter() {
    for engine in ENGINES {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let mut from = sender(dirs[0].path(), engine).await;
        let mut to = State::open(dirs[1].path(), engine);
        to.apply([entry(1, vec![put("old", "state")])]).await;
        to.reader.flush().unwrap();
        let (meta, source) = current(&mut from).await;
        let mut sink = to.reader.receive_snapshot(meta, source.files().to_vec()).unwrap();
        let receiving = crash_image(dirs[1].path());
        send(&source, &mut sink, no_damage);
        let staged = sink.finish().unwrap();
        let finished = crash_image(dirs[1].path());
        drop(staged);
        for root in [receiving.path(), finished.path(), dirs[1].path()] {
            if root != dirs[1].path() {
                assert_eq!(databases(root), 2);
                let state = State::open(root, engine);
                assert_eq!(state.get("old", 0).unwrap(), "state");
            }
            assert_eq!(databases(root), 1);
        }
    }
}

#[tokio::test]
async fn a_checkpoint_is_gone_when_it_was_sent() {
    let dir = tempfile::tempdir().unwrap();
    let mut state = sender(dir.path(), ENGINES[1]).await;
    let before = std::fs::read_dir(dir.path()).unwrap().count();
    let (_, source) = current(&mut state).await;
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), before + 1);
    drop(source);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), before);
}

#[tokio::test]
async fn a_state_is_never_replaced_by_an_older_one() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let mut from = sender(dirs[0].path(), ENGINES[0]).await;
    let mut to = State::open(dirs[1].path(), ENGINES[0]);
    let snapshot = from.machine.get_current_snapshot().await.unwrap().unwrap();
    to.apply([entry(500, vec![put("newer", "state")])]).await;
    assert!(to.machine.install_snapshot(&snapshot.meta, snapshot.snapshot).await.is_err());
    assert_eq!(to.get("newer", 0).unwrap(), "state");
}

fn databases(root: &std::path::Path) -> usize {
    std::fs::read_dir(root)
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("db-"))
        .count()
}
