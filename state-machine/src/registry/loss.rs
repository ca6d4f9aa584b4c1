//! What happens to instances whose session expires, and the guard against mass loss.
//!
//! The lease's key is always deleted: etcd's clients see exactly what a lease promises. But if more
//! than [`SHARE_PERCENT`] of a service's instances are lost within [`WINDOW_MS`], it is more likely
//! that the cluster was cut off from its clients than that all of them died. Then each further lost
//! instance leaves a key `service/\0lost/id` at the same revision, with its last record. It is
//! shown as *stale* until it registers again or the leader settles it ([`crate::command::Settle`]).
//! So at least about half of the instances stay visible, for a bounded time.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::record::{Record, may_be_instance};
use super::{Name, damping, index, lost_key};
use crate::change::{Before, Change};
use crate::overlay::Overlay;
use crate::read::Read;
use crate::response::Halt;

/// Losses within this time are counted together.
pub const WINDOW_MS: i64 = 30_000;
/// The guard keeps lost instances if more than this share of a service is lost.
pub const SHARE_PERCENT: u64 = 50;
/// A service with fewer instances has no guard.
pub const INSTANCES_MIN: u64 = 5;

/// The effect on services when many leases end.
#[derive(Debug, Default)]
pub(crate) struct Losses {
    now_ms: i64,
    /// Keys of the instances that are lost.
    keys: BTreeSet<Bytes>,
    /// Services that lose instances, and whether the guard keeps those.
    services: BTreeMap<Bytes, bool>,
    is_damping: bool,
}

impl Losses {
    /// Examines all keys that are going to be deleted, before the first one is.
    pub(crate) fn of<'k, R: Read>(
        rows: &mut Overlay<'_, R>,
        keys: impl Iterator<Item = &'k Bytes>,
        (now_ms, is_guarded): (i64, bool),
    ) -> Result<Losses, Halt> {
        let mut losses = Losses { now_ms, ..Losses::default() };
        let mut lost: BTreeMap<&[u8], u64> = BTreeMap::new();
        let mut known: BTreeMap<&[u8], bool> = BTreeMap::new();
        for key in keys {
            let Some(name) = Name::of(key).filter(|name| !name.is_lost) else { continue };
            let is_service = match known.get(name.service) {
                Some(is_service) => *is_service,
                None => {
                    let is_service = index::service(rows, name.service)?.live > 0;
                    known.insert(name.service, is_service);
                    is_service
                }
            };
            let Some(kv) = (if is_service { Before::load(rows, key)?.kv } else { None }) else {
                continue;
            };
            if may_be_instance(&kv.value) && name.decode(&kv.value).is_some() {
                losses.keys.insert(Bytes::clone(key));
                let count = lost.entry(name.service).or_default();
                *count = count.saturating_add(1);
            }
        }
        for (service, count) in lost {
            let holds = window(rows, service, count, now_ms)? && is_guarded;
            losses.services.insert(Bytes::copy_from_slice(service), holds);
        }
        Ok(losses)
    }

    /// Sets whether losses also count as flaps.
    pub(crate) fn damped(self, is_damping: bool) -> Losses {
        Losses { is_damping, ..self }
    }

    /// Deletes the key of a lost instance; `false` if `key` is not an instance.
    pub(crate) fn lose<R: Read>(
        &self,
        change: &mut Change<'_, '_, R>,
        key: &Bytes,
    ) -> Result<bool, Halt> {
        if !self.keys.contains(key) {
            return Ok(false);
        }
        let before = Before::load(change.rows, key)?;
        let name = Name::of(key);
        let lost = name.zip(before.kv.as_ref()).and_then(|(name, kv)| name.decode(&kv.value));
        change.delete(key, before)?;
        let (Some(Name { service, id, .. }), Some(record)) = (name, lost) else { return Ok(true) };
        let is_damping = self.is_damping && !index::service(change.rows, service)?.is_damping_off;
        if is_damping {
            damping::note(change.rows, service, id, self.now_ms)?;
        }
        if self.services.get(service) == Some(&true) {
            keep(change, service, record, self.now_ms)?;
        }
        Ok(true)
    }
}

/// Counts losses of a service. Returns whether the guard keeps them.
fn window<R: Read>(
    rows: &mut Overlay<'_, R>,
    service: &[u8],
    lost: u64,
    now_ms: i64,
) -> Result<bool, Halt> {
    let mut row = index::service(rows, service)?;
    let age_ms = now_ms.saturating_sub(row.window_ms);
    if row.window_live == 0 || !(0..WINDOW_MS).contains(&age_ms) {
        (row.window_ms, row.window_live, row.window_lost) = (now_ms, row.live, 0);
    }
    row.window_lost = row.window_lost.saturating_add(lost);
    index::set_service(rows, service, &row);
    let share = row.window_lost.saturating_mul(100);
    let is_mass = share > row.window_live.saturating_mul(SHARE_PERCENT);
    Ok(is_mass && row.window_live >= INSTANCES_MIN && !row.is_guard_off)
}

fn keep<R: Read>(
    change: &mut Change<'_, '_, R>,
    service: &[u8],
    mut record: Record,
    now_ms: i64,
) -> Result<(), Halt> {
    let key = lost_key(service, &record.id);
    // 0 would mean that it is not lost.
    record.details.lost_ms = now_ms.max(1);
    let before = Before::load(change.rows, &key)?;
    change.put(&key, before, &record.encode_lost().into(), 0)
}
