//! The places of a name in order, and the rule that decides which of them hold.

use std::ops::ControlFlow;

use bytes::Bytes;

use super::attempt;
use super::claim::Claim;
use super::front::front;
use crate::live;
use crate::read::{Read, Table};
use crate::response::{Halt, KeyValue};
use crate::rows::place::{self, Held};

/// Most places of one name that hold at once; the others wait.
pub const HOLDERS_MAX: usize = 1_024;

/// Reads the newest state, as commands do.
pub(crate) const NEWEST: i64 = i64::MAX;

/// One place of a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its key.
    pub key: Bytes,
    /// Create revision of the key: the fencing token, not below that of any place before it in the
    /// queue.
    pub fence: i64,
    /// Revision of the last change of the key.
    pub mod_revision: i64,
    /// Number of puts since its creation.
    pub version: i64,
    /// Lease that it is attached to.
    pub session: i64,
    /// Its value, as stored.
    pub value: Bytes,
    /// What it asks for; `None` for a key without a claim, which is exclusive.
    pub claim: Option<Claim>,
}

impl Place {
    /// The requested share, and the permits that all holders together may have.
    #[must_use]
    pub fn share(&self) -> (u32, u32) {
        self.claim.as_ref().map_or((1, 1), |claim| (claim.permits, claim.limit))
    }

    /// Whether the session of its holder expired, so that the place only waits out the lock delay.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.claim.as_ref().is_some_and(|claim| claim.requests.is_empty())
    }
}

/// Decides which places of a queue hold, given its places from first to last: those whose share
/// fits together with all places before them. No place overtakes another, so a queued writer stops
/// the readers behind it and gets its turn.
#[derive(Clone, Copy, Debug)]
pub struct Admission {
    held: Held,
    is_open: bool,
}

impl Default for Admission {
    fn default() -> Admission {
        Admission::after(Held::default())
    }
}

impl Admission {
    /// Continues after places that are known to hold.
    pub(super) fn after(held: Held) -> Admission {
        Admission { held, is_open: true }
    }

    /// Whether the next place, which asks for `permits` of `limit`, holds.
    pub fn admits(&mut self, (permits, limit): (u32, u32)) -> bool {
        let with = self.held.with((permits, limit));
        let places = usize::try_from(self.held.places).unwrap_or(usize::MAX);
        self.is_open &= with.used <= u64::from(with.limit) && places < HOLDERS_MAX;
        if self.is_open {
            self.held = with;
        }
        self.is_open
    }

    /// Notes the fence of the place that was admitted last.
    pub(super) fn passed(&mut self, fence: i64) {
        self.held.to = fence;
    }

    /// The combined share of the admitted places.
    pub(super) fn held(&self) -> Held {
        self.held
    }

    /// Whether a further place may hold at all; if not, none behind it does.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.is_open
    }
}

/// Visits the places of `name` at revision `at`, first to last, until `visit` breaks.
///
/// As in `live`, the caller must check afterwards that `at` was not compacted meanwhile. Places
/// that were deleted after `at` may be missing.
///
/// # Errors
/// [`Halt`] if the storage fails or a row is damaged.
pub fn visit<R: Read>(
    rows: &R,
    at: i64,
    name: &[u8],
    visit: &mut dyn FnMut(Place) -> ControlFlow<()>,
) -> Result<(), Halt> {
    visit_from(rows, at, (name, 0), visit)
}

/// Visits the places with the fence `from` or a larger one.
pub(super) fn visit_from<R: Read>(
    rows: &R,
    at: i64,
    (name, from): (&[u8], i64),
    visit: &mut dyn FnMut(Place) -> ControlFlow<()>,
) -> Result<(), Halt> {
    let prefix = place::prefix(name);
    let Some(first) = first(rows, name)? else { return Ok(()) };
    scan(rows, &prefix, first.max(from), &mut |fence, key| {
        if fence > at {
            return Ok(ControlFlow::Break(()));
        }
        let found = live::get(rows, at, &key)?.filter(|kv| kv.create_revision == fence);
        let Some(kv) = found else { return Ok(ControlFlow::Continue(())) };
        let claim = Claim::decode(&kv.value);
        let KeyValue { mod_revision, version, lease: session, value, .. } = kv;
        Ok(visit(Place { key, fence, mod_revision, version, session, value, claim }))
    })
}

