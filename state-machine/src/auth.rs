//! Users, roles and permissions: the commands that change them, and reads of them.
//!
//! The auth revision is a counter besides the store's revision, as in etcd: every change of a user,
//! role or permission raises it, and so does disabling authentication. Passwords never get here,
//! only hashes, which the member that took the call computes.
//!
//! | module | what |
//! |---|---|
//! | `interval` | sets of keys |
//! | `rights` | what a user may do, computed once per auth revision |
//! | `check` | which permissions a command or read needs, and whether the caller has them |

pub mod check;
pub mod interval;
mod rights;

use std::ops::ControlFlow;

use bytes::Bytes;

use crate::command::{
    AuthCommand, Permission, RoleGrant, RoleRevoke, TokenIssue, UserAdd, UserChangePassword,
    UserRole,
};
use crate::head::Head;
use crate::machine::Position;
use crate::outcome::Stop;
use crate::overlay::Overlay;
use crate::read::{Read, Table};
use crate::response::{AuthChange, Halt, Rejection};
use crate::rows::auth::{ROLES, USERS, name_of, role_key, user_key};

pub use crate::rows::auth::{RoleRow, UserRow};
pub use rights::{Rights, RightsCache};

/// The user that must exist before authentication is enabled.
pub const ROOT_USER: &str = "root";
/// The role that may do everything. It needs no row.
pub const ROOT_ROLE: &str = "root";

/// Whether authentication is enabled, and the auth revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuthHead {
    /// Every call needs a user.
    pub enabled: bool,
    /// Raised by every change of a user, role or permission; 1 in a fresh store.
    pub revision: u64,
}

impl Default for AuthHead {
    fn default() -> AuthHead {
        AuthHead { enabled: false, revision: 1 }
    }
}

/// Reads one user.
///
/// # Errors
/// [`Halt`] if the storage fails or the row is damaged.
pub fn user<R: Read>(rows: &R, name: &str) -> Result<Option<UserRow>, Halt> {
    rows.get(Table::Auth, &user_key(name))?.map(|row| UserRow::decode(&row)).transpose()
}

/// Reads one role; the root role has a row only if somebody added it.
///
/// # Errors
/// [`Halt`] if the storage fails or the row is damaged.
pub fn role<R: Read>(rows: &R, name: &str) -> Result<Option<RoleRow>, Halt> {
    rows.get(Table::Auth, &role_key(name))?.map(|row| RoleRow::decode(&row)).transpose()
}

/// Lists the names of all users, in order.
///
/// # Errors
/// [`Halt`] if the storage fails or a row is damaged.
pub fn users<R: Read>(rows: &R) -> Result<Vec<String>, Halt> {
    names(rows, USERS)
}

/// Lists the names of all roles, in order.
///
/// # Errors
/// [`Halt`] if the storage fails or a row is damaged.
pub fn roles<R: Read>(rows: &R) -> Result<Vec<String>, Halt> {
    names(rows, ROLES)
}

