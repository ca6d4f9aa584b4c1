//! What happens to a key when its lease expires: usually it is deleted.
//!
//! A place that holds and asked for a lock delay stays in the queue without a holder, attached to a
//! lease of its own whose TTL is the delay. So nobody else holds meanwhile, clients of etcd's
//! recipes included, and the delay ends when that lease does.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::acquire::put;
use super::claim::Claim;
use super::queue::{self, NEWEST, Place};
use crate::change::{Before, Change};
use crate::leases::{self, LeaseRow};
use crate::read::Read;
use crate::response::{Halt, LeaseChange};

/// Lease ids to try for one delay. They are free unless a client chose the same on purpose.
const LEASE_IDS_TRIED_MAX: i64 = 8;
/// Base of these ids, to which the fence is added.
const LEASE_IDS_FROM: i64 = 0x6465_6c61_0000_0000;

/// The places of one session that enter their lock delay when it expires.
pub(crate) struct Delays(BTreeSet<Bytes>);

impl Delays {
    /// Finds them among the session's `keys`, before any of these is deleted: each deletion may let
    /// other places hold, also of this session.
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
        // A request that waits for one of several locks was granted none of them.
        let has_held = |requests: &[Bytes]| requests.iter().any(|own| !waiting.contains(own));
        held.retain(|(_, requests)| has_held(requests));
        Ok(Delays(held.into_iter().map(|(key, _)| Bytes::clone(key)).collect()))
    }

    /// Deletes `key`, whose lease expires, or attaches it to the lease of its lock delay, which is
    /// returned if it is new.
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

/// Ends the lease of a place's lock delay, after the place was deleted, unless another place is
/// attached to it.
pub(super) fn end<R: Read>(
    change: &mut Change<'_, '_, R>,
    place: &Place,
) -> Result<Option<LeaseChange>, Halt> {
    let Some(claim) = place.claim.as_ref().filter(|_| place.is_lost()) else { return Ok(None) };
    let first = LEASE_IDS_FROM.saturating_add(place.fence);
    // Any client may write such a place, with a lease that is not ours.
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

/// No id is used twice, so the row needs no log index to tell its grants apart.
fn row(seconds: u32) -> LeaseRow {
    LeaseRow { ttl: i64::from(seconds), ..LeaseRow::default() }
}

fn held_with<R: Read>(rows: &R, key: &Bytes, fence: i64) -> Result<bool, Halt> {
    let Some(name) = queue::name_of(key) else { return Ok(false) };
    Ok(queue::is_place(rows, name, key)? && queue::holds(rows, NEWEST, name, fence)?)
}

/// Returns the lease for a place's lock delay, and its grant unless another place has it already.
/// Places with the same fence were taken by one request with one delay, and share the lease.
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
