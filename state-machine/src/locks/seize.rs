//! Break: an operator takes places away.

use super::attempt;
use super::queue::{self, NEWEST};
use super::release::end;
use crate::change::{Before, Change};
use crate::command::LockBreak;
use crate::outcome::Stop;
use crate::read::Read;
use crate::response::{LockResponse, Taken};

use std::ops::ControlFlow;

pub(super) fn apply<R: Read>(
    change: &mut Change<'_, '_, R>,
    command: &LockBreak,
) -> Result<LockResponse, Stop> {
    let LockBreak { name, fence, by, reason } = command;
    let found = if *fence == 0 {
        queue::holders(change.rows, NEWEST, name)?
    } else {
        let mut found = Vec::new();
        queue::visit(change.rows, NEWEST, name, &mut |place| {
            if place.fence < *fence {
                return ControlFlow::Continue(());
            }
            found.extend((place.fence == *fence).then_some(place));
            ControlFlow::Break(())
        })?;
        found
    };
    let mut broken = Vec::new();
    for place in found {
        let known = attempt::all(change.rows, &place.key, place.fence)?;
        let before = Before::load(change.rows, &place.key)?;
        change.delete(&place.key, before)?;
        for request in place.claim.iter().flat_map(|claim| &claim.requests) {
            let number = known.iter().find(|known| known.request == request);
            end(change, place.session, request, number.map_or(0, |known| known.number))?;
        }
        broken.push(Taken { name: name.clone(), key: place.key, fence: place.fence });
    }
    Ok(LockResponse::Seized { places: broken, by: by.clone(), reason: reason.clone() })
}
