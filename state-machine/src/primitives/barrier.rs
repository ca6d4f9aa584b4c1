//! Barriers: raised while the key of the name exists, whoever wrote it.

use bytes::Bytes;

use crate::change::{Before, Change};
use crate::outcome::Stop;
use crate::read::Read;
use crate::response::PrimitiveResponse;

pub(super) fn raise<R: Read>(
    change: &mut Change<'_, '_, R>,
    name: &Bytes,
    note: &Bytes,
    lease: i64,
) -> Result<PrimitiveResponse, Stop> {
    let before = Before::load(change.rows, name)?;
    if let Some(kv) = &before.kv {
        let (number, revision) = (kv.create_revision, kv.mod_revision);
        return Ok(PrimitiveResponse { is_done: false, number, revision });
    }
    change.put(name, before, note, lease)?;
    let revision = change.head.revision;
    Ok(PrimitiveResponse { is_done: true, number: revision, revision })
}

pub(super) fn lift<R: Read>(
    change: &mut Change<'_, '_, R>,
    name: &Bytes,
    fence: i64,
) -> Result<PrimitiveResponse, Stop> {
    let before = Before::load(change.rows, name)?;
    let found = before.kv.as_ref().map(|kv| kv.create_revision);
    match found {
        Some(found) if fence == 0 || found == fence => {
            change.delete(name, before)?;
            let revision = change.head.revision;
            Ok(PrimitiveResponse { is_done: true, number: found, revision })
        }
        Some(_) | None => Ok(PrimitiveResponse::default()),
    }
}
