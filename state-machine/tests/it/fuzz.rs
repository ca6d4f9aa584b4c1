//! Nothing that a log entry can hold makes apply fail or panic, and nothing stored makes reads panic.

use bytes::Bytes;
use conclave_state_machine::command::{Caller, Command, Txn, TxnOp};
use conclave_state_machine::head::Head;
use conclave_state_machine::history::{self, EventSpan};
use conclave_state_machine::machine::Machine;
use conclave_state_machine::memory::MemoryRows;
use conclave_state_machine::overlay::Overlay;
use conclave_state_machine::range::{self, Page};
use conclave_state_machine::read::Table;
use conclave_state_machine::response::Rejection;
use conclave_state_machine::{leases, members, validate};
use proptest::prelude::*;

use crate::generate;
use crate::store::Store;

proptest! {
    /// Rows of random bytes end in an answer or an error, in every reader and in apply.
    #[test]
    fn damaged_rows_do_not_panic(
        damage in prop::collection::vec((0..Table::ALL.len(), row_key(), row()), 1..8),
        setup in prop::collection::vec(generate::command(), 0..8),
        commands in prop::collection::vec(generate::command(), 1..8),
        range in generate::range(),
    ) {
        let mut store = Store::new();
        for command in &setup {
            store.apply(command);
        }
        let table = |place: usize| Table::ALL[place];
        let writes = damage.into_iter().map(|(place, key, row)| (table(place), key, Some(row)));
        let mut rows = store.rows;
        rows.write(writes);
        read_all(&rows, store.machine.head(), &range);
        if let Ok(mut machine) = Machine::load(&rows) {
            let mut overlay = Overlay::new(&rows);
            for command in &commands {
                if machine.apply(&mut overlay, Default::default(), &Caller::Inside, command).is_err() {
                    break;
                }
            }
            machine.finish(&mut overlay);
        }
    }

    #[test]
    fn validation_answers_every_txn(txn in generate::txn(), ops_max in 0..8_usize) {
        ignore(validate::txn(&txn, ops_max));
    }
}

fn row_key() -> impl Strategy<Value = Bytes> {
    let known: Vec<Bytes> = vec![
        Bytes::from_static(b"a"),
        Bytes::from_static(b"b"),
        Bytes::from_static(b"head"),
        Bytes::from_static(&[0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0]),
        Bytes::from_static(&[0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0]),
        Bytes::from_static(&[0, 0, 0, 0, 0, 0, 0, 1]),
    ];
    let random = prop::collection::vec(any::<u8>(), 0..14).prop_map(Bytes::from);
    prop_oneof![4 => prop::sample::select(known), 1 => random]
}

/// Small numbers are likely, so that forms, lengths and links often make sense.
fn row() -> impl Strategy<Value = Bytes> {
    let byte = prop_oneof![4 => 0..6_u8, 1 => any::<u8>()];
    prop::collection::vec(byte, 0..24).prop_map(Bytes::from)
}

fn read_all(rows: &MemoryRows, head: &Head, range: &conclave_state_machine::command::Range) {
    ignore(Head::load(rows));
    ignore(range::range(rows, head, range));
    ignore(range::page(rows, head.revision, Page { keys_max: 3, ..Page::default() }));
    let span = EventSpan::whole(i64::MIN, i64::MAX);
    ignore(history::events(rows, EventSpan { revisions_max: 5, bytes_max: 100, ..span }));
    ignore(leases::all(rows));
    ignore(leases::lease_keys(rows, 1));
    ignore(members::all(rows));
}

/// Any answer will do, as long as there is one.
fn ignore<T>(_answer: T) {}

/// A chain of transactions, each in the last one.
fn nested(depth: usize) -> Txn {
    let mut txn = Txn::default();
    for _ in 1..depth {
        txn = Txn { success: vec![TxnOp::Txn(txn)], ..Txn::default() };
    }
    txn
}

#[test]
fn txns_nested_too_deep_are_refused() {
    let mut store = Store::new();
    assert!(store.apply(&Command::Txn(nested(validate::TXN_DEPTH_MAX))).outcome.is_ok());
    let refused = store.apply(&Command::Txn(nested(validate::TXN_DEPTH_MAX + 1))).outcome;
    assert_eq!(refused, Err(Rejection::TooManyOps));
    assert_eq!(
        validate::txn(&nested(validate::TXN_DEPTH_MAX + 1), usize::MAX),
        Err(Rejection::TooManyOps)
    );
    assert_eq!(validate::txn(&nested(3), 2), Ok(()));
    assert_eq!(validate::txn(&nested(4), 2), Err(Rejection::TooManyOps));
}
