//! Hand-over: a leader resigns, and the candidate of its choice comes next.
//!
//! The candidates between the two are moved behind: their keys are deleted and created again, which
//! gives them larger fences. The leader's key is deleted last, so that none of them leads even for
//! one revision. Native candidates notice the move. A client that runs etcd's recipe would not, and
//! would later take itself for the leader, so no such candidate is passed; nor is the place of a
//! lock.
//!
//! Candidacies of one session share its place and lead together, so one of them cannot hand it over
//! while there are others.

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

/// Most places before the candidate, the leader's included.
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
        // At a revision of its own, so that no two have the same fence.
        let mut change = Change::begin(rows, head, events)?;
        renew(&mut change, place, &place.value)?;
    }
    let mut change = Change::begin(rows, head, events)?;
    let before = Before::load(change.rows, &leader.key)?;
    change.delete(&leader.key, before)?;
    let (key, fence) = (target.key.clone(), target.fence);
    Ok(LockResponse::HandedOver(Taken { name: name.clone(), key, fence }))
}
