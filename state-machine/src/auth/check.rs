//! Permission checks: what a command or read requires, and whether its caller has it.
//!
//! What is not allowed here is rejected. A transaction needs the permissions of all its parts,
//! including branches that are not taken: the branch taken must not reveal the result of a compare
//! of keys that the caller may not read.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::{AuthHead, ROOT_ROLE, Rights, RightsCache, user};
use crate::command::{
    Action, AlarmAction, Caller, Command, Compare, DeleteRange, Deregister, GuardedTxn,
    InstanceUpdate, LockCommand, Primitive, Put, Range, Register, RegistryCommand, Txn, TxnOp,
};
use crate::head::Head;
use crate::leases;
use crate::outcome::{Stop, split};
use crate::read::Read;
use crate::registry;
use crate::response::{Halt, Rejection};

/// Who may carry out a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    /// Only the cluster itself.
    Inside,
    /// Users with the root role.
    Root,
    /// Every user.
    Anyone,
    /// Users with permissions for the keys it touches.
    Keys,
}

/// Checks whether `caller` may carry out `command`, against the rows before it.
pub(crate) fn command<R: Read>(
    rows: &R,
    head: &Head,
    cache: &mut RightsCache,
    caller: &Caller,
    command: &Command,
) -> Result<(), Stop> {
    if !head.auth.enabled {
        return Ok(());
    }
    let (name, verified_at) = match caller {
        Caller::Inside => return Ok(()),
        Caller::Anonymous => return Err(Rejection::UserEmpty.into()),
        Caller::User { name, auth_revision } => (name, *auth_revision),
    };
    let who = who(command);
    // As in etcd: an administrator's token stays valid after changes of users and roles, except for
    // a change of its own password.
    if who == Who::Keys && verified_at < head.auth.revision {
        return Err(Rejection::AuthOldRevision.into());
    }
    let rights = cache.of(rows, head.auth.revision, name.as_str())?;
    let rights = rights.ok_or(Rejection::PermissionDenied)?;
    if verified_at < rights.password_since {
        return Err(Rejection::AuthOldRevision.into());
    }
    let is_allowed = rights.is_root || who == Who::Anyone;
    match who {
        Who::Inside => Err(Rejection::PermissionDenied.into()),
        Who::Root | Who::Anyone if is_allowed => Ok(()),
        Who::Root | Who::Anyone => Err(Rejection::PermissionDenied.into()),
        Who::Keys if is_allowed => Ok(()),
        Who::Keys => keys(rows, &rights, command),
    }
}

/// Checks whether `caller` has the root role, for requests that are not commands. As in etcd, an
/// administrator's token stays valid after changes of users and roles.
///
/// # Errors
/// [`Halt`] if the storage fails or a row is damaged. In the inner result:
/// [`Rejection::UserEmpty`], [`Rejection::AuthOldRevision`] if the caller was verified before the
/// user's last change of password, or [`Rejection::PermissionDenied`].
pub fn administrator<R: Read>(
    rows: &R,
    auth: AuthHead,
    caller: &Caller,
) -> Result<Result<(), Rejection>, Halt> {
    let (name, verified_at) = match caller {
        _ if !auth.enabled => return Ok(Ok(())),
        Caller::Inside => return Ok(Ok(())),
        Caller::Anonymous => return Ok(Err(Rejection::UserEmpty)),
        Caller::User { name, auth_revision } => (name, *auth_revision),
    };
    Ok(match user(rows, name.as_str())? {
        Some(user) if verified_at < user.password_since => Err(Rejection::AuthOldRevision),
        Some(user) if user.has_role(ROOT_ROLE) => Ok(()),
        Some(_) | None => Err(Rejection::PermissionDenied),
    })
}

fn who(command: &Command) -> Who {
    match command {
        Command::Put(_)
        | Command::DeleteRange(_)
        | Command::Txn(_)
        | Command::LeaseRevoke(_)
        | Command::Lock(_)
        | Command::GuardedTxn(_)
        | Command::Write(_)
        | Command::Primitive(_) => Who::Keys,
        Command::Registry(command) => match command {
            RegistryCommand::Register(_)
            | RegistryCommand::Deregister(_)
            | RegistryCommand::Update(_)
            | RegistryCommand::Configure(_) => Who::Keys,
            RegistryCommand::Checked(_) | RegistryCommand::Settle(_) => Who::Inside,
        },
        Command::LeaseGrant(_) | Command::SessionBegin(_) => Who::Anyone,
        Command::Alarm(change) if change.action == AlarmAction::Get => Who::Anyone,
        Command::Compact(_) | Command::Alarm(_) => Who::Root,
        Command::Auth(auth) if auth.is_inside() => Who::Inside,
        Command::Auth(_) => Who::Root,
        Command::LeaseExpire(_) | Command::MemberPublish(_) => Who::Inside,
    }
}

