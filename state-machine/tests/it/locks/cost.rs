//! How many rows a command looks at.

use std::cell::Cell;
use std::ops::ControlFlow;

use bytes::Bytes;
use conclave_state_machine::command::{
    Caller, Command, LockAcquire, LockCommand, LockRelease, SessionBegin,
};
use conclave_state_machine::machine::{Machine, Position};
use conclave_state_machine::memory::MemoryRows;
use conclave_state_machine::overlay::Overlay;
use conclave_state_machine::read::{Read, Table};
use conclave_state_machine::response::Halt;

use super::program::locked;
use crate::store::Store;

/// Rows of a store, and how many of them were looked at.
struct Counting<'a> {
    rows: &'a MemoryRows,
    looked_at: Cell<usize>,
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
        self.rows.scan(table, start, end, &mut |key, row| {
            self.count();
            visit(key, row)
        })
    }
}

/// How many rows a command looks at; it leaves no trace.
fn looked_at(store: &Store, command: &Command) -> usize {
    let counting = Counting { rows: &store.rows, looked_at: Cell::new(0) };
    let mut machine = Machine::load(&store.rows).expect("memory does not fail");
    let mut overlay = Overlay::new(&counting);
    let position = Position { term: 1, index: 0 };
    let applied = machine.apply(&mut overlay, position, &Caller::Inside, command);
    applied.expect("memory does not fail");
    counting.looked_at.get()
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
            attempt: 0,
        }))
    };
    // Some have come and gone since.
    for id in [3, 300, CROWD] {
        store.apply(&release(id, "r"));
    }
    for command in
        [acquire(3, "new"), acquire(9, "r"), acquire(9, "s"), release(9, "none"), release(9, "r")]
    {
        let rows = looked_at(&store, &command);
        assert!(rows < 150, "{rows} rows for {command:?}");
    }
    let mut writer = acquire(3, "writer");
    if let Command::Lock(LockCommand::Acquire(acquire)) = &mut writer {
        acquire.limit = 1;
    }
    store.apply(&writer);
    let rows = looked_at(&store, &acquire(300, "behind"));
    assert!(rows < 150, "{rows} rows behind a writer");
}
