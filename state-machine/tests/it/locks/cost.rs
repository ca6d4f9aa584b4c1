//! How many rows a command looks at.

use std::cell::Cell;
use std::ops::ControlFlow;

use bytes::Bytes;
use conclave_state_machine::command::{
    Caller, Command, DeleteRange, LeaseGrant, LeaseRevoke, LockAcquire, LockCommand, LockRelease,
    Put, SessionBegin, Txn, TxnOp,
};
use conclave_state_machine::locks::queue;
use conclave_state_machine::machine::{Machine, Position};
use conclave_state_machine::memory::MemoryRows;
use conclave_state_machine::overlay::Overlay;
use conclave_state_machine::read::{Read, Table};
use conclave_state_machine::response::Halt;

use super::places;
use super::program::{NAMES, locked, recipe};
use crate::store::Store;

/// Rows of a store, how many of them were looked at, and how often it was searched for places.
struct Counting<'a> {
    rows: &'a MemoryRows,
    looked_at: Cell<usize>,
    searches: Cell<usize>,
}

impl Counting<'_> {
    fn count(&self) {
        self.looked_at.set(self.looked_at.get() + 1);
    }
}

impl Read for Counting<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, Halt> {
        self.count();
        self.rows.get(table, key)
    }

    fn scan(
        &self,
        table: Table,
        start: &[u8],
        end: Option<&[u8]>,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>, Halt>,
    ) -> Result<(), Halt> {
        if table == Table::Place {
            self.searches.set(self.searches.get() + 1);
        }
        self.rows.scan(table, start, end, &mut |key, row| {
            self.count();
            visit(key, row)
        })
    }
}

/// How many rows a command looks at, and how often it searches for places; it leaves no trace.
fn cost(store: &Store, command: &Command) -> (usize, usize) {
    let counting = Counting { rows: &store.rows, looked_at: Cell::new(0), searches: Cell::new(0) };
    let mut machine = Machine::load(&store.rows).expect("memory does not fail");
    let mut overlay = Overlay::new(&counting);
    let position = Position { term: 1, ..Position::default() };
    let applied = machine.apply(&mut overlay, position, &Caller::Inside, command);
    applied.expect("memory does not fail");
    (counting.looked_at.get(), counting.searches.get())
}

/// As etcd's recipe locks and unlocks.
fn recipe_of(session: i64) -> [Command; 2] {
    let key = queue::key(NAMES[0].as_bytes(), session);
    let unlock = DeleteRange { key: key.clone(), ..DeleteRange::default() };
    [Command::Txn(recipe(key, session)), Command::DeleteRange(unlock)]
}

#[test]
fn only_who_leaves_others_behind_searches_for_the_next() {
    let mut store = Store::new();
    for id in 1..=3 {
        store.apply(&Command::LeaseGrant(LeaseGrant { id, ttl: 60 }));
    }
    let [[lock_1, unlock_1], [lock_2, unlock_2], [lock_3, unlock_3]] = [1, 2, 3].map(recipe_of);
    let searches = |store: &Store, command: &Command| cost(store, command).1;
    store.apply(&lock_1);
    assert_eq!(searches(&store, &unlock_1), 0, "nobody else came");
    store.apply(&lock_2);
    store.apply(&lock_3);
    assert_eq!(searches(&store, &unlock_2), 0, "the first stays");
    assert_eq!(searches(&store, &unlock_1), 1);
    store.apply(&unlock_1);
    assert_eq!(searches(&store, &unlock_2), 1);
    store.apply(&unlock_2);
    assert_eq!(searches(&store, &unlock_3), 0, "all others went");
    // What the key says changes nothing.
    let key = queue::key(NAMES[0].as_bytes(), 3);
    store.apply(&Command::Put(Put { key, lease: 3, ..Put::default() }));
    assert_eq!(searches(&store, &unlock_3), 0);
}

#[test]
fn a_key_as_old_as_the_only_place_does_not_take_it_along() {
    let mut store = Store::new();
    for id in 1..=2 {
        store.apply(&Command::LeaseGrant(LeaseGrant { id, ttl: 60 }));
    }
    let [own, late] = [queue::key(b"a", 1), Bytes::from_static(b"a/late")];
    let put = |key: &Bytes, lease| Put { key: key.clone(), lease, ..Put::default() };
    let success = vec![TxnOp::Put(put(&own, 1)), TxnOp::Put(put(&late, 0))];
    store.apply(&Command::Txn(Txn { compare: Vec::new(), success, failure: Vec::new() }));
    store.apply(&Command::Put(put(&late, 2)));
    store.apply(&Command::LeaseRevoke(LeaseRevoke { id: 2 }));
    assert_eq!(places(&store, "a").len(), 1);
    store.apply(&Command::LeaseRevoke(LeaseRevoke { id: 1 }));
    assert_eq!(store.rows.rows(Table::Place).count(), 0);
}

#[test]
fn what_is_asked_of_a_crowd_does_not_cost_its_size() {
    const CROWD: i64 = 600;
    let mut store = Store::new();
    let acquire = |session: i64, request: &str| {
        Command::Lock(LockCommand::Acquire(LockAcquire {
            names: locked(&[0, 1, 2]),
            session,
            request_id: Bytes::from(request.to_owned()),
            permits: 1,
            limit: u32::MAX,
            can_wait: true,
            ..LockAcquire::default()
        }))
    };
    for id in 1..=CROWD {
        let request_id = Bytes::from(format!("begin-{id}"));
        let begin = SessionBegin { id, ttl: 60, request_id, ..SessionBegin::default() };
        store.apply(&Command::SessionBegin(begin));
        store.apply(&acquire(id, "r"));
    }
    let release = |session: i64, request: &'static str| {
        Command::Lock(LockCommand::Release(LockRelease {
            names: locked(&[0, 1, 2]),
            session,
            request_id: request.into(),
            ..LockRelease::default()
        }))
    };
    // Some have come and gone since.
    for id in [3, 300, CROWD] {
        store.apply(&release(id, "r"));
    }
    for command in
        [acquire(3, "new"), acquire(9, "r"), acquire(9, "s"), release(9, "none"), release(9, "r")]
    {
        let (rows, _) = cost(&store, &command);
        assert!(rows < 150, "{rows} rows for {command:?}");
    }
    let mut writer = acquire(3, "writer");
    if let Command::Lock(LockCommand::Acquire(acquire)) = &mut writer {
        acquire.limit = 1;
    }
    store.apply(&writer);
    let (rows, _) = cost(&store, &acquire(300, "behind"));
    assert!(rows < 150, "{rows} rows behind a writer");
}
