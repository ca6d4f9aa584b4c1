//! What becomes of a key when its lease expires: mostly it is deleted.
//!
//! A place that holds and asked for a delay stays, without a holder, on a lease of its own that lasts
//! for the delay. So nobody else holds meanwhile, etcd's recipes included, and what ends a lease ends
//! the delay.

use bytes::Bytes;

use super::acquire::put;
use super::claim::Claim;
use super::queue::{self, NEWEST};
use crate::change::{Before, Change};
use crate::leases::{self, LeaseRow};
use crate::read::Read;
use crate::response::{Halt, LeaseChange};

/// Lease ids tried for one delay. They are free unless somebody chose the same on purpose.
const LEASE_IDS_TRIED_MAX: i64 = 8;
/// Where such ids begin: the fence is added.
const LEASE_IDS_FROM: i64 = 0x6465_6c61_0000_0000;

/// Deletes `key`, whose lease expires, or lets it pass the lock's delay on the lease that is returned.
pub(crate) fn lose<R: Read>(
    change: &mut Change<'_, '_, R>,
    key: &Bytes,
) -> Result<Option<LeaseChange>, Halt> {
    let before = Before::load(change.rows, key)?;
    let claim = before.kv.as_ref().and_then(|kv| Claim::decode(&kv.value));
    let fence = before.kv.as_ref().map_or(0, |kv| kv.create_revision);
    if let Some(claim) = claim
        && claim.delay_seconds > 0
        && !claim.requests.is_empty()
        && held_with(change.rows, key, fence)?
        && let Some((id, granted)) = delay(change, fence, claim.delay_seconds)?
    {
        put(change, key, &Claim { requests: Vec::new(), ..claim }, id)?;
        return Ok(granted);
    }
    change.delete(key, before)?;
    Ok(None)
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
    // No id is used twice, so its grants need not be told apart.
    let wanted = LeaseRow { ttl: i64::from(seconds), ..LeaseRow::default() };
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
