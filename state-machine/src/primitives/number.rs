//! Counters and latches: a whole number as decimal text, in the key of the name.
//!
//! Any client may write such a key. A value that is not a number is rejected, not guessed at.

use bytes::Bytes;

use crate::change::{Before, Change};
use crate::command::Condition;
use crate::outcome::Stop;
use crate::read::Read;
use crate::response::{Halt, PrimitiveResponse, Rejection};

/// The rejection for a key that holds something else.
pub const NOT_A_NUMBER: Rejection = Rejection::Refused("the key holds no whole number");

/// Parses the number in a value.
#[must_use]
pub fn parse(value: &[u8]) -> Option<i64> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

pub(super) fn add<R: Read>(
    change: &mut Change<'_, '_, R>,
    name: &Bytes,
    delta: i64,
) -> Result<PrimitiveResponse, Stop> {
    let (before, number) = load(change, name)?;
    let sum = number.unwrap_or(0).checked_add(delta).ok_or(Rejection::Overflow)?;
    Ok(put(change, name, before, sum)?)
}

pub(super) fn set<R: Read>(
    change: &mut Change<'_, '_, R>,
    name: &Bytes,
    value: i64,
    condition: Condition,
) -> Result<PrimitiveResponse, Stop> {
    // Any value may be replaced, but only a number can be compared.
    let before = Before::load(change.rows, name)?;
    let revision = before.kv.as_ref().map_or(0, |kv| kv.mod_revision);
    let holds = match condition {
        Condition::None => true,
        Condition::Value(wanted) => number_of(&before)?.unwrap_or(0) == wanted,
        Condition::Revision(wanted) => revision == wanted,
    };
    if holds {
        return Ok(put(change, name, before, value)?);
    }
    let number = number_of(&before)?.unwrap_or(0);
    Ok(PrimitiveResponse { is_done: false, number, revision })
}

pub(super) fn create<R: Read>(
    change: &mut Change<'_, '_, R>,
    name: &Bytes,
    count: i64,
) -> Result<PrimitiveResponse, Stop> {
    let (before, number) = load(change, name)?;
    match number {
        Some(number) => Ok(unchanged(&before, number)),
        None => Ok(put(change, name, before, count)?),
    }
}

pub(super) fn count_down<R: Read>(
    change: &mut Change<'_, '_, R>,
    name: &Bytes,
    by: i64,
) -> Result<PrimitiveResponse, Stop> {
    let (before, number) = load(change, name)?;
    match number {
        None => Err(Rejection::NoLatch.into()),
        Some(number) if number <= 0 => Ok(unchanged(&before, number)),
        Some(number) => Ok(put(change, name, before, number.saturating_sub(by).max(0))?),
    }
}

fn load<R: Read>(change: &Change<'_, '_, R>, name: &Bytes) -> Result<(Before, Option<i64>), Stop> {
    let before = Before::load(change.rows, name)?;
    let number = number_of(&before)?;
    Ok((before, number))
}

fn number_of(before: &Before) -> Result<Option<i64>, Rejection> {
    before.kv.as_ref().map(|kv| parse(&kv.value).ok_or(NOT_A_NUMBER)).transpose()
}

fn unchanged(before: &Before, number: i64) -> PrimitiveResponse {
    let revision = before.kv.as_ref().map_or(0, |kv| kv.mod_revision);
    PrimitiveResponse { is_done: false, number, revision }
}

/// The key keeps its lease, if it has one.
fn put<R: Read>(
    change: &mut Change<'_, '_, R>,
    name: &Bytes,
    before: Before,
    number: i64,
) -> Result<PrimitiveResponse, Halt> {
    let lease = before.kv.as_ref().map_or(0, |kv| kv.lease);
    change.put(name, before, &Bytes::from(number.to_string()), lease)?;
    Ok(PrimitiveResponse { is_done: true, number, revision: change.head.revision })
}
