//! An imported history reads like the original, and an impossible one is rejected.

use proptest::prelude::*;

use super::*;
use crate::command::{Compact, Permission, PermissionKind};
use crate::history::{self, EventSpan};
use crate::memory::MemoryRows;
use crate::read::Table;
use crate::{compaction, range};

#[derive(Clone, Debug)]
enum Step {
    Put(u8, i64),
    Delete(u8),
    DeleteAll,
    Compact(i64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let key = || prop::sample::select(b"abcd".to_vec());
    let step = prop_oneof![
        6 => (key(), 0..3_i64).prop_map(|(key, lease)| Step::Put(key, lease)),
        3 => key().prop_map(Step::Delete),
        1 => Just(Step::DeleteAll),
        1 => (0..4_i64).prop_map(Step::Compact),
    ];
    prop::collection::vec(step, 1..60)
}

/// A key `name/x`, so that leased keys form a queue.
fn key_of(letter: u8) -> Bytes {
    Bytes::from([b"name/", [letter].as_slice()].concat())
}

#[derive(Default)]
struct Store {
    rows: MemoryRows,
    head: Head,
}

impl Store {
    fn change(&mut self, keys: &[u8], lease: Option<i64>) {
        let Store { rows, head } = self;
        let mut events = Events::default();
        let changed = rows.update(|overlay| {
            let mut change = Change::begin(overlay, head, &mut events)?;
            for key in keys {
                let key = key_of(*key);
                let before = Before::load(change.rows, &key)?;
                match lease {
                    Some(lease) => change.put(&key, before, &key, lease)?,
                    None => change.delete(&key, before)?,
                }
            }
            head.write(overlay);
            Ok::<_, Halt>(())
        });
        changed.unwrap();
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Put(key, lease) => self.change(&[*key], Some(*lease)),
            Step::Delete(key) => self.change(&[*key], None),
            Step::DeleteAll => self.change(b"abcd", None),
            Step::Compact(back) => {
                let revision = self.head.revision - back;
                // A rejection changes nothing.
                compaction::apply(&mut self.head, Compact { revision }).unwrap_or_default();
                self.sweep();
            }
        }
    }

    fn sweep(&mut self) {
        let Store { rows, head } = self;
        rows.update(|overlay| {
            compaction::sweep_step(overlay, head)?;
            head.write(overlay);
            Ok::<_, Halt>(())
        })
        .unwrap();
    }

    /// The stored changes, as an etcd would have them in its file.
    fn changes(&self) -> Vec<ForeignChange> {
        let rows = self.rows.rows(Table::Rev);
        let change = |(at, row): (&Bytes, &Bytes)| {
            let at = Revision::from_row_key(at).unwrap();
            let row = crate::rows::rev::RevRow::decode(at, row).unwrap();
            let put = row.state.map(|state| ForeignPut {
                create_revision: state.create_revision,
                version: state.version,
                lease: state.lease,
                value: Bytes::copy_from_slice(state.value),
            });
            ForeignChange { at, key: Bytes::copy_from_slice(row.key), put }
        };
        rows.map(change).collect()
    }
}

fn import(store: &Store) -> Store {
    let compacted = (store.head.compacted >= 0).then_some(store.head.compacted);
    let mut import = Import::new(compacted);
    let mut rows = MemoryRows::default();
    for change in store.changes() {
        rows.update(|overlay| import.change(overlay, &change)).unwrap();
    }
    rows.update(|overlay| {
        import.finish(overlay);
        Ok::<_, Halt>(())
    })
    .unwrap();
    let head = Head::load(&rows).unwrap();
    Store { rows, head }
}

