//! Break: an operator removes places by force, and their sessions remember who did it and why.

use std::ops::ControlFlow;

use bytes::Bytes;

use super::queue::{self, NEWEST, Place};
use super::release::note_end;
use super::{attempt, delay};
use crate::change::{Before, Change};
use crate::command::LockBreak;
use crate::leases::{self, Broken};
use crate::outcome::Stop;
use crate::read::Read;
use crate::response::{Halt, LeaseChange, LockResponse, Taken};
use crate::rows::place::Attempt;

pub(super) fn apply<R: Read>(
    change: &mut Change<'_, '_, R>,
    command: &LockBreak,
    ended: &mut Vec<LeaseChange>,
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
        if place.is_lost() {
            // No session is behind it, and an operator who breaks the lock does not wait for its
            // delay.
            ended.extend(delay::end(change, &place)?);
        } else {
            remember(change, &place, &known, command)?;
        }
        broken.push(Taken { name: name.clone(), key: place.key, fence: place.fence });
    }
    Ok(LockResponse::Seized { places: broken, by: by.clone(), reason: reason.clone() })
}

/// Records in the place's session that its requests are over, and who broke the lock.
fn remember<R: Read>(
    change: &mut Change<'_, '_, R>,
    place: &Place,
    known: &[Attempt],
    command: &LockBreak,
) -> Result<(), Halt> {
    let requests: Vec<&Bytes> = place.claim.iter().flat_map(|claim| &claim.requests).collect();
    if requests.is_empty() && known.is_empty() {
        // No client of the native API is behind it that would ask.
        return Ok(());
    }
    let Some(mut lease) = leases::lease(change.rows, place.session)? else { return Ok(()) };
    for request in requests {
        let number = known.iter().find(|known| known.request == request);
        note_end(&mut lease, request, number.map_or(0, |known| known.number));
    }
    let (by, reason) = (command.by.clone(), command.reason.clone());
    lease.note_broken(Broken { key: place.key.clone(), fence: place.fence, by, reason });
    leases::write(change.rows, place.session, &lease);
    Ok(())
}

/// Returns who broke the place of `key`, if its session still lives and remembers. The place had
/// this `fence`, or a later one if it was moved meanwhile.
///
/// # Errors
/// [`Halt`] if the storage fails or a row is damaged.
pub fn broken<R: Read>(rows: &R, key: &[u8], fence: i64) -> Result<Option<Broken>, Halt> {
    let Some(session) = queue::session_of(key) else { return Ok(None) };
    let lease = leases::lease(rows, session)?.unwrap_or_default();
    let is_it = |known: &Broken| known.key == key && known.fence >= fence;
    Ok(lease.broken.into_iter().rev().find(is_it))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_ours_tells_its_session() {
        for id in [1, 0x694d_7fb8, -255, i64::MAX, i64::MIN] {
            assert_eq!(queue::session_of(&queue::key(b"a/b", id)), Some(id));
            assert_eq!(queue::session_of(&queue::further_key(b"a", id, b"-r")), Some(id));
        }
        for foreign in ["a", "a/", "a/leader", "a/-", "a/ffffffffffffffff"] {
            assert_eq!(queue::session_of(foreign.as_bytes()), None, "{foreign}");
        }
    }
}
