//! Which streams wait for a place: one for each of its requests.

use bytes::Bytes;

use super::queue::row;
use crate::overlay::Overlay;
use crate::read::{Read, Table};
use crate::response::Halt;
use crate::rows::place::{self, Attempt};

/// Most candidacies that share one place of an election.
pub(crate) const SHARED_MAX: usize = 64;

/// The id of a session's request in the row of its place. It is empty for a request without a
/// number, which ends with its stream.
pub(crate) fn id(sequence: u64) -> Bytes {
    if sequence == 0 { Bytes::new() } else { Bytes::copy_from_slice(&sequence.to_be_bytes()) }
}

/// Records that `attempt`'s stream waits for its request of a place, instead of any earlier stream.
pub(crate) fn set<R: Read>(
    rows: &mut Overlay<'_, R>,
    (key, fence): (&Bytes, i64),
    attempt: Attempt,
) -> Result<(), Halt> {
    let mut attempts = all(rows, key, fence)?;
    attempts.retain(|known| known.request != attempt.request);
    attempts.push(attempt);
    set_all(rows, key, fence, &attempts)
}

/// Records that nobody waits for a request of a place any more.
pub(crate) fn end<R: Read>(
    rows: &mut Overlay<'_, R>,
    (key, fence): (&Bytes, i64),
    request: &Bytes,
) -> Result<(), Halt> {
    let mut attempts = all(rows, key, fence)?;
    attempts.retain(|known| known.request != *request);
    set_all(rows, key, fence, &attempts)
}

/// Records which streams wait for a place. Does nothing if the key is not a place, which has no
/// row.
pub(crate) fn set_all<R: Read>(
    rows: &mut Overlay<'_, R>,
    key: &Bytes,
    fence: i64,
    attempts: &[Attempt],
) -> Result<(), Halt> {
    let Some((name, child)) = place::parent(key) else { return Ok(()) };
    let row_key = place::row_key(&place::prefix(name), fence, child);
    if rows.get(Table::Place, &row_key)?.is_some() {
        rows.put(Table::Place, row_key, place::encode_attempts(attempts));
    }
    Ok(())
}

/// Which streams wait for a place, one for each of its requests.
pub(crate) fn all<R: Read>(rows: &R, key: &Bytes, fence: i64) -> Result<Vec<Attempt>, Halt> {
    row(rows, key, fence)?.map_or(Ok(Vec::new()), |row| place::decode_attempts(&row))
}

/// The stream that waits for one of the requests of a place.
pub(crate) fn of_request<R: Read>(
    rows: &R,
    (key, fence): (&Bytes, i64),
    request: &[u8],
) -> Result<Attempt, Halt> {
    let attempts = all(rows, key, fence)?;
    Ok(attempts.into_iter().find(|known| known.request == request).unwrap_or_default())
}
