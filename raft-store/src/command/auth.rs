//! Converts auth requests from messages to commands.

use conclave_proto::{authpb, etcdserverpb as etcd, internal};
use conclave_state_machine::command::{
    AuthCommand, Caller, Permission, PermissionKind, RoleGrant, RoleRevoke, TokenIssue, UserAdd,
    UserChangePassword, UserName, UserRole,
};
use conclave_state_machine::response::Rejection;

/// Converts the caller of a command in a log entry.
#[must_use]
pub fn caller(message: Option<internal::Caller>) -> Caller {
    match message {
        None => Caller::Anonymous,
        Some(internal::Caller { inside: true, .. }) => Caller::Inside,
        Some(internal::Caller { user, auth_revision, .. }) => match UserName::try_from(user) {
            Ok(name) => Caller::User { name, auth_revision },
            // A name that is not UTF-8 belongs to no user.
            Err(_) => Caller::Anonymous,
        },
    }
}

/// Converts a caller to the message that [`caller`] reads.
#[must_use]
pub fn caller_message(caller: &Caller) -> Option<internal::Caller> {
    match caller {
        Caller::Anonymous => None,
        Caller::Inside => Some(internal::Caller { inside: true, ..Default::default() }),
        Caller::User { name, auth_revision } => Some(internal::Caller {
            user: name.clone().into_bytes(),
            auth_revision: *auth_revision,
            inside: false,
        }),
    }
}

/// Wraps a command that the cluster itself proposes, not a client.
#[must_use]
pub fn inside(command: internal::command::Command) -> internal::Command {
    internal::Command { caller: caller_message(&Caller::Inside), command: Some(command) }
}

/// Converts the addition of a user.
#[must_use]
pub fn user_add(add: internal::AuthUserAdd) -> AuthCommand {
    let internal::AuthUserAdd { name, password_hash, no_password } = add;
    AuthCommand::UserAdd(UserAdd { name, password_hash, no_password })
}

/// Converts a change of password.
#[must_use]
pub fn change_password(change: internal::AuthChangePassword) -> AuthCommand {
    let internal::AuthChangePassword { name, password_hash } = change;
    AuthCommand::UserChangePassword(UserChangePassword { name, password_hash })
}

/// Converts the grant of a role to a user.
#[must_use]
pub fn user_grant_role(grant: etcd::AuthUserGrantRoleRequest) -> AuthCommand {
    AuthCommand::UserGrantRole(UserRole { user: grant.user, role: grant.role })
}

/// Converts the revocation of a role from a user.
#[must_use]
pub fn user_revoke_role(revoke: etcd::AuthUserRevokeRoleRequest) -> AuthCommand {
    AuthCommand::UserRevokeRole(UserRole { user: revoke.name, role: revoke.role })
}

/// Converts the grant of a permission to a role.
///
/// # Errors
/// [`Rejection::Malformed`] for an unknown kind of permission.
pub fn role_grant(grant: etcd::AuthRoleGrantPermissionRequest) -> Result<AuthCommand, Rejection> {
    let permission = grant.perm.map(permission).transpose()?;
    Ok(AuthCommand::RoleGrant(RoleGrant { role: grant.name, permission }))
}

fn permission(message: authpb::Permission) -> Result<Permission, Rejection> {
    let kind = u8::try_from(message.perm_type).ok().and_then(PermissionKind::from_number);
    Ok(Permission {
        kind: kind.ok_or(Rejection::Malformed("unknown kind of permission"))?,
        key: message.key,
        range_end: message.range_end,
    })
}

/// Converts the revocation of a permission from a role.
#[must_use]
pub fn role_revoke(revoke: etcd::AuthRoleRevokePermissionRequest) -> AuthCommand {
    let etcd::AuthRoleRevokePermissionRequest { role, key, range_end } = revoke;
    AuthCommand::RoleRevoke(RoleRevoke { role, key, range_end })
}

/// Converts the issue of a token.
#[must_use]
pub fn token(token: internal::AuthToken) -> AuthCommand {
    let internal::AuthToken { user, fingerprint, auth_revision, issued_unix_ms } = token;
    AuthCommand::Token(TokenIssue { user, fingerprint, auth_revision, issued_ms: issued_unix_ms })
}
