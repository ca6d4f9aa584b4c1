//! What becomes of a key when its lease expires: mostly it is deleted.
//!
//! A place that holds and asked for a delay stays, without a holder, on a lease of its own that lasts
//! for the delay. So nobody else holds meanwhile, etcd's recipes included, and what ends a lease ends
//! the delay.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::acquire::put;
use super::claim::Claim;
use super::queue::{self, NEWEST, Place};
use crate::change::{Before, Change};
use crate::leases::{self, LeaseRow};
use crate::read::Read;
use crate::response::{Halt, LeaseChange};

/// Lease ids tried for one delay. They are free unless somebody chose the same on purpose.
const LEASE_IDS_TRIED_MAX: i64 = 8;
/// Where such ids begin: the fence is added.
const LEASE_IDS_FROM: i64 = 0x6465_6c61_0000_0000;

/// The places of one session that pass their delay when it expires.
pub(crate) struct Delays(BTreeSet<Bytes>);

impl Delays {
    /// Those of the session's `keys`, before any of them goes: what goes lets others hold, which may be the
    /// session's own.
    pub(crate) fn of<R: Read>(rows: &R, keys: &[Bytes]) -> Result<Delays, Halt> {
        let mut claims = Vec::new();
        for key in keys {
            let Some(place) = queue::place_at(rows, key)? else { continue };
            claims.extend(place.claim.map(|claim| (key, place.fence, claim)));
        }
        if claims.iter().all(|(.., claim)| claim.delay_seconds == 0) {
            return Ok(Delays(BTreeSet::new()));
        }
        let (mut held, mut waiting) = (Vec::new(), BTreeSet::new());
        for (key, fence, claim) in claims {
            if !held_with(rows, key, fence)? {
                waiting.extend(claim.requests);
            } else if claim.delay_seconds > 0 {
                held.push((key, claim.requests));
            }
        }
        // Whoever waits for one of several locks was granted none of them.
        let has_held = |requests: &[Bytes]| requests.iter().any(|own| !waiting.contains(own));
        held.retain(|(_, requests)| has_held(requests));
        Ok(Delays(held.into_iter().map(|(key, _)| Bytes::clone(key)).collect()))
    }

    /// Deletes `key`, whose lease expires, or lets it pass the lock's delay on the lease that is returned.
    pub(crate) fn lose<R: Read>(
        &self,
        change: &mut Change<'_, '_, R>,
        key: &Bytes,
    ) -> Result<Option<LeaseChange>, Halt> {
        let before = Before::load(change.rows, key)?;
        if self.0.contains(key)
            && let Some(kv) = &before.kv
            && let Some(claim) = Claim::decode(&kv.value)
            && let Some((id, granted)) = delay(change, kv.create_revision, claim.delay_seconds)?
        {
            put(change, key, &Claim { requests: Vec::new(), ..claim }, id)?;
            return Ok(granted);
        }
        change.delete(key, before)?;
        Ok(None)
    }
}

/// Ends the lease on which a place that is gone passed its delay, once no other place passes it there.
pub(super) fn end<R: Read>(
    change: &mut Change<'_, '_, R>,
    place: &Place,
) -> Result<Option<LeaseChange>, Halt> {
    let Some(claim) = place.claim.as_ref().filter(|_| place.is_lost()) else { return Ok(None) };
    let first = LEASE_IDS_FROM.saturating_add(place.fence);
    // Anybody may write such a place, with a lease that is none of ours.
    let is_ours = (first..first.saturating_add(LEASE_IDS_TRIED_MAX)).contains(&place.session);
    let Some(known) = leases::lease(change.rows, place.session)?.filter(|_| is_ours) else {
        return Ok(None);
    };
    let is_used = leases::lease_key_from(change.rows, place.session, b"")?.is_some();
    if is_used || known != row(claim.delay_seconds) {
        return Ok(None);
    }
    Ok(Some(leases::end(change, place.session, &known)))
}

/// No id is used twice, so its grants need not be told apart.
fn row(seconds: u32) -> LeaseRow {
    LeaseRow { ttl: i64::from(seconds), ..LeaseRow::default() }
}

fn held_with<R: Read>(rows: &R, key: &Bytes, fence: i64) -> Result<bool, Halt> {
    let Some(name) = queue::name_of(key) else { return Ok(false) };
    Ok(queue::is_place(rows, name, key)? && queue::holds(rows, NEWEST, name, fence)?)
}

/// The lease that lasts for the delay of a place, and its grant unless another place has it already:
/// places with the same fence were taken by one request, with one delay, and pass it together.
fn delay<R: Read>(
    change: &mut Change<'_, '_, R>,
    fence: i64,
    seconds: u32,
) -> Result<Option<(i64, Option<LeaseChange>)>, Halt> {
    let wanted = row(seconds);
    for number in 0..LEASE_IDS_TRIED_MAX {
        let id = LEASE_IDS_FROM.saturating_add(fence).saturating_add(number);
        match leases::lease(change.rows, id)? {
            None => {
                let granted = leases::create(change.rows, change.head, id, &wanted);
                return Ok(Some((id, Some(granted))));
            }
            Some(known) if known == wanted => return Ok(Some((id, None))),
            Some(_) => {}
        }
    }
    Ok(None)
}