/// Visits the `Place` rows of a prefix with the fence `first` or a larger one.
pub(super) fn scan<R: Read>(
    rows: &R,
    prefix: &[u8],
    first: i64,
    visit: &mut dyn FnMut(i64, Bytes) -> Result<ControlFlow<()>, Halt>,
) -> Result<(), Halt> {
    let (start, end) = place::bounds(prefix, first);
    rows.scan(Table::Place, &start, Some(&end), &mut |row_key, _| {
        let (fence, key) = place::place(row_key, prefix.len())?;
        visit(fence, key)
    })
}

/// Fences of the first two places of a prefix from the fence `from` on.
pub(super) fn next_two<R: Read>(
    rows: &R,
    prefix: &[u8],
    from: i64,
) -> Result<[Option<i64>; 2], Halt> {
    let mut found = [None; 2];
    scan(rows, prefix, from, &mut |fence, _| {
        let [next, further] = &mut found;
        if next.is_none() {
            *next = Some(fence);
            return Ok(ControlFlow::Continue(()));
        }
        *further = Some(fence);
        Ok(ControlFlow::Break(()))
    })?;
    Ok(found)
}

/// The places of `name` that hold at revision `at`, first to last, under the conditions of
/// [`visit`].
///
/// # Errors
/// [`Halt`] if the storage fails or a row is damaged.
pub fn holders<R: Read>(rows: &R, at: i64, name: &[u8]) -> Result<Vec<Place>, Halt> {
    let mut admission = Admission::default();
    let mut holders = Vec::new();
    visit(rows, at, name, &mut |place| {
        if !admission.admits(place.share()) {
            return ControlFlow::Break(());
        }
        holders.push(place);
        ControlFlow::Continue(())
    })?;
    Ok(holders)
}

/// Whether the place with this fence holds `name` at revision `at`, and its session lives, under
/// the conditions of [`visit`].
///
/// # Errors
/// [`Halt`] if the storage fails or a row is damaged.
pub fn holds<R: Read>(rows: &R, at: i64, name: &[u8], fence: i64) -> Result<bool, Halt> {
    let mut places_left = usize::MAX;
    Ok(holds_within(rows, at, (name, fence), &mut places_left)? == Some(true))
}

/// As [`holds`], but `None` if that would take a look at more than `places_left` places; the number
/// of places looked at is subtracted.
pub(crate) fn holds_within<R: Read>(
    rows: &R,
    at: i64,
    (name, fence): (&[u8], i64),
    places_left: &mut usize,
) -> Result<Option<bool>, Halt> {
    // The stored result describes the newest state. All places up to its fence `to` hold.
    let front = if at == NEWEST { front(rows, name)? } else { None };
    let held = front.map(|front| front.held).unwrap_or_default();
    let is_known = fence <= held.to;
    let from = if is_known { fence } else { held.to.saturating_add(1) };
    let mut admission = Admission::after(held);
    let (mut holds, mut failed) = (Some(false), None);
    visit_from(rows, at, (name, from), &mut |place| {
        let Some(left) = places_left.checked_sub(1) else {
            holds = None;
            return ControlFlow::Break(());
        };
        *places_left = left;
        if place.fence > fence || !is_known && !admission.admits(place.share()) {
            return ControlFlow::Break(());
        }
        if place.fence < fence || place.is_lost() {
            return ControlFlow::Continue(());
        }
        // Several places may have the same fence.
        match is_displaced(rows, &place) {
            Ok(true) => return ControlFlow::Continue(()),
            Ok(false) => holds = Some(true),
            Err(halt) => failed = Some(halt),
        }
        ControlFlow::Break(())
    })?;
    failed.map_or(Ok(holds), Err)
}

