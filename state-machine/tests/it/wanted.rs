//! What of an outcome is looked at: it bounds memory, and the rows never depend on it.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use conclave_state_machine::command::{
    Caller, Command, DeleteRange, GuardedTxn, LeaseGrant, LeaseRevoke, Put, Txn, Write, WriteId,
};
use conclave_state_machine::events::Wanted;
use conclave_state_machine::machine::{Machine, Position};
use conclave_state_machine::memory::MemoryRows;
use conclave_state_machine::overlay::Overlay;
use conclave_state_machine::read::{Read, Table};
use conclave_state_machine::response::{Applied, Event, Halt, Response};
use proptest::prelude::*;

use crate::generate;
use crate::store::Store;

/// Also those that are remembered with their answers, and may come again.
fn command() -> impl Strategy<Value = Command> {
    let guarded = |txn: Txn| GuardedTxn { guards: Vec::new(), txn };
    let id = |sequence| WriteId {
        writer: Bytes::from_static(b"a writer's name!"),
        sequence,
        settled: 1,
        since: 0,
    };
    prop_oneof![
        3 => generate::command(),
        1 => generate::txn().prop_map(move |txn| Command::GuardedTxn(guarded(txn))),
        2 => (generate::txn(), 1..20_u64).prop_map(move |(txn, sequence)| {
            Command::Write(Write { id: id(sequence), guarded: guarded(txn) })
        }),
    ]
}

fn without_prev(events: &[Event]) -> Vec<Event> {
    events.iter().map(|event| Event { prev_kv: None, ..event.clone() }).collect()
}

proptest! {
    #[test]
    fn rows_do_not_depend_on_what_is_wanted(
        commands in prop::collection::vec(command(), 1..60),
        answers in any::<bool>(),
        prev_bytes in 0..30_usize,
    ) {
        let (mut whole, mut part) = (Store::new(), Store::new());
        for command in &commands {
            let all = whole.apply(command);
            let some = part.apply_wanted(command, Wanted { answers, prev_bytes });
            prop_assert_eq!(some.revision, all.revision);
            prop_assert_eq!(without_prev(&some.events), without_prev(&all.events));
            prop_assert_eq!(&some.leases, &all.leases);
            prop_assert_eq!(some.outcome.as_ref().err(), all.outcome.as_ref().err());
            if !some.lack_prev {
                prop_assert_eq!(some.events, all.events, "what is lacking is said");
            }
            if answers {
                prop_assert_eq!(some.outcome, all.outcome);
            }
        }
        prop_assert_eq!(part.head(), whole.head());
        prop_assert_eq!(part.rows, whole.rows);
    }
}

/// Rows of a store, and how many bytes of them whoever read them holds.
struct Weighing<'a> {
    rows: &'a MemoryRows,
    held: Arc<Held>,
}

#[derive(Default)]
struct Held {
    now: AtomicUsize,
    most: AtomicUsize,
    /// Most bytes that one scan of keys went through, which may all be kept.
    scanned: AtomicUsize,
}

/// A row that was read and is not dropped yet.
struct Row {
    bytes: Vec<u8>,
    held: Arc<Held>,
}

impl Row {
    fn hold(bytes: &[u8], held: &Arc<Held>) -> Bytes {
        let now = held.now.fetch_add(bytes.len(), Ordering::Relaxed) + bytes.len();
        held.most.fetch_max(now, Ordering::Relaxed);
        Bytes::from_owner(Row { bytes: bytes.to_vec(), held: Arc::clone(held) })
    }
}

impl AsRef<[u8]> for Row {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Row {
    fn drop(&mut self) {
        self.held.now.fetch_sub(self.bytes.len(), Ordering::Relaxed);
    }
}

impl Read for Weighing<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, Halt> {
        let row = self.rows.get(table, key)?;
        Ok(row.map(|row| Row::hold(&row, &self.held)))
    }

    fn scan(
        &self,
        table: Table,
        start: &[u8],
        end: Option<&[u8]>,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>, Halt>,
    ) -> Result<(), Halt> {
        let mut bytes = 0;
        self.rows.scan(table, start, end, &mut |key, row| {
            bytes += key.len() + row.len();
            visit(key, row)
        })?;
        self.held.scanned.fetch_max(bytes, Ordering::Relaxed);
        Ok(())
    }
}

