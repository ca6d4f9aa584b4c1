//! Writers, of which few are remembered, on a network that loses, repeats and reorders requests.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::change::Before;
use crate::command::{GuardedTxn, Put, Txn, TxnOp};
use crate::memory::MemoryRows;
use crate::outcome::split;

/// Few enough that writers are forgotten all the time.
const FEW_WRITERS: u64 = 2;
const WRITERS: usize = 5;

/// State of one writer.
#[derive(Clone, Default)]
struct Client {
    last: u64,
    /// Unsettled writes by number, with the revision seen before they began.
    open: BTreeMap<u64, i64>,
    seen: i64,
}

/// An event of the simulation; numbers are taken modulo what exists.
#[derive(Clone, Debug)]
enum Step {
    /// A writer sends a new write.
    Begin(usize),
    /// A writer sends again a write whose answer it waits for.
    Repeat(usize, usize),
    /// A request arrives, perhaps not for the first time; its answer may be lost.
    Arrive { request: usize, is_lost: bool },
    /// A writer abandons a write.
    GiveUp(usize, usize),
    /// Another member continues from a copy of the rows, as after a snapshot.
    Install,
    /// Another client writes.
    Elsewhere,
}

fn step() -> impl Strategy<Value = Step> {
    let number = any::<prop::sample::Index>().prop_map(|index| index.index(1 << 20));
    prop_oneof![
        4 => (0..WRITERS).prop_map(Step::Begin),
        3 => (0..WRITERS, number.clone()).prop_map(|(who, which)| Step::Repeat(who, which)),
        9 => (number.clone(), any::<bool>())
            .prop_map(|(request, is_lost)| Step::Arrive { request, is_lost }),
        1 => (0..WRITERS, number).prop_map(|(who, which)| Step::GiveUp(who, which)),
        1 => Just(Step::Install),
        1 => Just(Step::Elsewhere),
    ]
}

#[derive(Default)]
struct World {
    rows: MemoryRows,
    clients: Vec<Client>,
    /// Everything that was ever sent may still arrive, any number of times.
    sent: Vec<(usize, WriteId)>,
    /// Revision of each write's first answer.
    done: BTreeMap<(usize, u64), i64>,
    acknowledged: Vec<(usize, u64)>,
    arrivals: BTreeMap<(usize, u64), u32>,
}

fn name(writer: usize) -> Bytes {
    Bytes::from(format!("{writer:016}"))
}

/// The key whose version counts how often a write took effect.
fn key(writer: usize, sequence: u64) -> Bytes {
    Bytes::from(format!("{writer}/{sequence}"))
}

impl World {
    fn new() -> World {
        let clients = vec![Client::default(); WRITERS];
        World { clients, ..World::default() }
    }

    fn send(&mut self, writer: usize, sequence: u64) {
        let client = &self.clients[writer];
        let settled = client.open.keys().next().copied().unwrap_or(sequence);
        let since = client.open[&sequence];
        let id = WriteId { writer: name(writer), sequence, settled, since };
        self.sent.push((writer, id));
    }

    fn take(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match step {
            Step::Begin(writer) => {
                let client = &mut self.clients[*writer];
                let first = client.open.keys().next().copied();
                client.last += 1;
                if first.is_some_and(|first| client.last - first >= WINDOW) {
                    client.last -= 1;
                    return Ok(());
                }
                client.open.insert(client.last, client.seen);
                self.send(*writer, self.clients[*writer].last);
            }
            Step::Repeat(writer, which) => {
                let open = &self.clients[*writer].open;
                let Some(place) = which.checked_rem(open.len()) else { return Ok(()) };
                let sequence = *open.keys().nth(place).expect("it is there");
                self.send(*writer, sequence);
            }
            Step::Arrive { request, is_lost } => {
                let Some(place) = request.checked_rem(self.sent.len()) else { return Ok(()) };
                // Later requests are chosen more often.
                let place = self.sent.len() - 1 - place / 3;
                let (writer, id) = self.sent[place].clone();
                self.arrive(writer, &id, *is_lost)?;
            }
            Step::GiveUp(writer, which) => {
                let open = &mut self.clients[*writer].open;
                if let Some(place) = which.checked_rem(open.len()) {
                    let sequence = *open.keys().nth(place).expect("it is there");
                    open.remove(&sequence);
                }
            }
            Step::Install => {
                let mut copy = MemoryRows::default();
                for table in Table::ALL {
                    let rows = self.rows.rows(table);
                    let rows: Vec<_> =
                        rows.map(|(k, v)| (table, k.clone(), Some(v.clone()))).collect();
                    copy.write(rows);
                }
                prop_assert_eq!(&copy, &self.rows);
                self.rows = copy;
            }
            Step::Elsewhere => {
                let written = self.rows.update(|rows| {
                    let (mut head, mut events) = (Head::load(rows)?, Events::default());
                    let key = Bytes::from_static(b"elsewhere");
                    let before = Before::load(rows, &key)?;
                    let mut change = Change::begin(rows, &mut head, &mut events)?;
                    change.put(&key, before, &key, 0)?;
                    head.write(rows);
                    Ok::<_, Halt>(())
                });
                written.expect("memory does not fail");
            }
        }
        Ok(())
    }

