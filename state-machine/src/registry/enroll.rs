//! The commands register and deregister.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::record::{Checked, Details, Health, Record};
use super::{Stored, check, damping, drop_lost, index, stored};
use crate::change::{Before, Change};
use crate::command::{Deregister, Once, Register, RegisterMode};
use crate::leases::{self, LeaseRow};
use crate::outcome::Stop;
use crate::read::Read;
use crate::response::{Cause, Halt, KeyValue, PrimitiveResponse, Rejection};

const CHANGED: Rejection = Rejection::InstanceTaken("the instance has changed");
const ANOTHERS: Rejection = Rejection::InstanceTaken("the instance belongs to another session");

pub(super) fn register<R: Read>(
    change: &mut Change<'_, '_, R>,
    command: &Register,
) -> Result<PrimitiveResponse, Stop> {
    let mut record = check::register(command)?;
    let Register { service, id, session, .. } = command;
    let lease = leases::lease(change.rows, *session)?.ok_or(Rejection::LeaseNotFound)?;
    let key = super::key(service, id);
    let before = Before::load(change.rows, &key)?;
    let known = stored(change.rows, service, id)?;
    let remains = before.kv.as_ref().filter(|_| known.is_none());
    admit(command, known.as_ref(), remains)?;
    // An etcd client overwrote the instance with something else: the registration resumes with its
    // fence.
    let resumed = remains.map(|kv| kv.create_revision);
    let resumed = resumed.filter(|fence| *fence == command.fence && !command.is_anew);
    let ends = known.is_some() || remains.is_some() && resumed.is_none();
    // The registration that this command continues; any other that exists is replaced.
    let own = known.as_ref().filter(|known| known.kv.lease == *session && !command.is_anew);
    complete(change.rows, &mut record, (known.as_ref(), own), (&lease, command))?;
    if let Some(Stored { kv, record: same, .. }) = own
        && *same == record
    {
        let (number, revision) = (kv.create_revision, kv.mod_revision);
        return Ok(PrimitiveResponse { is_done: false, number, revision });
    }
    let before = if ends && own.is_none() { replace(change, &key, before)? } else { before };
    change.put(&key, before, &record.encode().into(), *session)?;
    let revision = change.head.revision;
    let number = own.map(|own| own.kv.create_revision).or(resumed).unwrap_or(revision);
    Ok(PrimitiveResponse { is_done: known.is_none() && resumed.is_none(), number, revision })
}

/// Checks whether the request may replace what is there: an instance, or `remains`, a value that is
/// not one.
fn admit(
    command: &Register,
    known: Option<&Stored>,
    remains: Option<&KeyValue>,
) -> Result<(), Rejection> {
    let Register { session, fence, former, is_anew, mod_revision, .. } = command;
    if let Some(kv) = remains {
        return match is_left(kv, *session, &[*fence, former.fence])
            || *mod_revision == kv.mod_revision
        {
            true => Ok(()),
            false => Err(Rejection::InstanceTaken("the key holds something else")),
        };
    }
    if *fence != 0 && !known.is_some_and(|known| known.is_of(*session, *fence)) {
        return Err(Rejection::InstanceReplaced);
    }
    let Some(known) = known else {
        return if *mod_revision == 0 { Ok(()) } else { Err(CHANGED) };
    };
    if *mod_revision != 0 && *mod_revision != known.kv.mod_revision {
        return Err(CHANGED);
    }
    let is_own = (known.kv.lease == *session && !is_anew)
        || (former.fence != 0 && known.is_of(former.session, former.fence));
    if !is_own && command.mode == RegisterMode::IfAbsent {
        return Err(ANOTHERS);
    }
    Ok(())
}

/// Whether a key that holds no instance any more, because an etcd client overwrote it, was a
/// registration of `session`: it still has its lease, or was created with one of these fences.
fn is_left(kv: &KeyValue, session: i64, fences: &[i64]) -> bool {
    session != 0 && kv.lease == session || fences.contains(&kv.create_revision)
}

/// Deletes the present registration, so that the next one gets a new fence.
fn replace<R: Read>(
    change: &mut Change<'_, '_, R>,
    key: &Bytes,
    before: Before,
) -> Result<Before, Halt> {
    change.delete(key, before)?;
    Before::load(change.rows, key)
}

