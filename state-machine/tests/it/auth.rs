//! Permission checks against a model that knows neither intervals nor caches: it writes out which keys of a
//! tiny key space a request touches, and looks each of them up in every grant.

use std::collections::BTreeSet;

use bytes::Bytes;
use conclave_state_machine::command::{
    AuthCommand, Caller, Command, Compare, CompareResult, CompareTarget, DeleteRange, LeaseGrant,
    LeaseRevoke, Permission, PermissionKind, Put, Range, RoleGrant, Txn, TxnOp, UserAdd, UserRole,
};
use conclave_state_machine::response::Rejection;
use conclave_state_machine::span::Span;
use proptest::prelude::*;

use crate::store::Store;

/// All keys there are for the model.
const KEYS: [&[u8]; 6] = [b"\0", b"a", b"a\0", b"b", b"c", b"\xff"];
const LEASE: i64 = 7;

fn key() -> impl Strategy<Value = Bytes> {
    prop::sample::select(KEYS.to_vec()).prop_map(Bytes::from_static)
}

fn range_end() -> impl Strategy<Value = Bytes> {
    prop_oneof![Just(Bytes::new()), Just(Bytes::from_static(b"\0")), key()]
}

fn grant() -> impl Strategy<Value = Permission> {
    let kind = prop::sample::select(vec![
        PermissionKind::Read,
        PermissionKind::Write,
        PermissionKind::ReadWrite,
    ]);
    (kind, key(), range_end()).prop_map(|(kind, key, range_end)| Permission {
        kind,
        key,
        range_end,
    })
}

fn put() -> impl Strategy<Value = Put> {
    (key(), any::<bool>(), any::<bool>()).prop_map(|(key, prev_kv, attaches)| Put {
        key,
        prev_kv,
        lease: if attaches { LEASE } else { 0 },
        ..Put::default()
    })
}

fn op() -> impl Strategy<Value = TxnOp> {
    let leaf = prop_oneof![
        (key(), range_end()).prop_map(|(key, range_end)| TxnOp::Range(Range {
            key,
            range_end,
            ..Range::default()
        })),
        put().prop_map(TxnOp::Put),
        (key(), range_end(), any::<bool>()).prop_map(|(key, range_end, prev_kv)| {
            TxnOp::DeleteRange(DeleteRange { key, range_end, prev_kv })
        }),
    ];
    leaf.prop_recursive(5, 12, 3, |inner| txn(inner).prop_map(TxnOp::Txn))
}

fn txn(op: impl Strategy<Value = TxnOp> + Clone) -> impl Strategy<Value = Txn> {
    let compare = (key(), range_end()).prop_map(|(key, range_end)| Compare {
        key,
        range_end,
        result: CompareResult::Equal,
        target: CompareTarget::Version(0),
    });
    let ops = prop::collection::vec(op, 0..3);
    (prop::collection::vec(compare, 0..2), ops.clone(), ops)
        .prop_map(|(compare, success, failure)| Txn { compare, success, failure })
}

/// What the model finds out about a request.
#[derive(Default)]
struct Touched {
    read: BTreeSet<&'static [u8]>,
    written: BTreeSet<&'static [u8]>,
}

fn held(key: &Bytes, range_end: &Bytes) -> impl Iterator<Item = &'static [u8]> {
    let (key, range_end) = (key.clone(), range_end.clone());
    KEYS.into_iter().filter(move |one| Span::new(&key, &range_end).contains(one))
}

