//! Requests that come again: a session remembers its answers until the client says that it needs them
//! no more.
//!
//! The client numbers its requests and sends with each of them the first number that it still waits
//! for. So what is kept is exactly what may still be asked for, nothing is forgotten too early, and
//! what arrives after it was given up is recognised by its number alone.

use crate::command::Once;
use crate::leases::{self, LeaseRow};
use crate::outcome::Stop;
use crate::overlay::Overlay;
use crate::read::Read;
use crate::response::{PrimitiveResponse, Rejection};

/// Requests of one session that are not settled.
const UNSETTLED_MAX: usize = 256;

/// Whether a request was here before.
pub(crate) enum Standing {
    /// It was, and was answered so.
    Known(PrimitiveResponse),
    /// It was not; the session that remembers it.
    New(Option<LeaseRow>),
}

pub(crate) fn find<R: Read>(rows: &R, once: Once) -> Result<Standing, Stop> {
    if once.session == 0 || once.sequence == 0 {
        return Ok(Standing::New(None));
    }
    let mut session = leases::lease(rows, once.session)?.ok_or(Rejection::LeaseNotFound)?;
    session.settle(once.settled);
    if once.sequence < session.settled {
        return Err(Rejection::Overtaken.into());
    }
    if let Some(answer) = session.answer(once.sequence) {
        return Ok(Standing::Known(answer));
    }
    // One more may come with what is taken back.
    if session.answered.len() >= UNSETTLED_MAX {
        return Err(Rejection::Refused("too many requests of the session are unsettled").into());
    }
    Ok(Standing::New(Some(session)))
}

pub(crate) fn remember<R: Read>(
    rows: &mut Overlay<'_, R>,
    mut session: LeaseRow,
    once: Once,
    answer: PrimitiveResponse,
) {
    session.answered.push((once.sequence, answer));
    if once.undoes >= session.settled.max(1) && session.answer(once.undoes).is_none() {
        // Should it still arrive, it has its answer already.
        session.answered.push((once.undoes, PrimitiveResponse::default()));
    }
    leases::write(rows, once.session, &session);
}
