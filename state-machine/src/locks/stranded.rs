//! What streams left behind that nobody ends any more, because their member is gone.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use bytes::Bytes;

use super::attempt;
use super::queue::{self, NEWEST};
use crate::read::{Read, Table};
use crate::response::Halt;
use crate::rows::place;

/// Requests that are listed at once; of the last one perhaps not all names.
pub const STRANDED_MAX: usize = 10_000;

/// A request that a stream asked for last: one for locks of which it was not granted all, or a candidacy without a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stranded {
    /// Names, ascending.
    pub names: Vec<Bytes>,
    /// Session of the places.
    pub session: i64,
    /// Of the locks; empty for a candidacy.
    pub request_id: Bytes,
    /// The stream.
    pub stream: u64,
    /// Number of the request for locks; 0 for none.
    pub number: u64,
}

/// What is found about one request.
struct Found {
    stranded: Stranded,
    is_left: bool,
}

/// Lists what streams asked for last that `is_gone` names, and have no use for: who holds all of its locks was told so, for all
/// that is known. Reads all places there are: call it where blocking is allowed.
///
/// # Errors
/// [`Halt`] if the storage fails or a row is damaged.
pub fn list<R: Read>(rows: &R, is_gone: &dyn Fn(u64) -> bool) -> Result<Vec<Stranded>, Halt> {
    let mut found: BTreeMap<(i64, Bytes, u64), Found> = BTreeMap::new();
    let mut left = 0_usize;
    rows.scan(Table::Place, &[], None, &mut |row_key, row| {
        let Some((fence, key)) = place::of_attempts(row_key, row)? else {
            return Ok(ControlFlow::Continue(()));
        };
        for known in place::decode_attempts(row)? {
            if known.stream != 0 && is_gone(known.stream) {
                let is_left = note(rows, &mut found, (&key, fence), known)?;
                left = left.saturating_add(is_left.into());
            }
        }
        Ok(if left >= STRANDED_MAX { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    Ok(found.into_values().filter(|found| found.is_left).map(|found| found.stranded).collect())
}

/// Takes in a place; whether a request is found by it that is left.
fn note<R: Read>(
    rows: &R,
    found: &mut BTreeMap<(i64, Bytes, u64), Found>,
    (key, fence): (&Bytes, i64),
    known: place::Attempt,
) -> Result<bool, Halt> {
    let Some(name) = queue::name_of(key) else { return Ok(false) };
    let Some(place) = queue::place_at(rows, key)?.filter(|place| place.fence == fence) else {
        return Ok(false);
    };
    let is_left = match &place.claim {
        Some(claim) if claim.is_for(&known.request) => !queue::holds(rows, NEWEST, name, fence)?,
        // A candidate lives with its stream, also while it leads; one with a number does not.
        None if known.request == attempt::id(0) => true,
        _ => return Ok(false),
    };
    let number = if known.request.is_empty() { 0 } else { known.number };
    let stranded = Stranded {
        names: Vec::new(),
        session: place.session,
        request_id: known.request.clone(),
        stream: known.stream,
        number,
    };
    let entry = found.entry((place.session, known.request, known.stream));
    let entry = entry.or_insert(Found { stranded, is_left: false });
    let is_new = is_left && !entry.is_left;
    entry.is_left |= is_left;
    entry.stranded.names.push(Bytes::copy_from_slice(name));
    entry.stranded.names.sort();
    entry.stranded.names.dedup();
    Ok(is_new)
}