/// Applies a command; what was held while it was, and what came of it.
fn weigh(store: &Store, command: &Command, mut wanted: Wanted) -> (Arc<Held>, Applied) {
    let weighing = Weighing { rows: &store.rows, held: Arc::default() };
    let mut machine = Machine::load(&store.rows).expect("memory does not fail");
    let mut overlay = Overlay::new(&weighing);
    let position = Position { term: 1, ..Position::default() };
    let applied =
        machine.apply_for(&mut overlay, position, (&Caller::Inside, command), &mut wanted);
    let applied = applied.expect("memory does not fail");
    (weighing.held, applied)
}

const KEYS: usize = 100;
const VALUE_BYTES: usize = 40_000;
const LEASE: i64 = 7;

fn filled() -> Store {
    let mut store = Store::new();
    assert!(store.apply(&Command::LeaseGrant(LeaseGrant { id: LEASE, ttl: 60 })).outcome.is_ok());
    for number in 0..KEYS {
        let (key, value) = (format!("k{number:03}").into(), vec![b'v'; VALUE_BYTES].into());
        let put = Command::Put(Put { key, value, lease: LEASE, ..Put::default() });
        assert!(store.apply(&put).outcome.is_ok());
    }
    store
}

fn delete_all() -> Command {
    let delete = DeleteRange { key: "k".into(), range_end: "l".into(), prev_kv: true };
    Command::DeleteRange(delete)
}

#[test]
fn what_is_deleted_is_held_only_as_far_as_it_is_wanted() {
    let store = filled();
    let revoke = Command::LeaseRevoke(LeaseRevoke { id: LEASE });
    for command in [delete_all(), revoke] {
        let wanted = Wanted { answers: false, prev_bytes: 10 * VALUE_BYTES };
        let (held, applied) = weigh(&store, &command, wanted);
        let most = held.most.load(Ordering::Relaxed);
        assert!(most < 13 * VALUE_BYTES, "{most} bytes");
        assert!(applied.lack_prev);
        assert_eq!(applied.events.len(), KEYS);

        let (held, applied) = weigh(&store, &command, Wanted::default());
        assert!(held.most.load(Ordering::Relaxed) >= KEYS * VALUE_BYTES);
        assert!(!applied.lack_prev && applied.events.iter().all(|event| event.prev_kv.is_some()));
    }
}

#[test]
fn whoever_waits_gets_what_was_deleted_whatever_watchers_get() {
    let store = filled();
    let (_, applied) = weigh(&store, &delete_all(), Wanted { answers: true, prev_bytes: 0 });
    let Ok(Response::DeleteRange(answer)) = applied.outcome else { panic!("{applied:?}") };
    assert_eq!((answer.deleted, answer.prev_kvs.len()), (100, KEYS));
    assert!(answer.prev_kvs.iter().all(|kv| kv.value.len() == VALUE_BYTES));
    assert!(applied.events.iter().all(|event| event.prev_kv.is_none()));
}

/// Keys whose rows take several pieces, with tombstones between them.
#[test]
fn a_span_larger_than_a_piece_is_deleted_whole() {
    const LIVE: usize = 1_500;
    let mut store = Store::new();
    let key = |number: usize| Bytes::from(format!("k{number:05}"));
    for number in 0..2 * LIVE {
        let put = Put { key: key(number), value: vec![b'v'; 2_000].into(), ..Put::default() };
        assert!(store.apply(&Command::Put(put)).outcome.is_ok());
        if number % 2 == 1 {
            let delete = DeleteRange { key: key(number), ..DeleteRange::default() };
            assert!(store.apply(&Command::DeleteRange(delete)).outcome.is_ok());
        }
    }
    let delete = DeleteRange { key: key(1), range_end: key(2 * LIVE - 4), prev_kv: true };
    let delete = Command::DeleteRange(delete);
    let (held, _) = weigh(&store, &delete, Wanted { answers: false, prev_bytes: 0 });
    let scanned = held.scanned.load(Ordering::Relaxed);
    assert!(scanned < 1_200_000, "{scanned} bytes of {} at once", LIVE * 2_000);
    let applied = store.apply(&delete);
    let Ok(Response::DeleteRange(answer)) = applied.outcome else { panic!("{applied:?}") };
    let expected: Vec<Bytes> = (2..2 * LIVE - 4).step_by(2).map(key).collect();
    let deleted: Vec<Bytes> = applied.events.iter().map(|event| event.kv.key.clone()).collect();
    assert_eq!(deleted, expected);
    let prev_kvs: Vec<Bytes> = answer.prev_kvs.into_iter().map(|kv| kv.key).collect();
    assert_eq!(prev_kvs, expected);
    assert_eq!(store.head().key_count, 3);
}
