//! Words about users, roles and tokens.

use bytes::Bytes;
use conclave_state_machine::command::{
    AuthCommand, Permission, PermissionKind, RoleGrant, RoleRevoke, TokenIssue, UserAdd,
    UserChangePassword, UserRole,
};

use super::words::{Parsed, Words, name, number, span};

pub(super) fn auth(words: &mut Words) -> Parsed<AuthCommand> {
    Ok(match words.next()?.as_str() {
        "enable" => AuthCommand::Enable,
        "disable" => AuthCommand::Disable,
        other => return Err(format!("auth {other:?}?")),
    })
}

pub(super) fn token(words: &mut Words) -> Parsed<AuthCommand> {
    Ok(AuthCommand::Token(TokenIssue {
        user: words.next()?,
        fingerprint: Bytes::from_static(b"fingerprint"),
        auth_revision: number(&words.next()?)?,
        issued_ms: 0,
    }))
}

pub(super) fn user(words: &mut Words) -> Parsed<AuthCommand> {
    let (what, user) = (words.next()?, name(&words.next()?));
    let password_hash = Bytes::from_static(b"hash");
    Ok(match what.as_str() {
        "add" => {
            let no_password = words.options().iter().any(|(option, _)| option == "no_password");
            let password_hash = if no_password { Bytes::new() } else { password_hash };
            AuthCommand::UserAdd(UserAdd { name: user, password_hash, no_password })
        }
        "delete" => AuthCommand::UserDelete(user),
        "passwd" => {
            AuthCommand::UserChangePassword(UserChangePassword { name: user, password_hash })
        }
        "grant" => AuthCommand::UserGrantRole(UserRole { user, role: words.next()? }),
        "revoke" => AuthCommand::UserRevokeRole(UserRole { user, role: words.next()? }),
        other => return Err(format!("user {other:?}?")),
    })
}

pub(super) fn role(words: &mut Words) -> Parsed<AuthCommand> {
    let (what, role) = (words.next()?, name(&words.next()?));
    Ok(match what.as_str() {
        "add" => AuthCommand::RoleAdd(role),
        "delete" => AuthCommand::RoleDelete(role),
        "grant" if words.peek().is_none() => {
            AuthCommand::RoleGrant(RoleGrant { role, permission: None })
        }
        "grant" => {
            let kind = match words.next()?.as_str() {
                "r" => PermissionKind::Read,
                "w" => PermissionKind::Write,
                "rw" => PermissionKind::ReadWrite,
                other => return Err(format!("permission {other:?}?")),
            };
            let (key, range_end) = span(&words.next()?);
            let permission = Some(Permission { kind, key, range_end });
            AuthCommand::RoleGrant(RoleGrant { role, permission })
        }
        "revoke" => {
            let (key, range_end) = span(&words.next()?);
            AuthCommand::RoleRevoke(RoleRevoke { role, key, range_end })
        }
        other => return Err(format!("role {other:?}?")),
    })
}