fn keys<R: Read>(rows: &R, rights: &Rights, command: &Command) -> Result<(), Stop> {
    match command {
        Command::Put(request) => put(rows, rights, request, &mut BTreeSet::new()),
        Command::DeleteRange(request) => Ok(delete_range(rights, request)?),
        Command::Txn(request) => txn_in_log(rows, rights, request),
        Command::LeaseRevoke(revoke) => lease_write(rows, rights, revoke.id),
        Command::Lock(command) => lock(rows, rights, command),
        Command::GuardedTxn(request) => guarded_txn(rows, rights, request),
        Command::Write(write) => guarded_txn(rows, rights, &write.guarded),
        Command::Primitive(request) => primitive(rows, rights, request),
        Command::Registry(command) => registry(rows, rights, command),
        Command::LeaseGrant(_)
        | Command::SessionBegin(_)
        | Command::Alarm(_)
        | Command::Compact(_)
        | Command::Auth(_)
        | Command::LeaseExpire(_)
        | Command::MemberPublish(_) => Err(Rejection::PermissionDenied.into()),
    }
}

/// `leases` are those that the caller is already known to be allowed to write.
fn put<R: Read>(
    rows: &R,
    rights: &Rights,
    put: &Put,
    leases: &mut BTreeSet<i64>,
) -> Result<(), Stop> {
    write(rights, &put.key, b"")?;
    if put.prev_kv {
        read(rights, &put.key, b"")?;
    }
    // Attaching a key to a lease affects the other keys attached to it.
    if put.lease == 0 || leases.contains(&put.lease) {
        return Ok(());
    }
    lease_write(rows, rights, put.lease)?;
    leases.insert(put.lease);
    Ok(())
}

fn delete_range(rights: &Rights, delete: &DeleteRange) -> Result<(), Rejection> {
    if delete.prev_kv {
        read(rights, &delete.key, &delete.range_end)?;
    }
    write(rights, &delete.key, &delete.range_end)
}

/// Checks every part, however deeply nested.
fn txn_in_log<R: Read>(rows: &R, rights: &Rights, txn: &Txn) -> Result<(), Stop> {
    let (mut pending, mut leases) = (vec![txn], BTreeSet::new());
    while let Some(txn) = pending.pop() {
        for Compare { key, range_end, .. } in &txn.compare {
            read(rights, key, range_end)?;
        }
        for op in txn.success.iter().chain(&txn.failure) {
            match op {
                TxnOp::Range(request) => range_read(rights, request)?,
                TxnOp::Put(request) => put(rows, rights, request, &mut leases)?,
                TxnOp::DeleteRange(request) => delete_range(rights, request)?,
                TxnOp::Txn(nested) => pending.push(nested),
            }
        }
    }
    Ok(())
}

/// The keys of a lock or election are those that begin with its name and a slash. Taking part
/// requires the permission to read and write all of them, as etcd's recipe does, and to write the
/// session's lease.
fn lock<R: Read>(rows: &R, rights: &Rights, command: &LockCommand) -> Result<(), Stop> {
    let (names, session) = match command {
        LockCommand::Acquire(acquire) => (acquire.names.as_slice(), acquire.session),
        LockCommand::Release(release) => (release.names.as_slice(), release.session),
        LockCommand::Convert(convert) => (std::slice::from_ref(&convert.name), convert.session),
        LockCommand::Break(seize) => (std::slice::from_ref(&seize.name), 0),
        LockCommand::Campaign(campaign) => (std::slice::from_ref(&campaign.name), campaign.session),
        LockCommand::Leave(leave) => (std::slice::from_ref(&leave.name), leave.session),
        LockCommand::HandOver(hand) => (std::slice::from_ref(&hand.name), hand.session),
    };
    for name in names {
        let (start, end) = queue_span(name);
        read_write(rights, &start, &end)?;
    }
    if session == 0 { Ok(()) } else { lease_write(rows, rights, session) }
}

fn guarded_txn<R: Read>(rows: &R, rights: &Rights, request: &GuardedTxn) -> Result<(), Stop> {
    for guard in &request.guards {
        let (start, end) = queue_span(&guard.name);
        read(rights, &start, &end)?;
    }
    txn_in_log(rows, rights, &request.txn)
}

/// A counter, latch or barrier is one key; groups and double barriers are the keys below their
/// name.
fn primitive<R: Read>(rows: &R, rights: &Rights, request: &Primitive) -> Result<(), Stop> {
    let (is_key, is_queue) = match request.action {
        Action::Add(_)
        | Action::Set { .. }
        | Action::Create(_)
        | Action::CountDown(_)
        | Action::Raise { .. }
        | Action::Lift(_) => (true, false),
        Action::Enter { .. } | Action::Exit { .. } => (true, true),
        Action::Join { .. } | Action::Part { .. } => (false, true),
    };
    if is_key {
        read_write(rights, &request.name, b"")?;
    }
    if is_queue {
        let (start, end) = queue_span(&request.name);
        read_write(rights, &start, &end)?;
    }
    let session = request.once.session;
    if session == 0 { Ok(()) } else { lease_write(rows, rights, session) }
}

