//! Changes of an instance by its owner, by an operator, or by a health check.

use super::enroll::is_suppressed;
use super::record::{Checked, Details, Health, Record, State};
use super::{Stored, damping, index, stored};
use crate::change::Change;
use crate::command::{CheckResult, InstanceUpdate};
use crate::outcome::Stop;
use crate::read::Read;
use crate::response::{Halt, PrimitiveResponse, Rejection};

pub(super) fn update<R: Read>(
    change: &mut Change<'_, '_, R>,
    command: &InstanceUpdate,
) -> Result<PrimitiveResponse, Stop> {
    let InstanceUpdate { service, id, session, fence, .. } = command;
    let known = stored(change.rows, service, id)?.ok_or(Rejection::InstanceNotFound)?;
    if *session != 0 && known.kv.lease != *session {
        return Err(Rejection::InstanceTaken("the instance belongs to another session").into());
    }
    if *fence != 0 && known.kv.create_revision != *fence {
        return Err(Rejection::InstanceNotFound.into());
    }
    let mut record = known.record.clone();
    if let Some(state) = command.state {
        record.state = state;
    }
    if let Some(wanted) = command.override_state {
        record.details.override_state = wanted;
    }
    if let Some((health, output)) = &command.health {
        record.details.health = *health;
        record.details.output.clone_from(output);
    }
    if let Some(weight) = command.weight {
        record.weight = weight;
    }
    let drains = record.state_shown() == State::Draining;
    record.details.drain_ms = match command.drain_ms {
        _ if !drains => 0,
        Some(drain_ms) => drain_ms,
        None => record.details.drain_ms,
    };
    let (now_ms, is_damping) = (command.now_ms, command.is_damping);
    Ok(write(change, (service, id), known, record, (now_ms, is_damping))?)
}

pub(super) fn checked<R: Read>(
    change: &mut Change<'_, '_, R>,
    command: &CheckResult,
) -> Result<PrimitiveResponse, Stop> {
    let CheckResult { service, id, fence, check, now_ms, is_damping, .. } = command;
    let known = stored(change.rows, service, id)?
        .filter(|known| known.kv.create_revision == *fence)
        .filter(|known| known.record.details.all_checks().any(|(name, _)| name == check))
        .ok_or(Rejection::InstanceNotFound)?;
    let mut record = known.record.clone();
    note(&mut record.details, command);
    Ok(write(change, (service, id), known, record, (*now_ms, *is_damping))?)
}

/// Records the result of a check.
fn note(details: &mut Details, command: &CheckResult) {
    let CheckResult { check, health, output, now_ms, .. } = command;
    let found = Checked { health: *health, output: output.clone(), since_ms: 0 };
    if check.is_empty() {
        details.checked = Some(found);
        return;
    }
    let before = details.results.get(check).filter(|before| before.health == *health);
    let since_ms = before.map_or(*now_ms, |before| before.since_ms);
    details.results.insert(check.clone(), Checked { since_ms, ..found });
}

/// Writes the changed record, unless nothing changed.
fn write<R: Read>(
    change: &mut Change<'_, '_, R>,
    (service, id): (&[u8], &str),
    known: Stored,
    mut record: Record,
    (now_ms, is_damping): (i64, bool),
) -> Result<PrimitiveResponse, Halt> {
    let Stored { key, before, kv, record: old } = known;
    if old == record {
        let (number, revision) = (kv.create_revision, kv.mod_revision);
        return Ok(PrimitiveResponse { is_done: false, number, revision });
    }
    let (was, is) = (old.health_known(), record.health_known());
    let is_damping = is_damping && !index::service(change.rows, service)?.is_damping_off;
    if is_damping && was < Health::Critical && is == Health::Critical {
        damping::note(change.rows, service, id, now_ms)?;
    }
    if is_damping && was == Health::Critical && is < Health::Critical {
        record.details.is_damped |= is_suppressed(change.rows, (service, id), now_ms)?;
    }
    if was != is || old.state_shown() != record.state_shown() {
        record.details.changed_ms = now_ms;
    }
    change.put(&key, before, &record.encode().into(), kv.lease)?;
    let (number, revision) = (kv.create_revision, change.head.revision);
    Ok(PrimitiveResponse { is_done: true, number, revision })
}
