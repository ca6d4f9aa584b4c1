//! Random programs: the machine and the naive model must answer alike, and leave the same history.

use std::ops::ControlFlow;

use bytes::Bytes;
use conclave_state_machine::command::{Command, Range, Txn, TxnOp};
use conclave_state_machine::history::{self, EventSpan};
use conclave_state_machine::memory::MemoryRows;
use conclave_state_machine::range::Page;
use conclave_state_machine::read::{Read, Table};
use conclave_state_machine::response::{Halt, KeyValue, Rejection, Response};
use conclave_state_machine::{kv, leases, range};
use proptest::prelude::*;

use crate::generate::{self, Step};
use crate::model::{Model, Sizes};
use crate::store::Store;

proptest! {
    #[test]
    fn machine_equals_the_naive_model(program in generate::program()) {
        let (mut store, mut model) = (Store::new(), Model::new());
        for step in program {
            take(&mut store, &mut model, step)?;
            check_state(&store, &model)?;
        }
    }

    /// A reader needs no snapshot: it reads as of its head while the rows go on below it.
    #[test]
    fn readers_step_over_newer_rows(
        commands in prop::collection::vec(generate::command(), 1..60),
        taken_at in 0..60_usize,
        requests in prop::collection::vec(generate::range(), 1..20),
    ) {
        let (mut store, mut model) = (Store::new(), Model::new());
        let mut taken = store.head().clone();
        for (place, command) in commands.iter().enumerate() {
            store.apply(command);
            drop(model.apply(command));
            if place == taken_at {
                taken = store.head().clone();
            }
        }
        for request in requests {
            let request = Range { revision: 0, ..request };
            if taken.revision >= model.compacted && !request.key.is_empty() {
                let answer = range::range(&store.rows, &taken, &request);
                let answer = answer.expect("memory does not fail");
                prop_assert_eq!(answer, Ok(model.range_as_of(taken.revision, &request)));
            }
        }
    }

    /// Pieces of a history put together are the history, and no piece ends within a revision.
    #[test]
    fn history_is_the_sum_of_its_pieces(
        commands in prop::collection::vec(generate::command(), 1..60),
        revisions_max in 1..5_usize,
        bytes_max in 0..60_usize,
    ) {
        let mut store = Store::new();
        commands.iter().for_each(|command| drop(store.apply(command)));
        let (mut from, to) = (store.head().compacted.max(0), store.head().revision);
        let whole = store.history(from, to);
        let mut pieces = Vec::new();
        loop {
            let span = EventSpan { revisions_max, bytes_max, ..EventSpan::whole(from, to) };
            let piece = history::events(&store.rows, span);
            let piece = piece.expect("memory does not fail");
            let Some(last) = piece.last() else { break };
            from = last.kv.mod_revision + 1;
            let mut revisions: Vec<_> = piece.iter().map(|event| event.kv.mod_revision).collect();
            revisions.dedup();
            prop_assert!(revisions.len() <= revisions_max);
            let before_last = piece.iter().filter(|event| event.kv.mod_revision + 1 < from);
            let bytes: usize = before_last.map(|event| event.kv.key.len() + event.kv.value.len()).sum();
            prop_assert!(revisions.len() == 1 || bytes < bytes_max, "stops once there is enough");
            pieces.extend(piece);
        }
        prop_assert_eq!(pieces, whole);
    }

    /// Pages put together are the whole range.
    #[test]
    fn pages_are_the_range(
        commands in prop::collection::vec(generate::command(), 1..60),
        keys_max in 1..4_usize,
        bytes_max in 1..12_usize,
        back in 0..10_i64,
    ) {
        let mut store = Store::new();
        commands.iter().for_each(|command| drop(store.apply(command)));
        let head = store.head();
        let revision = (head.revision - back).max(head.compacted).max(1);
        let zero = Bytes::from_static(b"\0");
        let all = Range { key: zero.clone(), range_end: zero, revision, ..Range::default() };
        let all = range::range(&store.rows, head, &all).expect("memory does not fail");
        let mut start = vec![0];
        let mut pages = Vec::new();
        loop {
            let piece = Page { start: &start, keys_max, bytes_max, ..Page::default() };
            let page = range::page(&store.rows, revision, piece).expect("memory does not fail");
            prop_assert!(page.len() <= keys_max);
            let before_last = page.iter().rev().skip(1);
            let bytes: usize = before_last.map(|kv| kv.key.len() + kv.value.len()).sum();
            prop_assert!(bytes < bytes_max, "stops once there is enough");
            let Some(last) = page.last() else { break };
            start = [last.key.as_ref(), &[0]].concat();
            pages.extend(page);
        }
        let (mut keys, mut key_values) = (Vec::new(), Vec::new());
        let mut visit = |key: &[u8], lives: bool| {
            keys.extend(lives.then(|| Bytes::copy_from_slice(key)));
            ControlFlow::Continue(())
        };
        let everything = (&b""[..], None);
        if revision == head.revision {
            range::key_rows(&NoEvents(&store.rows), revision, everything, &mut visit).expect("reads no event");
        } else {
            range::key_rows(&store.rows, revision, everything, &mut visit).expect("memory does not fail");
        }
        range::key_values(&store.rows, revision, &mut |kv| key_values.push(kv)).expect("memory does not fail");
        prop_assert_eq!(&key_values, &pages);
        prop_assert!(keys.iter().eq(pages.iter().map(|kv| &kv.key)));
        if revision == head.revision {
            let only = Page { keys_only: true, ..Page::default() };
            let named = range::page(&NoEvents(&store.rows), revision, only).expect("reads no event");
            let names = pages.iter().map(|kv| KeyValue { value: Bytes::new(), lease: 0, ..kv.clone() });
            prop_assert!(named.into_iter().eq(names));
        }
        prop_assert_eq!(Ok(pages), all.map(|answer| answer.kvs));
    }

    #[test]
    fn batches_make_no_difference(commands in prop::collection::vec(generate::command(), 1..60)) {
        let (mut one_by_one, mut at_once) = (Store::new(), Store::new());
        let answers: Vec<_> = commands.iter().map(|command| one_by_one.apply(command)).collect();
        let batched = at_once.apply_batch(&commands);
        for (single, batched) in answers.iter().zip(&batched) {
            prop_assert_eq!(&single.outcome, &batched.outcome);
            prop_assert_eq!(&single.events, &batched.events);
            prop_assert_eq!(&single.leases, &batched.leases);
        }
        prop_assert_eq!(one_by_one.head(), at_once.head());
        prop_assert_eq!(one_by_one.rows, at_once.rows);
    }
}

