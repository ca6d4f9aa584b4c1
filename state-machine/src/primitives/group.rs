//! Groups: the leased children of a name.
//!
//! All requests by which a session joined as the same member share its key, as candidacies do; it
//! is deleted with the last of them.

use bytes::Bytes;

use crate::change::{Before, Change};
use crate::command::Once;
use crate::locks::attempt::{self, SHARED_MAX};
use crate::outcome::Stop;
use crate::read::Read;
use crate::response::{PrimitiveResponse, Rejection};
use crate::rows::place::Attempt;

fn key(name: &[u8], member: &[u8]) -> Bytes {
    Bytes::from([name, b"/", member].concat())
}

/// `of` is the request of the session that joined, 0 for this one. A request that only changes the
/// value does not join: its membership may have ended meanwhile.
pub(super) fn join<R: Read>(
    change: &mut Change<'_, '_, R>,
    (name, member): (&Bytes, &Bytes),
    value: &Bytes,
    (once, of): (Once, u64),
) -> Result<PrimitiveResponse, Stop> {
    let key = key(name, member);
    let before = Before::load(change.rows, &key)?;
    let known = before.kv.as_ref().map(|kv| (kv.lease, kv.create_revision));
    if known.is_some_and(|(lease, _)| lease != once.session) {
        return Err(Rejection::Refused("another session has the member").into());
    }
    let request = attempt::id(if of == 0 { once.sequence } else { of });
    let sharing = match known {
        Some((_, fence)) => attempt::all(change.rows, &key, fence)?,
        None => Vec::new(),
    };
    let is_known = sharing.iter().any(|known| known.request == request);
    if !is_known && of != 0 {
        return Err(Rejection::Refused("the membership has ended").into());
    }
    if !is_known && sharing.len() >= SHARED_MAX {
        return Err(Rejection::Refused("the session has the member too many times").into());
    }
    change.put(&key, before, value, once.session)?;
    let revision = change.head.revision;
    let number = known.map_or(revision, |(_, fence)| fence);
    attempt::set(change.rows, (&key, number), Attempt { request, ..Attempt::default() })?;
    Ok(PrimitiveResponse { is_done: true, number, revision })
}

/// However late it arrives, it ends only the membership that it names, and no other of the same
/// session.
pub(super) fn part<R: Read>(
    change: &mut Change<'_, '_, R>,
    (name, member): (&Bytes, &Bytes),
    once: Once,
) -> Result<PrimitiveResponse, Stop> {
    let key = key(name, member);
    let before = Before::load(change.rows, &key)?;
    let Some(kv) = before.kv.as_ref().filter(|kv| kv.lease == once.session) else {
        return Ok(PrimitiveResponse::default());
    };
    let number = kv.create_revision;
    let mut sharing = attempt::all(change.rows, &key, number)?;
    // A key that was attached to its lease after its creation has no such row.
    if once.undoes != 0 && !sharing.is_empty() {
        let own = attempt::id(once.undoes);
        let known = sharing.len();
        sharing.retain(|sharing| sharing.request != own);
        if sharing.len() == known {
            return Ok(PrimitiveResponse::default());
        }
        if !sharing.is_empty() {
            attempt::set_all(change.rows, &key, number, &sharing)?;
            let revision = change.head.revision;
            return Ok(PrimitiveResponse { is_done: true, number, revision });
        }
    }
    change.delete(&key, before)?;
    Ok(PrimitiveResponse { is_done: true, number, revision: change.head.revision })
}
