//! Double barriers: participants enter together and leave together.
//!
//! A participant is a place of the name's queue: a key attached to its session. The key of the
//! name, the *gate*, holds how many participants there must be and up to which fence they are in,
//! which is the fence of the one that completed them. Places are in the order of their fences, so
//! the first place tells whether anybody is in, and a gate that was left behind lets nobody in
//! whose fence is higher. The gate is deleted with the last participant, which leaves or loses its
//! session.

use bytes::Bytes;

use super::check::PARTICIPANTS_MAX;
use crate::change::{Before, Change};
use crate::command::Once;
use crate::locks::{attempt, queue};
use crate::outcome::Stop;
use crate::read::Read;
use crate::response::{Halt, PrimitiveResponse, Rejection};
use crate::rows::place::Attempt;

/// The value of the gate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gate {
    /// Number of participants there must be; 0 if that is not set yet.
    pub count: u32,
    /// Participants with fences up to this one are in.
    pub opened: i64,
}

impl Gate {
    /// Parses the value of the gate. Any client may write it, so invalid text is not an error.
    #[must_use]
    pub fn parse(value: &[u8]) -> Gate {
        let text = std::str::from_utf8(value).unwrap_or_default();
        let (count, opened) = text.split_once(" open ").unwrap_or((text, "0"));
        match (count.parse(), opened.parse()) {
            (Ok(count), Ok(opened)) => Gate { count, opened },
            _ => Gate::default(),
        }
    }

    fn encode(self) -> Bytes {
        let Gate { count, opened } = self;
        Bytes::from(if opened == 0 { count.to_string() } else { format!("{count} open {opened}") })
    }
}

/// Key of the participant that a request created.
#[must_use]
pub fn key(name: &[u8], session: i64, sequence: u64) -> Bytes {
    queue::further_key(name, session, &sequence.to_be_bytes())
}

/// The answer to a request whose participant exists. It is computed from the keys, so that a
/// participant may wait longer than a session remembers its requests.
pub(super) fn standing<R: Read>(
    rows: &R,
    name: &Bytes,
    once: Once,
) -> Result<Option<PrimitiveResponse>, Halt> {
    let own = Before::load(rows, &key(name, once.session, once.sequence))?.kv;
    let Some(own) = own.filter(|own| own.lease == once.session && once.session != 0) else {
        return Ok(None);
    };
    let gate = Before::load(rows, name)?.kv.map(|kv| Gate::parse(&kv.value)).unwrap_or_default();
    let fence = own.create_revision;
    Ok(Some(PrimitiveResponse { is_done: fence <= gate.opened, number: fence, revision: fence }))
}

pub(super) fn enter<R: Read>(
    change: &mut Change<'_, '_, R>,
    (name, once): (&Bytes, Once),
    count: u32,
    note: &Bytes,
) -> Result<PrimitiveResponse, Stop> {
    let key = key(name, once.session, once.sequence);
    let (at_gate, gate) = load(change, name)?;
    let first = queue::first(change.rows, name)?;
    let is_open = first.is_some_and(|first| first <= gate.opened);
    let present = queue::count(change.rows, name, PARTICIPANTS_MAX)?;
    if present > 0 && gate.count != 0 && gate.count != count {
        return Err(Rejection::Refused("participants disagree on how many they are").into());
    }
    if present >= PARTICIPANTS_MAX {
        return Err(Rejection::Refused("the double barrier has too many participants").into());
    }
    let before = Before::load(change.rows, &key)?;
    if before.kv.is_some() {
        return Err(Rejection::Refused("the key of the participant is taken").into());
    }
    change.put(&key, before, note, once.session)?;
    let fence = change.head.revision;
    attempt::set(change.rows, (&key, fence), mark(once.sequence))?;
    let is_in = is_open || present.saturating_add(1) >= count;
    let now = Gate { count, opened: if is_in { fence } else { 0 } };
    if present == 0 || is_in || gate.count == 0 {
        change.put(name, at_gate, &now.encode(), 0)?;
    }
    Ok(PrimitiveResponse { is_done: is_in, number: fence, revision: fence })
}

