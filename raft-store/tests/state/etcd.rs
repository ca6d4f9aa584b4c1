//! Snapshots of etcd: small ones made by hand, damaged in every way. Real ones are tested with the
//! binary.

use std::path::Path;

use conclave_proto::etcdserverpb::AlarmMember;
use conclave_proto::{authpb, mvccpb};
use conclave_raft_store::backup::{BackupError, BackupFile, Check, NewMember, Restored};
use conclave_raft_store::types::{MemberNode, Nodes};
use conclave_raft_store::{EngineKind, Identity};
use conclave_state_machine::{auth, leases};
use proptest::prelude::*;
use prost::Message;

use crate::bolt_file::{BoltFile, Element, PAGE_BYTES};
use crate::harness::{ENGINES, State};

const ROCKS: EngineKind = ENGINES[1];

fn put(main: i64, key: &str, version: i64, value: Vec<u8>) -> Element {
    let kv = mvccpb::KeyValue {
        key: key.to_owned().into(),
        create_revision: main - version + 1,
        mod_revision: main,
        version,
        value: value.into(),
        lease: if key == "leased" { 77 } else { 0 },
    };
    Element::new(revision(main, 0), kv.encode_to_vec())
}

fn deletion(main: i64, key: &str) -> Element {
    let kv = mvccpb::KeyValue { key: key.to_owned().into(), ..Default::default() };
    Element::new([revision(main, 0), vec![b't']].concat(), kv.encode_to_vec())
}

fn revision(main: i64, sub: u64) -> Vec<u8> {
    [main.to_be_bytes().as_slice(), b"_", &sub.to_be_bytes()].concat()
}

/// etcd's lease: id and TTL.
fn lease(id: i64, ttl: u8) -> Element {
    Element::new(id.to_be_bytes(), vec![8, u8::try_from(id).unwrap(), 16, ttl])
}

fn users(file: &mut BoltFile) -> [Element; 2] {
    let role = authpb::Role {
        name: "reader".into(),
        key_permission: vec![authpb::Permission {
            perm_type: 0,
            key: "a".into(),
            range_end: "b".into(),
        }],
    };
    let mut inverted = role.clone();
    inverted.key_permission[0].key = "c".into();
    inverted.name = "nothing".into();
    let user = authpb::User {
        name: "root".into(),
        password: "$2a$10$hash".into(),
        roles: vec!["root".into(), "reader".into()],
        options: None,
    };
    let roles = file.leaf(&[
        Element::new("nothing", inverted.encode_to_vec()),
        Element::new("reader", role.encode_to_vec()),
    ]);
    let users = [Element::new("root", user.encode_to_vec())];
    [Element::bucket("authRoles", roles), Element::inline("authUsers", &users)]
}

/// A snapshot with something of everything: a tree of two levels, a value of several pages, buckets
/// inside their elements.
fn snapshot() -> Vec<u8> {
    let mut file = BoltFile::new();
    let first = file.leaf(&[
        put(2, "a", 1, b"one".to_vec()),
        put(3, "leased", 1, b"x".to_vec()),
        put(4, "a", 2, b"two".to_vec()),
    ]);
    let second = file.leaf(&[put(5, "large", 1, vec![7; 5 * PAGE_BYTES])]);
    let third = file.leaf(&[deletion(6, "a"), put(7, "a", 1, b"again".to_vec())]);
    let keys = file.branch(&[
        (revision(2, 0).as_slice(), first),
        (revision(5, 0).as_slice(), second),
        (revision(6, 0).as_slice(), third),
    ]);
    let alarm = AlarmMember { member_id: 9, alarm: 1 };
    let [roles, users] = users(&mut file);
    let root = file.leaf(&[
        Element::inline("alarm", &[Element::new(alarm.encode_to_vec(), "")]),
        Element::inline(
            "auth",
            &[
                Element::new("authEnabled", vec![1]),
                Element::new("authRevision", 5_u64.to_be_bytes()),
            ],
        ),
        roles,
        users,
        Element::bucket("key", keys),
        Element::inline("lease", &[lease(77, 100)]),
        Element::inline(
            "meta",
            &[
                Element::new("finishedCompactRev", revision(2, 0)),
                Element::new("scheduledCompactRev", revision(3, 0)),
                Element::new("storageVersion", "3.6.0"),
            ],
        ),
    ]);
    file.finish(root)
}

fn restore(bytes: &[u8], dir: &Path) -> Result<Restored, BackupError> {
    let file = dir.join("file");
    std::fs::write(&file, bytes).unwrap();
    let file = BackupFile::open(&file, Check::Skip, &mut |_, _| {})?;
    file.status()?;
    let members: Nodes = [(70, MemberNode::default())].into();
    let member = NewMember { identity: Identity { cluster: 7, member: 70 }, members };
    let target = dir.join("state");
    let restored = file.restore_state(&target, &member, 0, &mut |_, _| {});
    if restored.is_err() {
        std::fs::remove_dir_all(&target).ok();
    }
    restored
}

fn refusal(bytes: &[u8]) -> String {
    let dir = tempfile::tempdir().unwrap();
    restore(bytes, dir.path()).unwrap_err().to_string()
}