    fn arrive(&mut self, writer: usize, id: &WriteId, is_lost: bool) -> Result<(), TestCaseError> {
        let put = Put { key: key(writer, id.sequence), ..Put::default() };
        let txn = Txn { success: vec![TxnOp::Put(put)], ..Txn::default() };
        let guarded = GuardedTxn { guards: Vec::new(), txn };
        let write = Write { id: id.clone(), guarded };
        let answered = self.rows.update(|rows| {
            let (mut head, mut events) = (Head::load(rows)?, Events::default());
            let answer = apply_among(FEW_WRITERS, rows, &mut head, &mut events, &write);
            head.write(rows);
            split(answer)
        });
        let answered = answered.expect("memory does not fail");
        let at = (writer, id.sequence);
        let arrivals = self.arrivals.entry(at).or_insert(0);
        *arrivals += 1;
        let arrivals = *arrivals;
        match answered {
            Ok(WriteResponse { revision, answer: WriteAnswer::Done(_) }) => {
                let first = *self.done.entry(at).or_insert(revision);
                prop_assert_eq!(first, revision, "answered alike");
                self.hear(at, revision, is_lost);
            }
            Ok(WriteResponse { revision, answer: WriteAnswer::Forgotten }) => {
                prop_assert!(arrivals > 1 || self.version(at) == 0, "it was not here before");
                let client = &mut self.clients[writer];
                if !is_lost && client.open.remove(&id.sequence).is_some() {
                    client.seen = client.seen.max(revision);
                }
            }
            Ok(other) => prop_assert!(false, "{:?}", other),
            Err(rejection) => prop_assert_eq!(rejection, Rejection::Overtaken),
        }
        Ok(())
    }

    fn hear(&mut self, (writer, sequence): (usize, u64), revision: i64, is_lost: bool) {
        let client = &mut self.clients[writer];
        if !is_lost && client.open.remove(&sequence).is_some() {
            client.seen = client.seen.max(revision);
            self.acknowledged.push((writer, sequence));
        }
    }

    fn version(&self, (writer, sequence): (usize, u64)) -> i64 {
        let before = Before::load(&self.rows, &key(writer, sequence));
        let before = before.expect("memory does not fail");
        before.kv.map_or(0, |kv| kv.version)
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let writers = || self.rows.rows(Table::Writer);
        let count = |first: u8| writers().filter(|(key, _)| key[0] == first).count() as u64;
        prop_assert!(count(b'w') <= FEW_WRITERS);
        prop_assert_eq!(count(b'w'), count(TURN));
        prop_assert_eq!(count(b'w'), super::count(&self.rows).unwrap().writers);
        for (key, row) in writers().filter(|(key, _)| key[0] == b'w') {
            let row = WriterRow::decode(row).unwrap();
            prop_assert!(row.answered.len() as u64 <= WINDOW, "{:?}", key);
        }
        for (writer, client) in self.clients.iter().enumerate() {
            for sequence in 1..=client.last {
                let version = self.version((writer, sequence));
                prop_assert!(version <= 1, "{}/{} took effect twice", writer, sequence);
            }
        }
        for at in &self.acknowledged {
            prop_assert_eq!(self.version(*at), 1, "{:?} was acknowledged", at);
        }
        Ok(())
    }
}

proptest! {
    #[test]
    fn a_write_takes_effect_once_however_it_is_sent(
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mut world = World::new();
        for step in &steps {
            world.take(step)?;
        }
        world.check()?;
    }
}

#[test]
fn the_writer_that_was_silent_longest_is_forgotten() {
    let mut world = World::new();
    // 0 and 1 enter, 0 writes again; then 2 enters, so that 1 is forgotten.
    for writer in [0, 1, 0, 2] {
        world.take(&Step::Begin(writer)).unwrap();
        world.take(&Step::Arrive { request: 0, is_lost: false }).unwrap();
    }
    let is_known = |writer| super::writer(&world.rows, &name(writer)).unwrap().is_some();
    assert_eq!([0, 1, 2].map(is_known), [true, false, true]);
    world.check().unwrap();
}