fn take(store: &mut Store, model: &mut Model, step: Step) -> Result<(), TestCaseError> {
    match step {
        Step::Apply(commands) => {
            let events_before = model.events.len();
            let mut revisions = Vec::new();
            let answers: Vec<_> = commands
                .iter()
                .map(|command| {
                    let answer = model.apply(command);
                    revisions.push(model.revision());
                    answer
                })
                .collect();
            let applied = store.apply_batch(&commands);
            let mut events = model.events[events_before..].iter();
            for (place, applied) in applied.iter().enumerate() {
                let (outcome, leases) = &answers[place];
                match (&applied.outcome, outcome) {
                    (Ok(Response::Compact { .. }), Ok(Response::Compact { .. })) => {}
                    (applied, outcome) => prop_assert_eq!(applied, outcome),
                }
                prop_assert_eq!(&applied.leases, leases);
                prop_assert_eq!(applied.revision, revisions[place]);
                for event in &applied.events {
                    prop_assert_eq!(Some(event), events.next());
                }
            }
            prop_assert_eq!(events.next(), None);
        }
        Step::Range(range) => prop_assert_eq!(store.range(&range), model.range(&range)),
        Step::ReadTxn(txn) => check_read_txn(store, model, &txn)?,
        Step::History(from) => {
            if from >= model.compacted {
                let events = store.history(from, model.revision());
                prop_assert_eq!(events, model.history(from));
            }
        }
        Step::Restart => store.restart(),
        Step::NextTerm => {
            store.term += 1;
            model.term += 1;
        }
    }
    Ok(())
}

/// A transaction that only reads answers off the log what it would answer in it.
fn check_read_txn(store: &Store, model: &mut Model, txn: &Txn) -> Result<(), TestCaseError> {
    let answer = kv::read_txn(&store.rows, store.head(), txn).expect("memory does not fail");
    let only_reads = |ops: &[TxnOp]| ops.iter().all(|op| matches!(op, TxnOp::Range(_)));
    if only_reads(&txn.success) && only_reads(&txn.failure) {
        let (in_log, _) = model.apply(&Command::Txn(txn.clone()));
        match (answer, in_log) {
            // Off the log no alarm stops it.
            (_, Err(Rejection::Corrupt)) => {}
            (answer, in_log) => prop_assert_eq!(answer.map(Response::Txn), in_log),
        }
    }
    Ok(())
}

fn check_state(store: &Store, model: &Model) -> Result<(), TestCaseError> {
    let head = store.head();
    prop_assert_eq!(head.revision, model.revision());
    prop_assert_eq!(head.compacted, model.compacted);
    prop_assert_eq!(head.key_count, model.live().len() as i64);
    let sizes = Sizes {
        rev_rows: store.rows.rows(Table::Rev).count(),
        key_rows: store.rows.rows(Table::Key).count(),
        bytes: head.bytes_in_use,
    };
    prop_assert_eq!(sizes, model.sizes());
    let leases = leases::all(&store.rows).expect("memory does not fail");
    let mut attached = Vec::new();
    for (id, _) in leases {
        let keys = leases::lease_keys(&store.rows, id).expect("memory does not fail");
        attached.push((id, keys));
    }
    attached.sort();
    prop_assert_eq!(&attached, &model.lease_keys());
    let attachments: usize = attached.iter().map(|(_, keys)| keys.len()).sum();
    prop_assert_eq!(store.rows.rows(Table::LeaseKey).count(), attachments, "no stray attachment");
    for revision in [0, model.revision(), (model.compacted + model.revision()) / 2] {
        let everything = Range {
            key: b"\0".as_slice().into(),
            range_end: b"\0".as_slice().into(),
            revision,
            ..Range::default()
        };
        prop_assert_eq!(store.range(&everything), model.range(&everything));
    }
    Ok(())
}

/// Rows among which no event is read, and so no large value.
struct NoEvents<'a>(&'a MemoryRows);

impl Read for NoEvents<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, Halt> {
        assert_ne!(table, Table::Rev);
        self.0.get(table, key)
    }

    fn scan(
        &self,
        table: Table,
        start: &[u8],
        end: Option<&[u8]>,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>, Halt>,
    ) -> Result<(), Halt> {
        assert_ne!(table, Table::Rev);
        self.0.scan(table, start, end, visit)
    }
}
