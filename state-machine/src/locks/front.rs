//! Keeps a summary of each queue, so that no command costs more because the queue is long: where
//! the queue begins, the share of the places at its beginning, which place a re-entrant request
//! shares, and since when the first place is first. It follows the keys: the only code that writes
//! keys calls [`note`].

use std::ops::ControlFlow;

use bytes::Bytes;

use super::claim::{self, Claim};
use super::queue::{self, Admission, NEWEST};
use super::tenure;
use crate::overlay::Overlay;
use crate::read::{Read, Table};
use crate::response::{Halt, KeyValue};
use crate::rows::place::{self, Front};

/// After checking more places than this, the result is stored.
const LOOKED_AT_MAX: usize = 8;

/// The summary of the queue of `name`; `None` if it is empty.
pub(super) fn front<R: Read>(rows: &R, name: &[u8]) -> Result<Option<Front>, Halt> {
    at(rows, &place::prefix(name))
}

fn at<R: Read>(rows: &R, prefix: &[u8]) -> Result<Option<Front>, Halt> {
    rows.get(Table::Place, prefix)?.map(|row| Front::decode(&row)).transpose()
}

/// Whether a place that was deleted had a larger fence than `fence`, and so may have held.
pub(super) fn is_outrun<R: Read>(rows: &R, name: &[u8], fence: i64) -> Result<bool, Halt> {
    Ok(front(rows, name)?.is_some_and(|front| front.gone > fence))
}

/// Whether a new place at the end of the queue of `name` would hold at once.
pub(super) fn is_free<R: Read>(
    rows: &mut Overlay<'_, R>,
    name: &[u8],
    share: (u32, u32),
) -> Result<bool, Halt> {
    let Some(mut front) = front(rows, name)? else { return Ok(true) };
    let mut admission = Admission::after(front.held);
    let mut looked_at = 0_usize;
    let next = front.held.to.saturating_add(1);
    queue::visit_from(rows, NEWEST, (name, next), &mut |place| {
        // Places of one revision are included in the stored result together, or not at all.
        if place.fence > admission.held().to {
            front.held = admission.held();
        }
        looked_at = looked_at.saturating_add(1);
        if !admission.admits(place.share()) {
            return ControlFlow::Break(());
        }
        admission.passed(place.fence);
        ControlFlow::Continue(())
    })?;
    if looked_at > LOOKED_AT_MAX {
        if admission.is_open() {
            front.held = admission.held();
        }
        rows.put(Table::Place, place::prefix(name).into(), front.encode());
    }
    Ok(admission.admits(share))
}

/// The state of a key that has a lease, before or after a change.
#[derive(Clone, Copy)]
pub(crate) struct Leased<'a> {
    /// Create revision of the key.
    pub(crate) fence: i64,
    /// Number of puts since its creation.
    pub(crate) version: i64,
    pub(crate) lease: i64,
    pub(crate) value: &'a [u8],
}

impl<'a> Leased<'a> {
    /// `None` if the key has no lease.
    pub(crate) fn of(kv: &'a KeyValue) -> Option<Leased<'a>> {
        let KeyValue { create_revision: fence, version, lease, value, .. } = kv;
        let leased = Leased { fence: *fence, version: *version, lease: *lease, value };
        (*lease != 0).then_some(leased)
    }

    /// Keys of the rows that lead from its requests to this place, for those requests that its own
    /// key does not contain.
    fn entered(&self, name: &[u8], key: &Bytes, prefix: &[u8]) -> Vec<Bytes> {
        let Some(claim) = Claim::decode(self.value) else { return Vec::new() };
        if queue::key(name, self.lease) == *key {
            return Vec::new();
        }
        let mut requests = claim.requests;
        requests.retain(|request| queue::further_key(name, self.lease, request) != *key);
        let row_key = |request: &Bytes| place::entered_key(prefix, self.lease, request);
        requests.iter().map(row_key).collect()
    }
}

/// When a change happens.
#[derive(Clone, Copy)]
pub(crate) struct Moment {
    pub(crate) revision: i64,
    /// Wall clock of the proposing member in milliseconds since 1970; 0: not known.
    pub(crate) unix_ms: i64,
}

/// What a change does to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Created,
    Changed,
    Deleted,
}