/// Fills in the fields that the owner does not set.
fn complete<R: Read>(
    rows: &R,
    record: &mut Record,
    (known, own): (Option<&Stored>, Option<&Stored>),
    (lease, command): (&LeaseRow, &Register),
) -> Result<(), Halt> {
    let Register { service, id, now_ms, is_damping, .. } = command;
    let [known, own] = [known, own].map(|stored| stored.map(|stored| &stored.record));
    let details = &mut record.details;
    details.owner.clone_from(&lease.owner);
    details.ttl_seconds = lease.ttl;
    details.lost_ms = 0;
    details.override_state = known.and_then(|known| known.details.override_state);
    (details.checked, details.results) = results(details, known.map(|known| &known.details));
    details.registered_ms = own.map_or(*now_ms, |own| own.details.registered_ms);
    details.is_damped = known.is_some_and(|known| known.details.is_damped);
    let comes_up = known.is_none_or(|known| known.health_known() == Health::Critical)
        && record.health_known() < Health::Critical;
    if comes_up && *is_damping {
        record.details.is_damped |= is_suppressed(rows, (service, id), *now_ms)?;
    }
    let is_as_before = own.is_some_and(|own| {
        (own.state_shown(), own.health_known()) == (record.state_shown(), record.health_known())
    });
    record.details.changed_ms = match own {
        Some(own) if is_as_before => own.details.changed_ms,
        Some(_) | None => *now_ms,
    };
    Ok(())
}

/// The known results of those checks whose settings are unchanged.
fn results(
    details: &Details,
    known: Option<&Details>,
) -> (Option<Checked>, BTreeMap<String, Checked>) {
    let Some(known) = known else { return Default::default() };
    let checked = known.checked.as_ref().filter(|_| known.check == details.check);
    let alike =
        details.checks.iter().filter(|(name, check)| known.checks.get(*name) == Some(check));
    let found =
        alike.filter_map(|(name, _)| Some((name.clone(), known.results.get(name)?.clone())));
    (checked.cloned(), found.collect())
}

/// Whether an instance that comes up now is damped.
pub(super) fn is_suppressed<R: Read>(
    rows: &R,
    (service, id): (&[u8], &str),
    now_ms: i64,
) -> Result<bool, Halt> {
    let penalty = damping::flaps(rows, service, id)?.at(now_ms);
    Ok(penalty > damping::SUPPRESS && !index::service(rows, service)?.is_damping_off)
}

pub(super) fn deregister<R: Read>(
    change: &mut Change<'_, '_, R>,
    command: &Deregister,
) -> Result<PrimitiveResponse, Stop> {
    let Deregister { service, id, session, once, .. } = command;
    let is_owner = *session != 0;
    change.because(if is_owner { Cause::Deregistered } else { Cause::Admin });
    let fence = match once.undoes {
        0 => command.fence,
        _ => match undone(change.rows, *once)? {
            Some(fence) => fence,
            None => return Ok(PrimitiveResponse::default()),
        },
    };
    let Some(known) = stored(change.rows, service, id)? else {
        let key = super::key(service, id);
        let before = Before::load(change.rows, &key)?;
        if before.kv.as_ref().is_some_and(|kv| {
            is_left(kv, *session, &[fence]) && (fence == 0 || fence == kv.create_revision)
        }) {
            change.delete(&key, before)?;
            drop_lost(change, service, id)?;
            return Ok(PrimitiveResponse { is_done: true, ..PrimitiveResponse::default() });
        }
        // An instance that is kept after its loss can be removed, too.
        let was_there = fence == 0 && drop_lost(change, service, id)?;
        return Ok(PrimitiveResponse { is_done: was_there, ..PrimitiveResponse::default() });
    };
    let is_owners = !is_owner || known.kv.lease == *session;
    if fence != 0 && !(is_owners && known.kv.create_revision == fence) {
        return Ok(PrimitiveResponse { is_done: false, ..PrimitiveResponse::default() });
    }
    if !is_owners {
        return Err(ANOTHERS.into());
    }
    change.delete(&known.key, known.before)?;
    drop_lost(change, service, id)?;
    Ok(PrimitiveResponse { is_done: true, ..PrimitiveResponse::default() })
}

/// The fence of what the undone request registered; `None` if it registered nothing, and never
/// will.
fn undone<R: Read>(rows: &R, once: Once) -> Result<Option<i64>, Halt> {
    let session = leases::lease(rows, once.session)?;
    let answer = session.and_then(|session| session.answer(once.undoes));
    Ok(answer.map(|answer| answer.number).filter(|fence| *fence != 0))
}
