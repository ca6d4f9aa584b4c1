//! Counters, latches, barriers and groups: small rules on ordinary keys, one revision each.
//!
//! | module | what | keys |
//! |---|---|---|
//! | [`number`] | counters and latches | `name`: decimal text |
//! | `barrier` | barriers | `name`, while it is raised |
//! | [`rendezvous`] | double barriers | `name`: the count, and who is in; `name/x`: a participant |
//! | `group` | groups | `name/member` |
//! | `once` | the unsettled requests of a session, with their answers | |
//! | [`check`] | validity checks of commands | |
//!
//! Participants and members are attached to a session and end with it, like places of locks. A
//! request that is repeated gets the answer of its first arrival, so a client may always retry.

pub(crate) mod barrier;
pub mod check;
pub(crate) mod group;
pub mod number;
pub(crate) mod once;
pub mod rendezvous;

use crate::change::Change;
use crate::command::{Action, Primitive};
use crate::events::Events;
use crate::head::Head;
use crate::outcome::Stop;
use crate::overlay::Overlay;
use crate::read::Read;
use crate::response::PrimitiveResponse;

/// Carries out a command that changes a counter, latch, barrier or group.
pub(crate) fn apply<R: Read>(
    rows: &mut Overlay<'_, R>,
    head: &mut Head,
    events: &mut Events,
    command: &Primitive,
) -> Result<PrimitiveResponse, Stop> {
    check::command(command)?;
    if matches!(command.action, Action::Enter { .. })
        && let Some(answer) = rendezvous::standing(rows, &command.name, command.once)?
    {
        return Ok(answer);
    }
    let kind = once::Kind::of(&command.action);
    let session = match once::find(rows, command.once, kind)? {
        once::Standing::Known(answer) => return Ok(answer),
        once::Standing::New(session) => session,
    };
    // A request that undoes another affects only what that one did, not what others did.
    let undone = session.as_ref().and_then(|session| session.answer(command.once.undoes));
    let answer = act(&mut Change::begin(rows, head, events)?, command, undone)?;
    if let Some(session) = session {
        once::remember(rows, session, (command.once, kind), answer);
    }
    Ok(answer)
}

/// Carries out the action. Nothing is written before all checks that may reject it.
fn act<R: Read>(
    change: &mut Change<'_, '_, R>,
    command: &Primitive,
    undone: Option<PrimitiveResponse>,
) -> Result<PrimitiveResponse, Stop> {
    let Primitive { once, name, action } = command;
    match action {
        Action::Add(delta) => number::add(change, name, *delta),
        Action::Set { value, condition } => number::set(change, name, *value, *condition),
        Action::Create(count) => number::create(change, name, *count),
        Action::CountDown(by) => number::count_down(change, name, *by),
        Action::Raise { note, is_bound } => {
            let lease = if *is_bound { once.session } else { 0 };
            barrier::raise(change, name, note, lease)
        }
        Action::Lift(0) if once.undoes > 0 => match undone.filter(|raised| raised.is_done) {
            Some(raised) => barrier::lift(change, name, raised.number),
            None => Ok(PrimitiveResponse::default()),
        },
        Action::Lift(fence) => barrier::lift(change, name, *fence),
        Action::Enter { count, note } => rendezvous::enter(change, (name, *once), *count, note),
        Action::Exit { is_only_waiting } => {
            rendezvous::exit(change, (name, *once), *is_only_waiting)
        }
        Action::Join { member, value, of } => {
            group::join(change, (name, member), value, (*once, *of))
        }
        Action::Part { member } => group::part(change, (name, member), *once),
    }
}
