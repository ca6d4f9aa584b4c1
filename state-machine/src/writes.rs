//! Writes that come again: what a client may still ask for is remembered, so that each write takes effect
//! once and is answered alike each time.
//!
//! A writer numbers its writes and sends with each of them the first number that it still waits for, as the
//! requests of a session do. What is kept is bounded three ways: [`WINDOW`] numbers of a writer, the bytes of
//! an answer (a larger one is remembered as done), and [`WRITERS_MAX`] writers, of which one goes that has
//! been silent for long, by the order of the log.
//!
//! What was forgotten is never taken for new. With each write comes a revision that its writer had seen
//! before it sent the write for the first time, and so one before the write can have been carried out. The
//! memory knows the last revision at which anything was seen that it forgot (its *reach*): a write that it
//! does not know and that began later was certainly not carried out; for one that began before, nobody can
//! say, and it is not carried out.

use std::ops::ControlFlow;

use bytes::Bytes;

use crate::change::Change;
use crate::command::{Write, WriteId};
use crate::digest;
use crate::head::Head;
use crate::locks;
use crate::outcome::Stop;
use crate::overlay::Overlay;
use crate::read::{Read, Table};
use crate::response::{Event, Halt, Rejection, WriteAnswer, WriteResponse};
use crate::rows::writer::{
    COUNT_KEY, CountRow, TURN, TURNS_END, WriterRow, is_small, row_key, turn_key, turn_of,
};

/// Length of a writer's name.
pub const WRITER_BYTES: usize = 16;
/// Writes of one writer that may be unsettled.
pub const WINDOW: u64 = 32;
/// Writers that are remembered.
pub const WRITERS_MAX: u64 = 8_192;
/// Writers that are looked at to find one that has been silent for long.
const LOOKS_MAX: usize = 16;

/// Checks by what a write is recognised; the server does before it proposes.
///
/// # Errors
/// [`Rejection::InvalidLock`].
pub fn check(id: &WriteId) -> Result<(), Rejection> {
    let WriteId { writer, sequence, settled, since } = id;
    if writer.len() != WRITER_BYTES {
        return Err(Rejection::InvalidLock("a writer has a name of 16 bytes"));
    }
    let is_in_window = sequence.checked_sub(*settled).is_some_and(|ahead| ahead < WINDOW);
    if *settled == 0 || !is_in_window || *since < 0 {
        return Err(Rejection::InvalidLock("the number of the write is not among those unsettled"));
    }
    Ok(())
}

/// Carries a write out, or answers what it was answered before.
pub(crate) fn apply<R: Read>(
    rows: &mut Overlay<'_, R>,
    head: &mut Head,
    events: &mut Vec<Event>,
    write: &Write,
) -> Result<WriteResponse, Stop> {
    apply_among(WRITERS_MAX, rows, head, events, write)
}

fn apply_among<R: Read>(
    writers_max: u64,
    rows: &mut Overlay<'_, R>,
    head: &mut Head,
    events: &mut Vec<Event>,
    write: &Write,
) -> Result<WriteResponse, Stop> {
    check(&write.id)?;
    let before = head.revision;
    let (known, reach) = match writer(rows, &write.id.writer)? {
        Some(mut row) => {
            row.settled = row.settled.max(write.id.settled);
            let reach = row.reach;
            (Some(row), reach)
        }
        None => (None, count(rows)?.reach),
    };
    if let Some(row) = &known {
        if write.id.sequence < row.settled {
            return Err(Rejection::Overtaken.into());
        }
        if let Some((_, answer)) = row.answered.iter().find(|(n, _)| *n == write.id.sequence) {
            return Ok(answer.clone());
        }
    }
    if reach > 0 && write.id.since <= reach {
        return Ok(WriteResponse { revision: before, answer: WriteAnswer::Forgotten });
    }
    let done = locks::guarded_txn(&mut Change::begin(rows, head, events)?, &write.guarded)?;
    let answer = done.map_or(WriteAnswer::NotHeld, WriteAnswer::Done);
    let answer = WriteResponse { revision: head.revision, answer };
    let row = match known {
        Some(row) => row,
        None => enter(writers_max, rows, head.revision, &write.id)?,
    };
    remember(rows, &write.id, row, &answer);
    if head.revision > before {
        head.digest = digest::chain_write(head.digest, &write.id.writer, write.id.sequence);
    }
    Ok(answer)
}

fn writer<R: Read>(rows: &R, writer: &[u8]) -> Result<Option<WriterRow>, Halt> {
    let row = rows.get(Table::Writer, &row_key(writer))?;
    row.map(|row| WriterRow::decode(&row)).transpose()
}

fn count<R: Read>(rows: &R) -> Result<CountRow, Halt> {
    let row = rows.get(Table::Writer, COUNT_KEY)?;
    row.map_or(Ok(CountRow::default()), |row| CountRow::decode(&row))
}

