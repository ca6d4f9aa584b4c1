//! Who may write a lease, and how many rows the check reads.

use std::cell::Cell;
use std::ops::ControlFlow;

use proptest::prelude::*;

use super::*;
use crate::auth::interval::KeySet;
use crate::memory::MemoryRows;
use crate::read::Table;
use crate::rows::lease::attachment_key;

/// Rows that count how many are visited.
struct Counting {
    rows: MemoryRows,
    visited: Cell<usize>,
}

impl Counting {
    fn new(attached: impl IntoIterator<Item = (i64, Bytes)>) -> Self {
        let mut rows = MemoryRows::default();
        let attached = attached.into_iter();
        rows.write(
            attached
                .map(|(id, key)| (Table::LeaseKey, attachment_key(id, &key), Some(Bytes::new()))),
        );
        Self { rows, visited: Cell::new(0) }
    }
}

impl Read for Counting {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, Halt> {
        self.rows.get(table, key)
    }

    fn scan(
        &self,
        table: Table,
        start: &[u8],
        end: Option<&[u8]>,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>, Halt>,
    ) -> Result<(), Halt> {
        self.rows.scan(table, start, end, &mut |key, row| {
            self.visited.set(self.visited.get() + 1);
            visit(key, row)
        })
    }
}

fn writer(pairs: &[(Bytes, Bytes)]) -> Rights {
    let write = KeySet::new(pairs.iter().map(|(key, end)| (key, end)));
    Rights { write, ..Rights::default() }
}

fn key() -> impl Strategy<Value = Bytes> {
    prop::collection::vec(prop_oneof![Just(0), Just(b'a'), Just(0xff)], 1..4).prop_map(Bytes::from)
}

proptest! {
    #[test]
    fn a_lease_is_written_by_whoever_may_write_each_of_its_keys(
        attached in prop::collection::vec((-1..3_i64, key()), 0..12),
        pairs in prop::collection::vec((key(), prop_oneof![Just(Bytes::new()), key()]), 0..6),
    ) {
        let (rights, rows) = (writer(&pairs), Counting::new(attached));
        for id in -1..3 {
            let keys = leases::lease_keys(&rows.rows, id).expect("memory does not fail");
            let may = keys.iter().all(|key| rights.write.covers(key, b""));
            let found = lease_renewal(&rows, &rights, id).expect("memory does not fail");
            prop_assert_eq!(found.is_ok(), may);
        }
    }
}

#[test]
fn a_lease_of_many_keys_is_checked_by_few_and_once_in_a_transaction() {
    let key = |i: usize| Bytes::from(format!("a/{i}"));
    let rows = Counting::new((0..1_000).map(|i| (7, key(i))));
    let rights = writer(&[(Bytes::from_static(b"a/"), Bytes::from_static(b"a0"))]);
    let put = |i| TxnOp::Put(Put { key: key(i), lease: 7, ..Put::default() });
    let txn = Txn { success: (0..100).map(put).collect(), ..Txn::default() };
    assert!(txn_in_log(&rows, &rights, &txn).is_ok());
    assert_eq!(rows.visited.get(), 1, "the other keys are of the same run");
}