/// Updates the queue of `key` after it was written or deleted. `old` and `new` are its states with
/// a lease, if any.
pub(crate) fn note<R: Read>(
    rows: &mut Overlay<'_, R>,
    moment: Moment,
    key: &Bytes,
    (old, new): (Option<Leased<'_>>, Option<Leased<'_>>),
    fate: Fate,
) -> Result<(), Halt> {
    if old.is_none() && new.is_none() {
        return Ok(());
    }
    let Some((name, child)) = place::parent(key) else { return Ok(()) };
    let prefix = place::prefix(name);
    for row_key in old.iter().flat_map(|old| old.entered(name, key, &prefix)) {
        rows.delete(Table::Place, row_key);
    }
    for row_key in new.iter().flat_map(|new| new.entered(name, key, &prefix)) {
        rows.put(Table::Place, row_key, Bytes::copy_from_slice(child));
    }
    match (old, new) {
        // A key that got its lease after its creation is not a place: it would come before places
        // that were first.
        (None, Some(new)) if fate == Fate::Created => {
            enter(rows, moment, (&prefix, child), new.fence)
        }
        (Some(old), None) => leave(rows, moment, (&prefix, child), old, fate),
        (Some(old), Some(new)) if claim::share(old.value) != claim::share(new.value) => {
            let Some(mut front) = at(rows, &prefix)? else { return Ok(()) };
            if old.fence <= front.held.to {
                front.held = place::Held::default();
            }
            front.turn = tenure::disturbed(front.turn, moment.revision);
            set(rows, &prefix, front);
            Ok(())
        }
        _ => Ok(()),
    }
}

fn set<R: Read>(rows: &mut Overlay<'_, R>, prefix: &[u8], front: Front) {
    rows.put(Table::Place, Bytes::copy_from_slice(prefix), front.encode());
}

fn enter<R: Read>(
    rows: &mut Overlay<'_, R>,
    moment: Moment,
    (prefix, child): (&[u8], &[u8]),
    fence: i64,
) -> Result<(), Halt> {
    rows.put(Table::Place, place::row_key(prefix, fence, child), Bytes::new());
    let Some(mut front) = at(rows, prefix)? else {
        set(rows, prefix, Front::new(fence, moment.unix_ms));
        return Ok(());
    };
    // Places come at the end of the queue, except when a history is imported.
    let is_last = fence >= front.first && fence > front.held.to;
    if is_last && !front.is_single {
        return Ok(());
    }
    if !is_last {
        front.first = front.first.min(fence);
        front.held = place::Held::default();
        front.turn = place::Turn::UNKNOWN;
    }
    front.is_single = false;
    set(rows, prefix, front);
    Ok(())
}

fn leave<R: Read>(
    rows: &mut Overlay<'_, R>,
    moment: Moment,
    (prefix, child): (&[u8], &[u8]),
    old: Leased<'_>,
    fate: Fate,
) -> Result<(), Halt> {
    let row_key = place::row_key(prefix, old.fence, child);
    let Some(mut front) = at(rows, prefix)? else { return Ok(()) };
    // A key that is not a place may have the same fence.
    if old.fence <= front.held.to && rows.get(Table::Place, &row_key)?.is_some() {
        front.held = front.held.without(claim::share(old.value));
    }
    // A key that was put once had its lease from its creation on.
    let is_only = front.is_single
        && front.first == old.fence
        && (old.version == 1 || rows.get(Table::Place, &row_key)?.is_some());
    rows.delete(Table::Place, row_key);
    front.gone = front.gone.max(old.fence);
    front.is_unbroken &= fate == Fate::Deleted;
    front.turn = tenure::disturbed(front.turn, moment.revision);
    if front.first == old.fence {
        let [next, further] =
            if is_only { [None; 2] } else { queue::next_two(rows, prefix, old.fence)? };
        let Some(next) = next else {
            rows.delete(Table::Place, Bytes::copy_from_slice(prefix));
            return Ok(());
        };
        front.turn = if next > old.fence {
            tenure::handed_over(moment, claim::share(old.value))
        } else {
            // A place with the same fence may have been behind it or before it; which is not known.
            tenure::unknown(moment.revision)
        };
        front.first = next;
        front.is_single = further.is_none();
    }
    set(rows, prefix, front);
    Ok(())
}