fn names<R: Read>(rows: &R, kind: u8) -> Result<Vec<String>, Halt> {
    let mut names = Vec::new();
    let end = [kind.saturating_add(1)];
    rows.scan(Table::Auth, &[kind], Some(&end), &mut |key, _| {
        names.push(name_of(key)?);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(names)
}

/// Carries out a command, whose caller's permission was already checked.
pub(crate) fn apply<R: Read>(
    rows: &mut Overlay<'_, R>,
    head: &mut Head,
    position: Position,
    command: &AuthCommand,
) -> Result<AuthChange, Stop> {
    let auth = &mut head.auth;
    let next = auth.revision.saturating_add(1);
    let change = match command {
        AuthCommand::Enable => return enable(rows, auth),
        AuthCommand::Disable if !auth.enabled => return Ok(AuthChange::Nothing),
        AuthCommand::Disable => {
            auth.enabled = false;
            AuthChange::Disabled
        }
        AuthCommand::UserAdd(add) => user_add(rows, next, add)?,
        AuthCommand::UserDelete(name) => user_delete(rows, auth.enabled, name)?,
        AuthCommand::UserChangePassword(change) => change_password(rows, next, change)?,
        AuthCommand::UserGrantRole(grant) => user_grant_role(rows, grant)?,
        AuthCommand::UserRevokeRole(revoke) => user_revoke_role(rows, auth.enabled, revoke)?,
        AuthCommand::RoleAdd(name) => role_add(rows, name)?,
        AuthCommand::RoleDelete(name) => role_delete(rows, auth.enabled, name)?,
        AuthCommand::RoleGrant(grant) => role_grant(rows, grant)?,
        AuthCommand::RoleRevoke(revoke) => role_revoke(rows, revoke)?,
        AuthCommand::Token(issue) => return token(rows, *auth, position, issue),
    };
    if change != AuthChange::Nothing {
        auth.revision = next;
    }
    Ok(change)
}

fn enable<R: Read>(rows: &R, auth: &mut AuthHead) -> Result<AuthChange, Stop> {
    if auth.enabled {
        return Ok(AuthChange::Nothing);
    }
    let root = user(rows, ROOT_USER)?.ok_or(Rejection::RootUserNotExist)?;
    if !root.has_role(ROOT_ROLE) {
        return Err(Rejection::RootRoleNotExist.into());
    }
    auth.enabled = true;
    Ok(AuthChange::Enabled)
}

/// `next` is the auth revision that this change creates.
fn user_add<R: Read>(
    rows: &mut Overlay<'_, R>,
    next: u64,
    add: &UserAdd,
) -> Result<AuthChange, Stop> {
    if add.name.is_empty() {
        return Err(Rejection::UserEmpty.into());
    }
    if user(rows, &add.name)?.is_some() {
        return Err(Rejection::UserExists.into());
    }
    let row = UserRow {
        password_hash: add.password_hash.clone(),
        no_password: add.no_password,
        roles: Vec::new(),
        added: next,
        password_since: next,
    };
    put_user(rows, &add.name, &row);
    Ok(AuthChange::Changed)
}

fn user_delete<R: Read>(
    rows: &mut Overlay<'_, R>,
    enabled: bool,
    name: &str,
) -> Result<AuthChange, Stop> {
    if enabled && name == ROOT_USER {
        return Err(Rejection::InvalidAuthManagement.into());
    }
    user(rows, name)?.ok_or(Rejection::UserNotFound)?;
    rows.delete(Table::Auth, user_key(name));
    Ok(AuthChange::TokensVoid { user: name.to_owned() })
}

/// `next` is the auth revision that this change creates.
fn change_password<R: Read>(
    rows: &mut Overlay<'_, R>,
    next: u64,
    change: &UserChangePassword,
) -> Result<AuthChange, Stop> {
    let mut row = user(rows, &change.name)?.ok_or(Rejection::UserNotFound)?;
    // As in etcd: accepted, but without effect for a user that has no password.
    if !row.no_password {
        row.password_hash = change.password_hash.clone();
        row.password_since = next;
    }
    put_user(rows, &change.name, &row);
    Ok(AuthChange::TokensVoid { user: change.name.clone() })
}

fn user_grant_role<R: Read>(
    rows: &mut Overlay<'_, R>,
    grant: &UserRole,
) -> Result<AuthChange, Stop> {
    let mut row = user(rows, &grant.user)?.ok_or(Rejection::UserNotFound)?;
    if grant.role != ROOT_ROLE && role(rows, &grant.role)?.is_none() {
        return Err(Rejection::RoleNotFound.into());
    }
    let Err(place) = row.roles.binary_search(&grant.role) else {
        return Ok(AuthChange::Nothing);
    };
    row.roles.insert(place, grant.role.clone());
    put_user(rows, &grant.user, &row);
    Ok(AuthChange::Changed)
}

fn user_revoke_role<R: Read>(
    rows: &mut Overlay<'_, R>,
    enabled: bool,
    revoke: &UserRole,
) -> Result<AuthChange, Stop> {
    if enabled && revoke.user == ROOT_USER && revoke.role == ROOT_ROLE {
        return Err(Rejection::InvalidAuthManagement.into());
    }
    let mut row = user(rows, &revoke.user)?.ok_or(Rejection::UserNotFound)?;
    let place = row.roles.binary_search(&revoke.role).map_err(|_| Rejection::RoleNotGranted)?;
    row.roles.remove(place);
    put_user(rows, &revoke.user, &row);
    Ok(AuthChange::Changed)
}

fn role_add<R: Read>(rows: &mut Overlay<'_, R>, name: &str) -> Result<AuthChange, Stop> {
    if name.is_empty() {
        return Err(Rejection::RoleEmpty.into());
    }
    if role(rows, name)?.is_some() {
        return Err(Rejection::RoleExists.into());
    }
    put_role(rows, name, &RoleRow::default());
    Ok(AuthChange::Changed)
}

fn role_delete<R: Read>(
    rows: &mut Overlay<'_, R>,
    enabled: bool,
    name: &str,
) -> Result<AuthChange, Stop> {
    if enabled && name == ROOT_ROLE {
        return Err(Rejection::InvalidAuthManagement.into());
    }
    role(rows, name)?.ok_or(Rejection::RoleNotFound)?;
    rows.delete(Table::Auth, role_key(name));
    for user_name in users(rows)? {
        let Some(mut row) = user(rows, &user_name)? else { continue };
        if row.has_role(name) {
            row.roles.retain(|role| role != name);
            put_user(rows, &user_name, &row);
        }
    }
    Ok(AuthChange::Changed)
}

fn role_grant<R: Read>(rows: &mut Overlay<'_, R>, grant: &RoleGrant) -> Result<AuthChange, Stop> {
    let permission = grant.permission.as_ref().ok_or(Rejection::PermissionNotGiven)?;
    if !is_grantable(permission) {
        return Err(Rejection::InvalidAuthManagement.into());
    }
    let mut row = role(rows, &grant.role)?.ok_or(Rejection::RoleNotFound)?;
    let name = |one: &Permission| (one.key.clone(), one.range_end.clone());
    match row.permissions.binary_search_by_key(&name(permission), name) {
        Ok(known) => {
            if let Some(known) = row.permissions.get_mut(known) {
                known.kind = permission.kind;
            }
        }
        Err(place) => row.permissions.insert(place, permission.clone()),
    }
    put_role(rows, &grant.role, &row);
    Ok(AuthChange::Changed)
}

/// Whether it is for one key, all keys from one on, or a non-empty interval.
fn is_grantable(permission: &Permission) -> bool {
    let Permission { key, range_end, .. } = permission;
    !key.is_empty() && (range_end.is_empty() || range_end.as_ref() == [0] || key < range_end)
}

fn role_revoke<R: Read>(
    rows: &mut Overlay<'_, R>,
    revoke: &RoleRevoke,
) -> Result<AuthChange, Stop> {
    let mut row = role(rows, &revoke.role)?.ok_or(Rejection::RoleNotFound)?;
    let before = row.permissions.len();
    row.permissions.retain(|one| one.key != revoke.key || one.range_end != revoke.range_end);
    if row.permissions.len() == before {
        return Err(Rejection::PermissionNotGranted.into());
    }
    put_role(rows, &revoke.role, &row);
    Ok(AuthChange::Changed)
}

/// Issues a token, unless users or roles changed since the password was verified, which the auth
/// revision tells.
fn token<R: Read>(
    rows: &R,
    auth: AuthHead,
    position: Position,
    issue: &TokenIssue,
) -> Result<AuthChange, Stop> {
    if !auth.enabled {
        return Err(Rejection::AuthNotEnabled.into());
    }
    if issue.auth_revision != auth.revision {
        return Err(Rejection::AuthOldRevision.into());
    }
    user(rows, &issue.user)?.ok_or(Rejection::UserNotFound)?;
    Ok(AuthChange::Token {
        user: issue.user.clone(),
        fingerprint: Bytes::copy_from_slice(&issue.fingerprint),
        index: position.index,
        issued_ms: issue.issued_ms,
    })
}

/// Writes a user imported from another store; its roles may be in any order.
pub(crate) fn adopt_user<R: Read>(rows: &mut Overlay<'_, R>, name: &str, mut row: UserRow) {
    row.roles.sort();
    row.roles.dedup();
    put_user(rows, name, &row);
}

/// Writes a role imported from another store, whose permissions may be in any order. Returns how
/// many of them cover no keys and were left out.
pub(crate) fn adopt_role<R: Read>(
    rows: &mut Overlay<'_, R>,
    name: &str,
    mut row: RoleRow,
) -> usize {
    let stored = row.permissions.len();
    row.permissions.retain(is_grantable);
    row.permissions.sort_by(|a, b| (&a.key, &a.range_end).cmp(&(&b.key, &b.range_end)));
    put_role(rows, name, &row);
    stored.saturating_sub(row.permissions.len())
}

fn put_user<R: Read>(rows: &mut Overlay<'_, R>, name: &str, row: &UserRow) {
    rows.put(Table::Auth, user_key(name), row.encode());
}

fn put_role<R: Read>(rows: &mut Overlay<'_, R>, name: &str, row: &RoleRow) {
    rows.put(Table::Auth, role_key(name), row.encode());
}