pub(super) fn exit<R: Read>(
    change: &mut Change<'_, '_, R>,
    (name, once): (&Bytes, Once),
    is_only_waiting: bool,
) -> Result<PrimitiveResponse, Stop> {
    let key = key(name, once.session, once.undoes);
    let before = Before::load(change.rows, &key)?;
    let own = before.kv.as_ref().filter(|kv| kv.lease == once.session);
    let Some(fence) = own.map(|kv| kv.create_revision) else {
        return Ok(PrimitiveResponse::default());
    };
    let (_, gate) = load(change, name)?;
    let is_in = fence <= gate.opened;
    let wait_for = if is_in { gate.opened } else { 0 };
    if is_in && is_only_waiting {
        let revision = change.head.revision;
        return Ok(PrimitiveResponse { is_done: false, number: wait_for, revision });
    }
    change.delete(&key, before)?;
    close_behind_last(change, name)?;
    let revision = change.head.revision;
    Ok(PrimitiveResponse { is_done: true, number: wait_for, revision })
}

/// The double barrier in which `key`, attached to this session, is a participant.
pub(crate) fn entered<R: Read>(rows: &R, key: &Bytes, session: i64) -> Result<Option<Bytes>, Halt> {
    let Some(name) = queue::name_of(key).filter(|name| is_participant(key, name, session)) else {
        return Ok(None);
    };
    // A lock's place of the same session may have such a key, but its value is a claim, which a
    // participant never has.
    let Some(place) = queue::place_at(rows, key)?.filter(|place| place.claim.is_none()) else {
        return Ok(None);
    };
    // Any client may write such a key, and the end of its lease must not delete the gate.
    let marks = attempt::all(rows, key, place.fence)?;
    Ok(marks.iter().any(|mark| mark.number != 0).then(|| key.slice_ref(name)))
}

/// What is stored beside the key of a participant only. Members of groups have no number there.
fn mark(sequence: u64) -> Attempt {
    Attempt { request: attempt::id(sequence), stream: 0, number: sequence }
}

fn is_participant(key: &[u8], name: &[u8], session: i64) -> bool {
    let rest = key.strip_prefix(&queue::key(name, session)[..]);
    let sequence = rest.and_then(|rest| rest.strip_prefix(b"-"));
    sequence.is_some_and(|text| text.len() == 16 && text.iter().all(u8::is_ascii_hexdigit))
}

/// Deletes the gate if there are no participants left.
pub(crate) fn close_behind_last<R: Read>(
    change: &mut Change<'_, '_, R>,
    name: &Bytes,
) -> Result<(), Halt> {
    let (at_gate, gate) = load(change, name)?;
    // A key of this name that is not a gate stays.
    if gate.count != 0 && queue::first(change.rows, name)?.is_none() {
        change.delete(name, at_gate)?;
    }
    Ok(())
}

fn load<R: Read>(change: &Change<'_, '_, R>, name: &Bytes) -> Result<(Before, Gate), Halt> {
    let before = Before::load(change.rows, name)?;
    let gate = before.kv.as_ref().map(|kv| Gate::parse(&kv.value)).unwrap_or_default();
    Ok((before, gate))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_are_text_and_foreign_text_is_none() {
        for gate in [Gate { count: 3, opened: 0 }, Gate { count: 1_024, opened: 77 }] {
            assert_eq!(Gate::parse(&gate.encode()), gate);
        }
        assert_eq!(Gate { count: 3, opened: 9 }.encode(), "3 open 9");
        for foreign in ["", "open", "3 open", "x open 9", "3 open 9 10", "-1"] {
            assert_eq!(Gate::parse(foreign.as_bytes()), Gate::default(), "{foreign:?}");
        }
    }
}
