//! Hand-over: a leader resigns, and the candidate of its choice comes next.
//!
//! Whoever stands between the two goes behind: their keys are deleted and written anew, so that their
//! fences grow. The leader goes last, so that nobody in between leads even for a revision. Native candidates see that; a client that runs etcd's recipe would not, and
//! would take itself for the leader one day, so that nobody goes past one. Nor would a lock.
//!
//! Candidacies of one session share its place, and lead together: one of them does not give away what is the others', too.

use std::ops::ControlFlow;

use super::acquire::renew;
use super::attempt;
use super::queue::{self, NEWEST, Place};
use crate::change::{Before, Change};
use crate::command::HandOver;
use crate::events::Events;
use crate::head::Head;
use crate::outcome::Stop;
use crate::overlay::Overlay;
use crate::read::Read;
use crate::response::{LockResponse, Rejection, Taken};

/// Candidates that one hand-over goes past.
const PASSED_MAX: usize = 64;

pub(super) fn apply<R: Read>(
    rows: &mut Overlay<'_, R>,
    head: &mut Head,
    events: &mut Events,
    command: &HandOver,
) -> Result<LockResponse, Stop> {
    let HandOver { name, session, fence, to } = command;
    let mut places: Vec<Place> = Vec::new();
    let mut is_found = false;
    queue::visit(rows, NEWEST, name, &mut |place| {
        is_found = place.key == *to;
        places.push(place);
        let is_enough = is_found || places.len() > PASSED_MAX;
        if is_enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    let leads = |place: &Place| place.fence == *fence && place.session == *session;
    if !places.first().is_some_and(leads) {
        return Err(Rejection::LockNotHeld.into());
    }
    let ([leader, passed @ .., target], true) = (places.as_slice(), is_found) else {
        return Err(Rejection::InvalidLock("no such candidate, or too far behind").into());
    };
    if places.iter().any(|place| place.claim.is_some()) {
        return Err(Rejection::InvalidLock("the place of a lock is no candidate").into());
    }
    if attempt::all(rows, &leader.key, leader.fence)?.len() > 1 {
        return Err(Rejection::Refused("another candidacy of the session leads, too").into());
    }
    for place in passed {
        if attempt::all(rows, &place.key, place.fence)?.is_empty() {
            return Err(Rejection::InvalidLock("a candidate in between is none of ours").into());
        }
    }
    for place in passed {
        // Each in a revision of its own, so that no two have the same fence.
        let mut change = Change::begin(rows, head, events)?;
        renew(&mut change, place, &place.value)?;
    }
    let mut change = Change::begin(rows, head, events)?;
    let before = Before::load(change.rows, &leader.key)?;
    change.delete(&leader.key, before)?;
    let (key, fence) = (target.key.clone(), target.fence);
    Ok(LockResponse::HandedOver(Taken { name: name.clone(), key, fence }))
}
