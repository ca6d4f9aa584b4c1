//! Remembers answered writes while their client may still retry them, so that each write takes
//! effect once and gets the same answer each time.
//!
//! A writer numbers its writes and sends with each of them the smallest number it still waits for,
//! as the requests of a session do. Three bounds limit what is kept: [`WINDOW`] numbers per writer;
//! the bytes of an answer (a larger one is only remembered as done); and [`WRITERS_MAX`] writers,
//! of which one that has been silent for long, in log order, is forgotten for a new one.
//!
//! A forgotten write is never taken for a new one. Each write carries a revision that its writer
//! had seen before it sent the write for the first time, hence from before the write can have been
//! carried out. The memory knows the last revision at which anything that it forgot was seen (its
//! *reach*). An unknown write that began later than that was certainly not carried out. For one
//! that began earlier nothing is certain, so it is not carried out.

#[cfg(test)]
mod tests;

use std::ops::ControlFlow;

use bytes::Bytes;

use crate::change::Change;
use crate::command::{Write, WriteId};
use crate::digest;
use crate::events::Events;
use crate::head::Head;
use crate::kv::txn;
use crate::locks;
use crate::outcome::Stop;
use crate::overlay::Overlay;
use crate::read::{Read, Table};
use crate::response::{Halt, Rejection, WriteAnswer, WriteResponse};
use crate::rows::writer::{
    COUNT_KEY, CountRow, TURN, TURNS_END, WriterRow, is_small, row_key, turn_key, turn_of,
};

/// Bytes of a writer's name.
pub const WRITER_BYTES: usize = 16;
/// Maximum number of unsettled writes of one writer.
pub const WINDOW: u64 = 32;
/// Maximum number of writers that are remembered.
pub const WRITERS_MAX: u64 = 8_192;
/// Most writers to look at to find one that has been silent for long.
const LOOKS_MAX: usize = 16;

/// Checks the id of a write; the server does so before it proposes.
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

/// Whether a write was answered, as far as that is remembered.
///
/// # Errors
/// [`Halt`] if the storage fails or a row is damaged.
pub fn is_answered<R: Read>(rows: &R, id: &WriteId) -> Result<bool, Halt> {
    let row = writer(rows, &id.writer)?;
    Ok(row.is_some_and(|row| row.answered.iter().any(|(number, _)| *number == id.sequence)))
}

/// Carries out a write, or returns the answer it was given before.
pub(crate) fn apply<R: Read>(
    rows: &mut Overlay<'_, R>,
    head: &mut Head,
    events: &mut Events,
    write: &Write,
) -> Result<WriteResponse, Stop> {
    apply_among(WRITERS_MAX, rows, head, events, write)
}

fn apply_among<R: Read>(
    writers_max: u64,
    rows: &mut Overlay<'_, R>,
    head: &mut Head,
    events: &mut Events,
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
    // What is remembered must not depend on whether a client waits.
    let is_kept = !txn::tells_spans(&write.guarded.txn);
    events.wanted.answers |= is_kept;
    let done = locks::guarded_txn(&mut Change::begin(rows, head, events)?, &write.guarded)?;
    let answer = done.map_or(WriteAnswer::NotHeld, WriteAnswer::Done);
    let answer = WriteResponse { revision: head.revision, answer };
    let kept = kept(&answer, is_kept);
    let row = match known {
        Some(row) => row,
        None => enter(writers_max, rows, head.revision, &write.id)?,
    };
    remember(rows, &write.id, row, kept);
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

/// The form of an answer that is remembered.
fn kept(answer: &WriteResponse, is_kept: bool) -> WriteResponse {
    match &answer.answer {
        WriteAnswer::Done(txn) if !is_kept || !is_small(txn) => {
            WriteResponse { revision: answer.revision, answer: WriteAnswer::Unkept }
        }
        WriteAnswer::Done(_)
        | WriteAnswer::NotHeld
        | WriteAnswer::Unkept
        | WriteAnswer::Forgotten => answer.clone(),
    }
}

fn remember<R: Read>(
    rows: &mut Overlay<'_, R>,
    id: &WriteId,
    mut row: WriterRow,
    answer: WriteResponse,
) {
    row.seen = answer.revision;
    row.answered.retain(|(sequence, _)| *sequence >= row.settled);
    row.answered.push((id.sequence, answer));
    rows.put(Table::Writer, row_key(&id.writer), row.encode());
}

/// Makes room for an unknown writer, and returns its row, which the caller must write.
fn enter<R: Read>(
    writers_max: u64,
    rows: &mut Overlay<'_, R>,
    now: i64,
    id: &WriteId,
) -> Result<WriterRow, Halt> {
    let mut count = count(rows)?;
    // Writes that it may have sent before it was forgotten stay unknown.
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

/// Forgets a writer, and returns the revision at which it was last seen. Turns are in the order in
/// which writers entered. A writer that has written since its turn is moved back; the first that
/// has not is forgotten. If all of the first [`LOOKS_MAX`] have written, the one that was silent
/// longest is forgotten.
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
