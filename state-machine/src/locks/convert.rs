//! Convert: a holder continues with a smaller share, or with a larger one if it is the only holder,
//! without releasing the lock.
//!
//! A holder with a larger share begins something that supersedes what others did before, so nobody
//! that held meanwhile may have a larger fence. If one did, the place is created again at the end
//! of the queue, which is possible only if nobody waits.

use bytes::Bytes;

use super::acquire::{put, renew};
use super::claim::Claim;
use super::front;
use super::queue::{self, NEWEST};
use crate::change::Change;
use crate::command::LockConvert;
use crate::outcome::Stop;
use crate::primitives::once::{self, Kind, Standing};
use crate::read::Read;
use crate::response::{LockResponse, LockState, PrimitiveResponse, Rejection, Taken};

pub(super) fn apply<R: Read>(
    change: &mut Change<'_, '_, R>,
    convert: &LockConvert,
) -> Result<LockResponse, Stop> {
    let LockConvert { name, session, request_id, once, .. } = convert;
    let session = match once::find(change.rows, *once, Kind::Convert)? {
        // A known request is only answered, because a late copy must not undo a later conversion.
        // It is not done if it was abandoned before it arrived.
        Standing::Known(answer) if !answer.is_done => return Err(Rejection::LockNotHeld.into()),
        Standing::Known(answer) => {
            let place = queue::place_of(change.rows, name, *session, request_id)?;
            let key = place.ok_or(Rejection::LockNotHeld)?.key;
            return Ok(held(name, key, answer.number));
        }
        Standing::New(session) => session,
    };
    let (key, fence) = carry_out(change, convert)?;
    if let Some(session) = session {
        let revision = change.head.revision;
        let answer = PrimitiveResponse { is_done: true, number: fence, revision };
        once::remember(change.rows, session, (*once, Kind::Convert), answer);
    }
    Ok(held(name, key, fence))
}

fn held(name: &Bytes, key: Bytes, fence: i64) -> LockResponse {
    let taken = vec![Taken { name: Bytes::clone(name), key, fence }];
    LockResponse::Places { state: LockState::Held, taken }
}

/// Returns the key of the place, and its fence from now on.
fn carry_out<R: Read>(
    change: &mut Change<'_, '_, R>,
    convert: &LockConvert,
) -> Result<(Bytes, i64), Stop> {
    let LockConvert { name, session, request_id, permits, limit, .. } = convert;
    let place = queue::place_of(change.rows, name, *session, request_id)?;
    let place = place.ok_or(Rejection::LockNotHeld)?;
    let holders = queue::holders(change.rows, NEWEST, name)?;
    if !holders.iter().any(|holder| holder.key == place.key) {
        return Err(Rejection::LockNotHeld.into());
    }
    // An etcd client may have overwritten the claim.
    let own = || Claim { requests: vec![Bytes::clone(request_id)], ..Claim::default() };
    let mut claim = place.claim.clone().unwrap_or_else(own);
    let is_less = *permits <= claim.permits && *limit >= claim.limit;
    if claim.requests.len() > 1 {
        // The other requests rely on the present share.
        let text =
            "the session has entered the lock more than once: release the other entries first";
        return Err(Rejection::Refused(text).into());
    }
    if !is_less && holders.len() > 1 {
        return Err(Rejection::LockShared.into());
    }
    (claim.permits, claim.limit) = (*permits, *limit);
    let fence = if is_less || !front::is_outrun(change.rows, name, place.fence)? {
        put(change, &place.key, &claim, *session)?;
        place.fence
    } else if queue::count(change.rows, name, 2)? == 1 {
        renew(change, &place, &claim.encode())?;
        change.head.revision
    } else {
        return Err(Rejection::Refused("others wait, and later holders had larger tokens").into());
    };
    Ok((place.key, fence))
}
