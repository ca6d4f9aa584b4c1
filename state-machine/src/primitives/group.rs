//! Groups: the leased children of a name.

use bytes::Bytes;

use crate::change::{Before, Change};
use crate::outcome::Stop;
use crate::read::Read;
use crate::response::{PrimitiveResponse, Rejection};

fn key(name: &[u8], member: &[u8]) -> Bytes {
    Bytes::from([name, b"/", member].concat())
}

pub(super) fn join<R: Read>(
    change: &mut Change<'_, '_, R>,
    (name, member): (&Bytes, &Bytes),
    value: &Bytes,
    session: i64,
) -> Result<PrimitiveResponse, Stop> {
    let key = key(name, member);
    let before = Before::load(change.rows, &key)?;
    let known = before.kv.as_ref().map(|kv| (kv.lease, kv.create_revision));
    if known.is_some_and(|(lease, _)| lease != session) {
        return Err(Rejection::Refused("another session has the member").into());
    }
    change.put(&key, before, value, session)?;
    let revision = change.head.revision;
    let number = known.map_or(revision, |(_, fence)| fence);
    Ok(PrimitiveResponse { is_done: true, number, revision })
}

pub(super) fn part<R: Read>(
    change: &mut Change<'_, '_, R>,
    (name, member): (&Bytes, &Bytes),
    session: i64,
) -> Result<PrimitiveResponse, Stop> {
    let key = key(name, member);
    let before = Before::load(change.rows, &key)?;
    let Some(kv) = before.kv.as_ref().filter(|kv| kv.lease == session) else {
        return Ok(PrimitiveResponse::default());
    };
    let number = kv.create_revision;
    change.delete(&key, before)?;
    Ok(PrimitiveResponse { is_done: true, number, revision: change.head.revision })
}
