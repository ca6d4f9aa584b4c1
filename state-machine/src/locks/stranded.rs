//! Finds requests whose streams were on a member that is gone, so that nobody ends them.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use bytes::Bytes;

use super::attempt;
use super::queue::{self, NEWEST};
use crate::read::{Read, Table};
use crate::response::Halt;
use crate::rows::place;

/// Most requests that one call lists; names of the last one may be missing.
pub const STRANDED_MAX: usize = 10_000;

/// A request whose last stream is gone: for locks of which not all were granted, or for a candidacy
/// without a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stranded {
    /// Names, ascending.
    pub names: Vec<Bytes>,
    /// Session of the places.
    pub session: i64,
    /// Id of a request for locks; empty for a candidacy.
    pub request_id: Bytes,
    /// The stream that is gone.
    pub stream: u64,
    /// Number of a request for locks; 0 for none.
    pub number: u64,
}

/// What was found about one request.
struct Found {
    stranded: Stranded,
    is_left: bool,
}

/// Lists the requests whose last stream `is_gone`, except those that hold all their locks: their
/// client may have been told. Reads all places of the store, so call it where blocking is allowed.
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

/// Adds a place to its request. Returns whether the request becomes stranded by it.
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
        // A candidacy without a number ends with its stream, even while it leads; one with a number
        // does not.
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