fn remember<R: Read>(
    rows: &mut Overlay<'_, R>,
    id: &WriteId,
    mut row: WriterRow,
    answer: &WriteResponse,
) {
    let WriteResponse { revision, answer } = answer;
    let is_large = matches!(answer, WriteAnswer::Done(txn) if !is_small(txn));
    let kept = if is_large { WriteAnswer::Unkept } else { answer.clone() };
    row.seen = *revision;
    row.answered.retain(|(sequence, _)| *sequence >= row.settled);
    row.answered.push((id.sequence, WriteResponse { revision: *revision, answer: kept }));
    rows.put(Table::Writer, row_key(&id.writer), row.encode());
}

/// Makes room for a writer that is not known, and returns its row, which is yet to be written.
fn enter<R: Read>(
    writers_max: u64,
    rows: &mut Overlay<'_, R>,
    now: i64,
    id: &WriteId,
) -> Result<WriterRow, Halt> {
    let mut count = count(rows)?;
    // What was forgotten of it before it entered stays unknown.
    let reach = count.reach;
    if count.writers >= writers_max {
        count.reach = count.reach.max(forget_one(rows)?);
    } else {
        count.writers = count.writers.saturating_add(1);
    }
    rows.put(Table::Writer, Bytes::from_static(COUNT_KEY), count.encode());
    rows.put(Table::Writer, turn_key(now, &id.writer), Bytes::new());
    Ok(WriterRow { reach, settled: id.settled, ..WriterRow::default() })
}

/// Forgets a writer, and returns when it was last seen. Turns are in the order in which writers entered;
/// one that has written since then is put behind, and the first that has not goes. Of many that have, the
/// one that did so first.
fn forget_one<R: Read>(rows: &mut Overlay<'_, R>) -> Result<i64, Halt> {
    let mut turns = Vec::new();
    rows.scan(Table::Writer, &[TURN], Some(TURNS_END), &mut |key, _| {
        turns.push(turn_of(key)?);
        let is_enough = turns.len() >= LOOKS_MAX;
        Ok(if is_enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    let mut silent: Option<(i64, Bytes)> = None;
    for (turn, name) in turns {
        let seen = writer(rows, &name)?.map_or(turn, |row| row.seen);
        let is_first = silent.as_ref().is_none_or(|(other, _)| seen < *other);
        if seen > turn {
            rows.delete(Table::Writer, turn_key(turn, &name));
            rows.put(Table::Writer, turn_key(seen, &name), Bytes::new());
        }
        if is_first {
            silent = Some((seen, name));
        }
        if seen <= turn {
            break;
        }
    }
    let Some((seen, name)) = silent else { return Ok(0) };
    rows.delete(Table::Writer, turn_key(seen, &name));
    rows.delete(Table::Writer, row_key(&name));
    Ok(seen)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::change::Before;
    use crate::command::{GuardedTxn, Put, Txn, TxnOp};
    use crate::memory::MemoryRows;
    use crate::outcome::split;

    /// As few as it takes for writers to be forgotten all the time.
    const FEW_WRITERS: u64 = 2;
    const WRITERS: usize = 5;

    /// What one writer knows.
    #[derive(Clone, Default)]
    struct Client {
        last: u64,
        /// Unsettled writes, by number, with what was seen before they began.
        open: BTreeMap<u64, i64>,
        seen: i64,
    }

    /// What happens next; numbers are taken modulo what there is.
    #[derive(Clone, Debug)]
    enum Step {
        /// A writer begins a write, which is on its way then.
        Begin(usize),
        /// A writer sends a write again for whose answer it waits.
        Repeat(usize, usize),
        /// A request arrives, perhaps not for the first time; its answer may be lost.
        Arrive { request: usize, is_lost: bool },
        /// A writer gives a write up.
        GiveUp(usize, usize),
        /// Another takes the rows over, as after a snapshot was installed, and starts from them.
        Install,
        /// Somebody else writes.
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
        /// Whatever was ever sent may still arrive, any number of times.
        sent: Vec<(usize, WriteId)>,
        /// What was answered first.
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
                    // Later ones more often.
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
                        let (mut head, mut events) = (Head::load(rows)?, Vec::new());
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

        fn arrive(
            &mut self,
            writer: usize,
            id: &WriteId,
            is_lost: bool,
        ) -> Result<(), TestCaseError> {
            let put = Put { key: key(writer, id.sequence), ..Put::default() };
            let txn = Txn { success: vec![TxnOp::Put(put)], ..Txn::default() };
            let guarded = GuardedTxn { guards: Vec::new(), txn };
            let write = Write { id: id.clone(), guarded };
            let answered = self.rows.update(|rows| {
                let (mut head, mut events) = (Head::load(rows)?, Vec::new());
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
        // 0, 1, then 0 again; 2 makes 1 go.
        for writer in [0, 1, 0, 2] {
            world.take(&Step::Begin(writer)).unwrap();
            world.take(&Step::Arrive { request: 0, is_lost: false }).unwrap();
        }
        let is_known = |writer| super::writer(&world.rows, &name(writer)).unwrap().is_some();
        assert_eq!([0, 1, 2].map(is_known), [true, false, true]);
        world.check().unwrap();
    }
}
