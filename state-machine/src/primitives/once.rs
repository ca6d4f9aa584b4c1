//! Retries of requests: a session remembers its answers until the client says that it no longer
//! needs them.
//!
//! The client numbers its requests and sends with each of them the smallest number it still waits
//! for. So exactly the answers that may still be asked for are kept, none is forgotten too early,
//! and a request that arrives after it was abandoned is recognised by its number alone.

use crate::command::{Action, Once};
use crate::leases::{self, Answered, LeaseRow};
use crate::outcome::Stop;
use crate::overlay::Overlay;
use crate::read::Read;
use crate::response::{PrimitiveResponse, Rejection};

/// Most unsettled requests of one session.
const UNSETTLED_MAX: usize = 256;

/// What a request asks for. The numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Add = 1,
    Set = 2,
    Create = 3,
    CountDown = 4,
    Raise = 5,
    Lift = 6,
    Enter = 7,
    Exit = 8,
    Join = 9,
    Part = 10,
    Release = 11,
    Leave = 12,
    Register = 13,
    Deregister = 14,
    Update = 15,
    Convert = 16,
    /// The places have the answers to these, so none are stored for them.
    Acquire = 17,
    Campaign = 18,
}

impl Kind {
    pub(crate) fn of(action: &Action) -> Kind {
        match action {
            Action::Add(_) => Kind::Add,
            Action::Set { .. } => Kind::Set,
            Action::Create(_) => Kind::Create,
            Action::CountDown(_) => Kind::CountDown,
            Action::Raise { .. } => Kind::Raise,
            Action::Lift(_) => Kind::Lift,
            Action::Enter { .. } => Kind::Enter,
            Action::Exit { .. } => Kind::Exit,
            Action::Join { .. } => Kind::Join,
            Action::Part { .. } => Kind::Part,
        }
    }

    /// Rejects a request whose number was used by a request of another kind, whose answer would say
    /// nothing about this one.
    pub(crate) fn check(self, session: &LeaseRow, number: u64) -> Result<(), Rejection> {
        let known = session.known(number).map_or(0, |known| known.kind);
        if known == 0 || known == self as u8 {
            return Ok(());
        }
        Err(Rejection::Refused("the number of the request was that of a request of another kind"))
    }
}

/// Whether a request was seen before.
pub(crate) enum Standing {
    /// It was, and this is its answer.
    Known(PrimitiveResponse),
    /// It was not. The session, if any, must remember the answer.
    New(Option<LeaseRow>),
}

pub(crate) fn find<R: Read>(rows: &R, once: Once, kind: Kind) -> Result<Standing, Stop> {
    if once.session == 0 || once.sequence == 0 {
        return Ok(Standing::New(None));
    }
    let mut session = leases::lease(rows, once.session)?.ok_or(Rejection::LeaseNotFound)?;
    session.settle(once.settled);
    if once.sequence < session.settled {
        return Err(Rejection::Overtaken.into());
    }
    kind.check(&session, once.sequence)?;
    if let Some(answer) = session.answer(once.sequence) {
        return Ok(Standing::Known(answer));
    }
    // `remember` may add one more for the request that is undone.
    if session.answered.len() >= UNSETTLED_MAX {
        return Err(Rejection::Refused("too many requests of the session are unsettled").into());
    }
    Ok(Standing::New(Some(session)))
}

pub(crate) fn remember<R: Read>(
    rows: &mut Overlay<'_, R>,
    mut session: LeaseRow,
    (once, kind): (Once, Kind),
    answer: PrimitiveResponse,
) {
    session.answered.push(Answered { number: once.sequence, kind: kind as u8, answer });
    if once.undoes >= session.settled.max(1) && session.answer(once.undoes).is_none() {
        // If the undone request still arrives, it is answered already and has no effect.
        session.answered.push(Answered { number: once.undoes, ..Answered::default() });
    }
    leases::write(rows, once.session, &session);
}