/// An instance is one key: a user who may read and write it may register and remove it, even when
/// it is only kept after its loss. The switches of a service concern all its keys.
fn registry<R: Read>(rows: &R, rights: &Rights, command: &RegistryCommand) -> Result<(), Stop> {
    let instance = |service: &Bytes, id: &str| (registry::key(service, id), Bytes::new());
    let ((start, end), sessions) = match command {
        RegistryCommand::Register(Register { service, id, session, once, .. }) => {
            (instance(service, id), [*session, once.session])
        }
        RegistryCommand::Deregister(Deregister { service, id, once, .. })
        | RegistryCommand::Update(InstanceUpdate { service, id, once, .. }) => {
            (instance(service, id), [0, once.session])
        }
        RegistryCommand::Configure(configure) => (registry::span(&configure.service), [0, 0]),
        RegistryCommand::Checked(_) | RegistryCommand::Settle(_) => {
            return Err(Rejection::PermissionDenied.into());
        }
    };
    read_write(rights, &start, &end)?;
    for (n, session) in sessions.iter().enumerate().filter(|(_, session)| **session != 0) {
        if !sessions[..n].contains(session) {
            lease_write(rows, rights, *session)?;
        }
    }
    Ok(())
}

/// First key and range end of the places of a lock or election.
#[must_use]
pub fn queue_span(name: &[u8]) -> (Bytes, Bytes) {
    (Bytes::from([name, b"/"].concat()), Bytes::from([name, b"0"].concat()))
}

/// Checks whether a lease may be renewed, revoked, attached to, or asked to remember a request: a
/// session belongs to its user, and any lease requires the permission to write all its keys. Reads
/// one key for each run of writable keys, however many keys the lease has.
pub(crate) fn lease_write<R: Read>(rows: &R, rights: &Rights, id: i64) -> Result<(), Stop> {
    if rights.is_root {
        return Ok(());
    }
    let owner = leases::lease(rows, id)?.map(|lease| lease.user);
    if owner.is_some_and(|owner| !owner.is_empty() && owner != rights.name) {
        return Err(Rejection::PermissionDenied.into());
    }
    let mut start = Bytes::new();
    while let Some(key) = leases::lease_key_from(rows, id, &start)? {
        let run = rights.write.around(&key).ok_or(Rejection::PermissionDenied)?;
        let Some(end) = &run.end else { break };
        start = end.clone();
    }
    Ok(())
}

/// Checks whether a lease may be renewed.
///
/// # Errors
/// [`Halt`] if the storage fails or a row is damaged. In the inner result,
/// [`Rejection::PermissionDenied`].
pub fn lease_renewal<R: Read>(
    rows: &R,
    rights: &Rights,
    id: i64,
) -> Result<Result<(), Rejection>, Halt> {
    split(lease_write(rows, rights, id))
}

/// Checks whether the keys of a lease may be shown.
///
/// # Errors
/// [`Halt`] if the storage fails or a row is damaged. In the inner result,
/// [`Rejection::PermissionDenied`].
pub fn lease_keys<R: Read>(
    rows: &R,
    rights: &Rights,
    id: i64,
) -> Result<Result<(), Rejection>, Halt> {
    if rights.is_root {
        return Ok(Ok(()));
    }
    let keys = leases::lease_keys(rows, id)?;
    Ok(keys.iter().try_for_each(|key| read(rights, key, b"")))
}

/// Checks whether a range may be read.
///
/// # Errors
/// [`Rejection::PermissionDenied`].
pub fn range(rights: &Rights, key: &[u8], range_end: &[u8]) -> Result<(), Rejection> {
    read(rights, key, range_end)
}

/// Checks whether a range may be read and written, which taking part in a lock, an election or a
/// barrier requires.
///
/// # Errors
/// [`Rejection::PermissionDenied`].
pub fn read_write(rights: &Rights, key: &[u8], range_end: &[u8]) -> Result<(), Rejection> {
    read(rights, key, range_end)?;
    write(rights, key, range_end)
}

/// Checks whether a read-only transaction may be carried out.
///
/// # Errors
/// [`Halt`] if the storage fails or a row is damaged. In the inner result,
/// [`Rejection::PermissionDenied`].
pub fn read_txn<R: Read>(
    rows: &R,
    rights: &Rights,
    txn: &Txn,
) -> Result<Result<(), Rejection>, Halt> {
    if rights.is_root { Ok(Ok(())) } else { split(txn_in_log(rows, rights, txn)) }
}

fn range_read(rights: &Rights, range: &Range) -> Result<(), Rejection> {
    read(rights, &range.key, &range.range_end)
}

fn read(rights: &Rights, key: &[u8], range_end: &[u8]) -> Result<(), Rejection> {
    let is_allowed = rights.is_root || rights.read.covers(key, range_end);
    is_allowed.then_some(()).ok_or(Rejection::PermissionDenied)
}

fn write(rights: &Rights, key: &[u8], range_end: &[u8]) -> Result<(), Rejection> {
    let is_allowed = rights.is_root || rights.write.covers(key, range_end);
    is_allowed.then_some(()).ok_or(Rejection::PermissionDenied)
}

#[cfg(test)]
mod tests;