proptest! {
    /// Whatever happened in the other store, everything that can be read from it reads the same
    /// here, and stays so after more changes.
    #[test]
    fn an_imported_history_reads_as_the_original(steps in steps(), later in steps()) {
        let mut original = Store::default();
        steps.iter().for_each(|step| original.step(step));
        let mut copy = import(&original);
        copy.sweep();
        for step in [&[], later.as_slice()] {
            for store in [&mut original, &mut copy] {
                step.iter().for_each(|step| store.step(step));
            }
            let head = &original.head;
            prop_assert_eq!(copy.head.revision, head.revision);
            prop_assert_eq!(copy.head.compacted, head.compacted);
            prop_assert_eq!(copy.head.key_count, head.key_count);
            prop_assert_eq!(copy.head.bytes_in_use, head.bytes_in_use);
            for revision in head.compacted.max(1)..=head.revision {
                let read = |store: &Store| {
                    range::page(&store.rows, revision, range::Page::default()).unwrap()
                };
                prop_assert_eq!(read(&copy), read(&original));
            }
            let events = |store: &Store| {
                let from = head.compacted.max(1);
                history::events(&store.rows, EventSpan::whole(from, head.revision)).unwrap()
            };
            prop_assert_eq!(events(&copy), events(&original));
            // After a compaction, puts may be missing that would tell whether a key had its lease
            // from its creation on.
            let tables: &[Table] = if head.compacted < 0 {
                &[Table::LeaseKey, Table::Place]
            } else {
                &[Table::LeaseKey]
            };
            for table in tables {
                let rows = |store: &Store| {
                    let rows = store.rows.rows(*table);
                    rows.map(|(key, row)| (key.clone(), row.clone())).collect::<Vec<_>>()
                };
                prop_assert_eq!(rows(&copy), rows(&original));
            }
        }
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let put = ForeignPut { create_revision: 2, version: 1, lease: 0, value: Bytes::new() };
    let good = ForeignChange {
        at: Revision { main: 2, sub: 0 },
        key: Bytes::from_static(b"k"),
        put: Some(put.clone()),
    };
    let at = |main, sub| Revision { main, sub };
    let bad = [
        ForeignChange { key: Bytes::new(), at: at(3, 0), ..good.clone() },
        ForeignChange { at: at(1, 7), ..good.clone() },
        ForeignChange { at: at(-3, 0), ..good.clone() },
        ForeignChange { at: at(i64::MAX, 0), ..good.clone() },
        ForeignChange {
            at: at(3, 0),
            put: Some(ForeignPut { version: 0, ..put.clone() }),
            ..good.clone()
        },
        ForeignChange {
            at: at(3, 0),
            put: Some(ForeignPut { create_revision: 4, ..put.clone() }),
            ..good.clone()
        },
        ForeignChange {
            at: at(3, 0),
            put: Some(ForeignPut { create_revision: 0, ..put }),
            ..good.clone()
        },
        good.clone(),
    ];
    for bad in bad {
        let mut rows = MemoryRows::default();
        let mut import = Import::new(None);
        rows.update(|overlay| import.change(overlay, &good)).unwrap();
        let refused = rows.update(|overlay| import.change(overlay, &bad));
        assert!(matches!(refused, Err(ImportError::Impossible(_))), "{bad:?}");
    }
    let mut import = Import::new(None);
    let mut rows = MemoryRows::default();
    assert!(rows.update(|overlay| import.role(overlay, "", RoleRow::default())).is_err());
    assert!(rows.update(|overlay| import.user(overlay, "", UserRow::default())).is_err());
    for (id, ttl) in [(0, 5), (7, 0), (7, TTL_SECONDS_MAX + 1)] {
        let mut rows = MemoryRows::default();
        let refused = rows.update(|overlay| Import::new(None).lease(overlay, id, ttl));
        assert!(matches!(refused, Err(ImportError::Impossible(_))), "{id} {ttl}");
    }
}

#[test]
fn permissions_for_no_keys_are_left_out() {
    let reads = |key: &'static str, range_end: &'static str| Permission {
        kind: PermissionKind::Read,
        key: key.into(),
        range_end: range_end.into(),
    };
    let right = [reads("a", ""), reads("b", "\0"), reads("c", "d")];
    let empty = [reads("", ""), reads("", "z"), reads("", "\0"), reads("b", "a"), reads("b", "b")];
    let mut import = Import::new(None);
    let mut rows = MemoryRows::default();
    let role = RoleRow { permissions: empty.into_iter().chain(right.clone()).collect() };
    assert_eq!(rows.update(|overlay| import.role(overlay, "r", role)).unwrap(), 5);
    assert_eq!(auth::role(&rows, "r").unwrap().unwrap().permissions, right);
}