/// Whether an etcd client attached a place, which was taken through the native API, to another
/// lease. Its session no longer holds, and the owner of that lease did not ask for it.
///
/// # Errors
/// [`Halt`] if the storage fails or a row is damaged.
pub fn is_displaced<R: Read>(rows: &R, place: &Place) -> Result<bool, Halt> {
    let is_anothers = session_of(&place.key).is_some_and(|session| session != place.session);
    Ok(is_anothers && !attempt::all(rows, &place.key, place.fence)?.is_empty())
}

/// The session whose place would have this key, as made by [`key`] or [`further_key`].
pub(super) fn session_of(key: &[u8]) -> Option<i64> {
    let name = name_of(key)?;
    let child = std::str::from_utf8(key.get(name.len().checked_add(1)?..)?).ok()?;
    let (sign, rest) = child.strip_prefix('-').map_or((1, child), |rest| (-1, rest));
    let digits = rest.split_once('-').map_or(rest, |(digits, _)| digits);
    i128::from(u64::from_str_radix(digits, 16).ok()?).checked_mul(sign)?.try_into().ok()
}

/// Fence of the first place of `name`.
///
/// # Errors
/// [`Halt`] if the storage fails or a row is damaged.
pub fn first<R: Read>(rows: &R, name: &[u8]) -> Result<Option<i64>, Halt> {
    Ok(front(rows, name)?.map(|front| front.first))
}

/// Whether the place of `key` with this fence is first, and no place of its queue has lost its
/// lease while its key stayed. If so, and if only places were ever before it, no key is before it
/// now.
///
/// # Errors
/// [`Halt`] if the storage fails or a row is damaged.
pub fn is_first<R: Read>(rows: &R, key: &[u8], fence: i64) -> Result<bool, Halt> {
    let Some(name) = name_of(key) else { return Ok(false) };
    let front = front(rows, name)?;
    let is_first = front.is_some_and(|front| front.first == fence && front.is_unbroken);
    Ok(is_first && row(rows, key, fence)?.is_some())
}

/// How many places `name` has, at most `most`. Reads no keys.
pub(crate) fn count<R: Read>(rows: &R, name: &[u8], most: u32) -> Result<u32, Halt> {
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let count = ahead(rows, name, i64::MAX, most)?;
    Ok(u32::try_from(count).unwrap_or(u32::MAX))
}