#[test]
fn everything_in_a_snapshot_is_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let restored = restore(&snapshot(), dir.path()).unwrap();
    assert_eq!((restored.revision, restored.compacted, restored.keys), (7, 3, 3));
    assert!(restored.is_copy, "it has no digest");
    let state = State::open(&dir.path().join("state"), ROCKS);
    assert_eq!(state.get("a", 0).unwrap(), "again");
    assert_eq!(state.get("a", 6), None);
    assert_eq!(state.get("a", 5).unwrap(), "two");
    assert_eq!(state.get("large", 0).unwrap(), vec![7; 5 * PAGE_BYTES]);
    assert_eq!(leases::all(&state.reader).unwrap(), [(77, 100)]);
    assert_eq!(leases::lease_keys(&state.reader, 77).unwrap(), ["leased"]);
    let head = state.reader.head();
    assert_eq!(head.alarms.len(), 1);
    assert!(head.auth.enabled && head.auth.revision == 5);
    let root = auth::user(&state.reader, "root").unwrap().unwrap();
    assert_eq!((root.password_hash.as_ref(), root.no_password), (b"$2a$10$hash".as_slice(), false));
    assert_eq!(root.roles, ["reader", "root"], "in our order");
    let reader = auth::role(&state.reader, "reader").unwrap().unwrap();
    assert_eq!(reader.permissions.len(), 1);
    let nothing = auth::role(&state.reader, "nothing").unwrap().unwrap();
    assert_eq!((nothing.permissions.len(), restored.reduced_roles), (0, vec!["nothing".into()]));

    let file = BackupFile::open(&dir.path().join("file"), Check::Skip, &mut |_, _| {}).unwrap();
    let status = file.status().unwrap();
    assert_eq!((status.revision, status.keys, status.version.as_str()), (7, 16, "3.6.0"));
    assert_eq!(status.bytes, snapshot().len() as u64);
}

#[test]
fn the_other_meta_page_serves_if_one_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let mut bytes = snapshot();
    let (first, second) = bytes.split_at_mut(PAGE_BYTES);
    // As a write that was interrupted leaves it: the first one is right and the second one is not.
    first[16..80].copy_from_slice(&second[16..80]);
    second[30] ^= 1;
    assert_eq!(restore(&bytes, dir.path()).unwrap().revision, 7);
    bytes[30] ^= 1;
    assert!(refusal(&bytes).contains("both of its meta pages are damaged"));
}

#[test]
fn pages_that_lead_nowhere_or_round_are_refused() {
    let with_keys = |root: &dyn Fn(&mut BoltFile) -> u64| {
        let mut file = BoltFile::new();
        let keys = root(&mut file);
        let root = file.leaf(&[Element::bucket("key", keys)]);
        refusal(&file.finish(root))
    };
    let circle = with_keys(&|file| {
        let own = file.next();
        file.branch(&[(b"a", own), (b"b", own)])
    });
    assert!(circle.contains("too deep") || circle.contains("circle"), "{circle}");
    // Every page has all pages of the level below it many times: 40^20 leaves.
    let bush = with_keys(&|file| {
        let mut below = file.leaf(&[]);
        for _ in 0..20 {
            below = file.branch(&[(b"a".as_slice(), below); 40]);
        }
        below
    });
    assert!(bush.contains("circle"), "{bush}");
    assert!(with_keys(&|_| 999).contains("outside of the file"));
    assert!(with_keys(&|_| 1).contains("outside of the file"));
    let unordered = with_keys(&|file| {
        let elements = [put(3, "a", 1, vec![]), put(2, "b", 1, vec![])];
        file.leaf(&elements)
    });
    assert!(unordered.contains("out of order"), "{unordered}");
    let elsewhere = with_keys(&|file| {
        let mut element = put(3, "a", 1, vec![]);
        element.key = revision(4, 0);
        file.leaf(&[element])
    });
    assert!(elsewhere.contains("another revision"), "{elsewhere}");
    let mut file = BoltFile::new();
    let root = file.leaf(&[Element::inline("other", &[])]);
    assert!(refusal(&file.finish(root)).contains("without etcd's keys"));
    let root = file.leaf(&[Element::new("key", "value")]);
    assert!(refusal(&file.finish(root)).contains("beside the buckets"));
}

#[test]
fn a_snapshot_that_was_cut_off_is_refused() {
    let whole = snapshot();
    for length in (0..whole.len()).step_by(97) {
        let dir = tempfile::tempdir().unwrap();
        assert!(restore(&whole[..length], dir.path()).is_err(), "{length} of {}", whole.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Whatever is changed: an error or a state, never a panic, and reading ends.
    #[test]
    fn damage_of_any_kind_is_survived(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        numbers in prop::collection::vec((any::<prop::sample::Index>(), 0..20_u32), 0..3),
    ) {
        let mut bytes = snapshot();
        // Behind the meta pages, whose checksum would find it.
        let first = 2 * PAGE_BYTES;
        let length = bytes.len() - first;
        for (at, byte) in changes {
            bytes[first + at.index(length)] = byte;
        }
        for (at, number) in numbers {
            let at = first + at.index(length / 4) * 4;
            bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
        }
        let dir = tempfile::tempdir().unwrap();
        if restore(&bytes, dir.path()).is_ok() {
            State::open(&dir.path().join("state"), ROCKS);
        }
    }
}
