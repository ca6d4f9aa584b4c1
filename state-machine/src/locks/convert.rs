//! Convert: a holder goes on with less, or alone with more, without letting go.
//!
//! Whoever goes on with more begins something that ends what others did before: nobody who held meanwhile may have a
//! larger fence. If somebody had, the place is written anew, at the end of the queue; so nobody may wait.

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
        // A late copy of an earlier one must not take back what was converted since.
        // It was given up before it came.
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

/// The key of the place, and its fence from now on.
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
    // An etcd client may have written over it.
    let own = || Claim { requests: vec![Bytes::clone(request_id)], ..Claim::default() };
    let mut claim = place.claim.clone().unwrap_or_else(own);
    let is_less = *permits <= claim.permits && *limit >= claim.limit;
    if claim.requests.len() > 1 {
        // They rely on what it is.
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