/// How many places are before the one with this fence, at most `most`. Reads no keys.
///
/// # Errors
/// [`Halt`] if the storage fails or a row is damaged.
pub fn ahead<R: Read>(rows: &R, name: &[u8], fence: i64, most: usize) -> Result<usize, Halt> {
    let prefix = place::prefix(name);
    let Some(first) = first(rows, name)? else { return Ok(0) };
    let mut ahead = 0_usize;
    scan(rows, &prefix, first, &mut |found, _| {
        if found >= fence || ahead >= most {
            return Ok(ControlFlow::Break(()));
        }
        ahead = ahead.saturating_add(1);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(ahead)
}

/// Whether this is the key of a queue's summary row, rather than that of a place.
#[must_use]
pub fn is_front(row_key: &[u8]) -> bool {
    place::is_prefix(row_key)
}

/// The lock or election to whose queue `key` would belong.
#[must_use]
pub fn name_of(key: &[u8]) -> Option<&[u8]> {
    place::parent(key).map(|(name, _)| name)
}

/// Key of the first place of a session in the queue of `name`, as in etcd's recipes.
#[must_use]
pub fn key(name: &[u8], session: i64) -> Bytes {
    // As Go formats a signed number.
    let sign = if session < 0 { "-" } else { "" };
    let id = session.unsigned_abs();
    [name, b"/", sign.as_bytes(), format!("{id:x}").as_bytes()].concat().into()
}

/// Key of a further place of the same session, for another request.
#[must_use]
pub fn further_key(name: &[u8], session: i64, request: &[u8]) -> Bytes {
    let mut further = key(name, session).to_vec();
    further.push(b'-');
    for byte in request {
        further.extend_from_slice(format!("{byte:02x}").as_bytes());
    }
    further.into()
}

/// The place of a request of `session` in the queue of `name`.
pub(crate) fn place_of<R: Read>(
    rows: &R,
    name: &[u8],
    session: i64,
    request: &Bytes,
) -> Result<Option<Place>, Halt> {
    // Usually the queue is empty, so there is no need to look for further places of the session.
    if front(rows, name)?.is_none() {
        return Ok(None);
    }
    let is_own = |place: &Place| {
        place.session == session && place.claim.as_ref().is_some_and(|claim| claim.is_for(request))
    };
    for key in [key(name, session), further_key(name, session, request)] {
        let Some(place) = place_at(rows, &key)?.filter(|place| place.session == session) else {
            continue;
        };
        let Some(row) = row(rows, &key, place.fence)? else { continue };
        let is_own = match &place.claim {
            Some(claim) => claim.is_for(request),
            // An etcd client overwrote the claim; the row still has the requests.
            None => {
                let attempts = place::decode_attempts(&row)?;
                attempts.iter().any(|known| known.request == *request)
            }
        };
        if is_own {
            return Ok(Some(place));
        }
    }
    // The request re-entered a place that another request had taken.
    let row_key = place::entered_key(&place::prefix(name), session, request);
    let Some(child) = rows.get(Table::Place, &row_key)? else { return Ok(None) };
    let place = place_at(rows, &Bytes::from([name, b"/", &child].concat()))?;
    Ok(place.filter(is_own))
}

/// Whether `key` is a place of `name` at present.
///
/// # Errors
/// [`Halt`] if the storage fails or a row is damaged.
pub fn is_place<R: Read>(rows: &R, name: &[u8], key: &Bytes) -> Result<bool, Halt> {
    if name_of(key) != Some(name) {
        return Ok(false);
    }
    let Some(place) = place_at(rows, key)? else { return Ok(false) };
    Ok(row(rows, key, place.fence)?.is_some())
}

pub(crate) fn place_at<R: Read>(rows: &R, key: &Bytes) -> Result<Option<Place>, Halt> {
    let found = live::get(rows, NEWEST, key)?;
    Ok(found.filter(|kv| kv.lease != 0).map(|kv| Place {
        key: kv.key,
        fence: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
        session: kv.lease,
        claim: Claim::decode(&kv.value),
        value: kv.value,
    }))
}

/// The row that is kept beside the key of a place, with the streams that wait for it.
pub(super) fn row<R: Read>(rows: &R, key: &[u8], fence: i64) -> Result<Option<Bytes>, Halt> {
    let Some((name, child)) = place::parent(key) else { return Ok(None) };
    rows.get(Table::Place, &place::row_key(&place::prefix(name), fence, child))
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXCLUSIVE: (u32, u32) = (1, 1);
    const SHARED: (u32, u32) = (1, u32::MAX);

    fn held(queue: &[(u32, u32)]) -> usize {
        let mut admission = Admission::default();
        queue.iter().filter(|share| admission.admits(**share)).count()
    }

    #[test]
    fn whoever_fits_to_all_before_it_holds() {
        assert_eq!(held(&[EXCLUSIVE, EXCLUSIVE]), 1);
        assert_eq!(held(&[EXCLUSIVE, SHARED]), 1);
        assert_eq!(held(&[SHARED, SHARED, EXCLUSIVE, SHARED]), 2, "no reader overtakes a writer");
        assert_eq!(held(&[(1, 3), (2, 3), (1, 3)]), 2);
        assert_eq!(held(&[(1, 3), (3, 3), (1, 3)]), 1, "a large request is not starved");
        assert_eq!(held(&[(1, 3), (1, 2), (1, 3)]), 2, "the smallest limit counts");
        assert_eq!(held(&[(1, 3), EXCLUSIVE]), 1);
        assert_eq!(held(&[SHARED; HOLDERS_MAX + 5]), HOLDERS_MAX);
        assert_eq!(held(&[(u32::MAX, u32::MAX), SHARED]), 1);
    }

    #[test]
    fn keys_are_those_of_etcds_recipes() {
        assert_eq!(key(b"jobs/1", 0x694d_7fb8), "jobs/1/694d7fb8");
        assert_eq!(key(b"j", -255), "j/-ff");
        assert_eq!(key(b"j", i64::MIN), "j/-8000000000000000");
        assert_eq!(further_key(b"j", 16, b"\x01\xfe"), "j/10-01fe");
    }
}