impl Touched {
    fn put(&mut self, put: &Put, attached: &[&'static [u8]]) {
        self.written.extend(held(&put.key, &Bytes::new()));
        if put.prev_kv {
            self.read.extend(held(&put.key, &Bytes::new()));
        }
        if put.lease != 0 {
            self.written.extend(attached);
        }
    }

    fn txn(&mut self, txn: &Txn, attached: &[&'static [u8]]) {
        for compare in &txn.compare {
            self.read.extend(held(&compare.key, &compare.range_end));
        }
        for op in txn.success.iter().chain(&txn.failure) {
            match op {
                TxnOp::Range(range) => self.read.extend(held(&range.key, &range.range_end)),
                TxnOp::Put(put) => self.put(put, attached),
                TxnOp::DeleteRange(delete) => {
                    self.written.extend(held(&delete.key, &delete.range_end));
                    if delete.prev_kv {
                        self.read.extend(held(&delete.key, &delete.range_end));
                    }
                }
                TxnOp::Txn(nested) => self.txn(nested, attached),
            }
        }
    }
}

/// A store with auth on, in which `attached` hang on [`LEASE`] and `ann` has `grants`.
fn store(grants: &[Permission], attached: &[&'static [u8]]) -> Store {
    let mut store = Store::new();
    let user = |name: &str| UserAdd { name: name.to_owned(), ..UserAdd::default() };
    let role = |user: &str, role: &str| UserRole { user: user.to_owned(), role: role.to_owned() };
    let mut commands = vec![
        Command::LeaseGrant(LeaseGrant { id: LEASE, ttl: 60 }),
        Command::Auth(AuthCommand::UserAdd(user("root"))),
        Command::Auth(AuthCommand::UserGrantRole(role("root", "root"))),
        Command::Auth(AuthCommand::UserAdd(user("ann"))),
        Command::Auth(AuthCommand::RoleAdd("r".to_owned())),
        Command::Auth(AuthCommand::UserGrantRole(role("ann", "r"))),
    ];
    let attach = |key: &&'static [u8]| {
        let key = Bytes::from_static(key);
        Command::Put(Put { key, lease: LEASE, ..Put::default() })
    };
    commands.extend(attached.iter().map(attach));
    for permission in grants {
        let grant = RoleGrant { role: "r".to_owned(), permission: Some(permission.clone()) };
        commands.push(Command::Auth(AuthCommand::RoleGrant(grant)));
    }
    commands.push(Command::Auth(AuthCommand::Enable));
    commands.iter().for_each(|command| drop(store.apply(command)));
    assert!(store.head().auth.enabled);
    store
}

/// Of several grants of the same keys the last one counts.
fn in_force(grants: &[Permission]) -> Vec<Permission> {
    let is_same = |one: &Permission, other: &Permission| {
        (&one.key, &one.range_end) == (&other.key, &other.range_end)
    };
    let numbered = grants.iter().enumerate();
    let last = numbered.filter(|(at, one)| !grants[at + 1..].iter().any(|it| is_same(one, it)));
    last.map(|(_, one)| one.clone()).collect()
}

fn allows(grants: &[Permission], touched: &Touched) -> bool {
    // A grant of nothing was refused; one key, or from one on, is never nothing.
    let is_granted = |key: &&[u8], wanted: fn(PermissionKind) -> bool| {
        grants
            .iter()
            .any(|one| wanted(one.kind) && Span::new(&one.key, &one.range_end).contains(key))
    };
    touched.read.iter().all(|key| is_granted(key, PermissionKind::reads))
        && touched.written.iter().all(|key| is_granted(key, PermissionKind::writes))
}

proptest! {
    /// Whatever a transaction hides however deep, it is refused and writes nothing unless the user may
    /// touch every key of it.
    #[test]
    fn nothing_is_touched_without_a_right(
        grants in prop::collection::vec(grant(), 0..6),
        attached in prop::sample::subsequence(KEYS.to_vec(), 0..3),
        txn in txn(op().boxed()),
    ) {
        let mut store = store(&grants, &attached);
        let grants = in_force(&grants);
        let mut touched = Touched::default();
        touched.txn(&txn, &attached);
        check(&mut store, &grants, &touched, &Command::Txn(txn))?;
        let mut revoked = Touched::default();
        revoked.written.extend(&attached);
        let revoke = Command::LeaseRevoke(LeaseRevoke { id: LEASE });
        // What the transaction did to the lease's keys, if it was allowed to, is not modelled.
        if store.head().revision == 1 + i64::try_from(attached.len()).unwrap() {
            check(&mut store, &grants, &revoked, &revoke)?;
        }
    }
}

fn check(
    store: &mut Store,
    grants: &[Permission],
    touched: &Touched,
    command: &Command,
) -> Result<(), TestCaseError> {
    let auth_revision = store.head().auth.revision;
    let ann = Caller::User { name: "ann".into(), auth_revision };
    let before = store.rows.clone();
    let applied = store.apply_for(&ann, command);
    let is_denied = applied.outcome == Err(Rejection::PermissionDenied);
    if is_denied {
        // The head row is written again with every batch.
        prop_assert!(applied.events.is_empty() && store.rows == before);
    } else {
        prop_assert!(allows(grants, touched), "not granted, yet {:?}", applied.outcome);
    }
    // The key space is larger than the model's: a range may be refused for a key between these.
    let ranges = |one: &Permission| !one.range_end.is_empty();
    if allows(grants, touched) && !matches!(command, Command::Txn(_)) && !grants.iter().any(ranges)
    {
        prop_assert!(!is_denied);
    }
    for stranger in [Caller::Anonymous, Caller::User { name: "eve".into(), auth_revision }] {
        let refused = store.apply_for(&stranger, command).outcome;
        let wanted = [Err(Rejection::UserEmpty), Err(Rejection::PermissionDenied)];
        prop_assert!(wanted.contains(&refused));
    }
    Ok(())
}
