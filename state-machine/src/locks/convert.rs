//! Convert: a holder goes on with less, or alone with more, without letting go.

use bytes::Bytes;

use super::acquire::put;
use super::queue::{self, NEWEST};
use crate::change::Change;
use crate::command::LockConvert;
use crate::outcome::Stop;
use crate::read::Read;
use crate::response::{LockResponse, LockState, Rejection, Taken};

pub(super) fn apply<R: Read>(
    change: &mut Change<'_, '_, R>,
    convert: &LockConvert,
) -> Result<LockResponse, Stop> {
    let LockConvert { name, session, request_id, permits, limit } = convert;
    let place = queue::place_of(change.rows, name, *session, request_id)?;
    let place = place.ok_or(Rejection::LockNotHeld)?;
    let holders = queue::holders(change.rows, NEWEST, name)?;
    if !holders.iter().any(|holder| holder.key == place.key) {
        return Err(Rejection::LockNotHeld.into());
    }
    let mut claim = place.claim.unwrap_or_default();
    let is_less = *permits <= claim.permits && *limit >= claim.limit;
    if !is_less && (holders.len() > 1 || claim.requests.len() > 1) {
        return Err(Rejection::LockShared.into());
    }
    (claim.permits, claim.limit) = (*permits, *limit);
    put(change, &place.key, &claim, *session)?;
    let taken = vec![Taken { name: Bytes::clone(name), key: place.key, fence: place.fence }];
    Ok(LockResponse::Places { state: LockState::Held, taken })
}
