//! Carries out what is due after a time, and sets the switches of a service.
//!
//! The leader measures times on its monotonic clock, from when it first saw the state; a new leader
//! starts over. An item identifies the state that was seen by that state's stamp, so that it has no
//! effect if the state has changed meanwhile.

use super::check::SETTLE_MAX;
use super::record::{Health, State};
use super::{damping, drop_lost, index, lost_key, stored};
use crate::change::{Before, Change};
use crate::command::{Configure, Settle, SettleItem, Settlement};
use crate::read::{Read, Table};
use crate::response::{Cause, Halt, RegistryResponse};

pub(super) fn apply<R: Read>(
    change: &mut Change<'_, '_, R>,
    term: u64,
    command: &Settle,
) -> Result<RegistryResponse, Halt> {
    let mut done = 0_usize;
    if command.term == term {
        for item in &command.items {
            done = done.saturating_add(usize::from(settle(change, item, command.now_ms)?));
        }
    }
    Ok(RegistryResponse::Settled { done })
}

fn settle<R: Read>(
    change: &mut Change<'_, '_, R>,
    item: &SettleItem,
    now_ms: i64,
) -> Result<bool, Halt> {
    let SettleItem { service, id, stamp, what } = item;
    match what {
        Settlement::DropLost => {
            let before = Before::load(change.rows, &lost_key(service, id))?;
            let lost = before.kv.and_then(|kv| super::Record::decode_lost(id, &kv.value));
            if lost.is_none_or(|lost| lost.details.lost_ms != *stamp) {
                return Ok(false);
            }
            change.because(Cause::SessionExpired);
            drop_lost(change, service, id)
        }
        Settlement::Forget => {
            let is_over = damping::flaps(change.rows, service, id)?.at(now_ms) < damping::FORGET;
            if is_over {
                change.rows.delete(Table::Instance, index::flap_key(service, id));
            }
            Ok(is_over)
        }
        Settlement::Undamp | Settlement::RemoveCritical | Settlement::RemoveDrained => {
            amend(change, item)
        }
    }
}

fn amend<R: Read>(change: &mut Change<'_, '_, R>, item: &SettleItem) -> Result<bool, Halt> {
    let SettleItem { service, id, stamp, what } = item;
    let Some(known) = stored(change.rows, service, id)? else { return Ok(false) };
    let mut record = known.record;
    let is_named = *what == Settlement::RemoveCritical && !record.details.checks.is_empty();
    if record.details.changed_ms != *stamp && !is_named {
        return Ok(false);
    }
    let (is_due, cause) = match what {
        Settlement::RemoveCritical if is_named => {
            let is_due = index::removals(&record).any(|due| due.stamp == *stamp);
            (is_due, Cause::CriticalTooLong)
        }
        Settlement::RemoveCritical => {
            (record.health_known() == Health::Critical, Cause::CriticalTooLong)
        }
        Settlement::RemoveDrained => (record.state_shown() == State::Draining, Cause::Drained),
        Settlement::Undamp | Settlement::DropLost | Settlement::Forget => {
            if std::mem::take(&mut record.details.is_damped) {
                let lease = known.kv.lease;
                change.put(&known.key, known.before, &record.encode().into(), lease)?;
                return Ok(true);
            }
            return Ok(false);
        }
    };
    if is_due {
        change.because(cause);
        change.delete(&known.key, known.before)?;
    }
    Ok(is_due)
}

/// Sets the switches of a service. If the guard is turned off, lost instances that are kept are
/// dropped.
pub(super) fn configure<R: Read>(
    change: &mut Change<'_, '_, R>,
    command: &Configure,
) -> Result<RegistryResponse, Halt> {
    let mut row = index::service(change.rows, &command.service)?;
    if let Some(is_guarded) = command.is_guarded {
        row.is_guard_off = !is_guarded;
    }
    if let Some(is_damped) = command.is_damped {
        row.is_damping_off = !is_damped;
    }
    index::set_service(change.rows, &command.service, &row);
    if row.is_guard_off && row.lost > 0 {
        change.because(Cause::SessionExpired);
        // The leader drops the rest when it next looks.
        for id in super::view::lost_ids(change.rows, &command.service, SETTLE_MAX)? {
            drop_lost(change, &command.service, &id)?;
        }
    }
    Ok(RegistryResponse::Configured(index::service(change.rows, &command.service)?))
}
