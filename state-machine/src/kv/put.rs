//! Put: one key, with etcd's order of checks.

use crate::change::{Before, Change};
use crate::command::Put;
use crate::leases;
use crate::outcome::Stop;
use crate::read::Read;
use crate::response::{Halt, PutResponse, Rejection};
use crate::validate;

/// Carries out a put that is a command of its own.
pub(crate) fn apply<R: Read>(
    change: &mut Change<'_, '_, R>,
    put: &Put,
) -> Result<PutResponse, Stop> {
    validate::put(put)?;
    check_lease(change.rows, put.lease)?;
    let before = Before::load(change.rows, &put.key)?;
    if (put.ignore_value || put.ignore_lease) && before.kv.is_none() {
        return Err(Rejection::KeyNotFound.into());
    }
    Ok(write(change, put, before)?)
}

/// Checks a put inside a transaction. As in etcd, the order of checks differs from [`apply`]'s.
pub(crate) fn check_in_txn<R: Read>(rows: &R, put: &Put) -> Result<(), Stop> {
    validate::put(put)?;
    if (put.ignore_value || put.ignore_lease) && Before::load(rows, &put.key)?.kv.is_none() {
        return Err(Rejection::KeyNotFound.into());
    }
    check_lease(rows, put.lease)
}

/// Carries out a put inside a transaction, after [`check_in_txn`].
pub(crate) fn apply_in_txn<R: Read>(
    change: &mut Change<'_, '_, R>,
    put: &Put,
) -> Result<PutResponse, Halt> {
    let before = Before::load(change.rows, &put.key)?;
    write(change, put, before)
}

fn check_lease<R: Read>(rows: &R, lease: i64) -> Result<(), Stop> {
    if lease != 0 && leases::lease(rows, lease)?.is_none() {
        return Err(Rejection::LeaseNotFound.into());
    }
    Ok(())
}

fn write<R: Read>(
    change: &mut Change<'_, '_, R>,
    put: &Put,
    before: Before,
) -> Result<PutResponse, Halt> {
    let prev_kv = if put.prev_kv && change.is_awaited() { before.kv.clone() } else { None };
    let value = match &before.kv {
        Some(old) if put.ignore_value => old.value.clone(),
        Some(_) | None => put.value.clone(),
    };
    let lease = match &before.kv {
        Some(old) if put.ignore_lease => old.lease,
        Some(_) | None => put.lease,
    };
    change.put(&put.key, before, &value, lease)?;
    Ok(PutResponse { prev_kv })
}
