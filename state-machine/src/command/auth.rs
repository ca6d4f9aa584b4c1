//! Commands that change users, roles and permissions, and the caller of a command.

use std::str::Utf8Error;

use bytes::Bytes;

/// The caller on whose behalf a command is carried out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Caller {
    /// A client that did not say who it is.
    #[default]
    Anonymous,
    /// The cluster itself, such as a leader that saw leases expire.
    Inside,
    /// A client whose name was verified at the member that took its call.
    User {
        /// Name of the user.
        name: UserName,
        /// Auth revision at which the name was verified.
        auth_revision: u64,
    },
}

impl Caller {
    /// Name of the user; empty if there is none.
    #[must_use]
    pub fn user(&self) -> &str {
        match self {
            Caller::User { name, .. } => name.as_str(),
            Caller::Anonymous | Caller::Inside => "",
        }
    }
}

/// Name of the calling user. A clone shares its bytes, and a decoded one those of the log entry,
/// because every command of a user carries one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserName(Bytes);

impl UserName {
    /// Returns the name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("invariant: only text becomes a name")
    }

    /// Returns the name in its encoded form.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        self.0
    }
}

impl From<String> for UserName {
    fn from(name: String) -> Self {
        Self(name.into())
    }
}

impl From<&str> for UserName {
    fn from(name: &str) -> Self {
        Self(Bytes::copy_from_slice(name.as_bytes()))
    }
}

impl TryFrom<Bytes> for UserName {
    type Error = Utf8Error;

    fn try_from(bytes: Bytes) -> Result<Self, Utf8Error> {
        std::str::from_utf8(&bytes)?;
        Ok(Self(bytes))
    }
}

/// Changes users, roles and permissions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuthCommand {
    /// Enables authentication: from now on every call needs a user.
    Enable,
    /// Disables authentication: every call may do everything.
    Disable,
    /// Adds a user.
    UserAdd(UserAdd),
    /// Deletes a user.
    UserDelete(String),
    /// Replaces a password.
    UserChangePassword(UserChangePassword),
    /// Gives a role to a user.
    UserGrantRole(UserRole),
    /// Takes a role from a user.
    UserRevokeRole(UserRole),
    /// Adds a role.
    RoleAdd(String),
    /// Deletes a role and takes it from all users.
    RoleDelete(String),
    /// Gives a permission to a role.
    RoleGrant(RoleGrant),
    /// Takes a permission from a role.
    RoleRevoke(RoleRevoke),
    /// Issues a token to a user that has proved its identity.
    Token(TokenIssue),
}

impl AuthCommand {
    /// Whether only members propose it, not clients. A member checked the token's owner before.
    #[must_use]
    pub fn is_inside(&self) -> bool {
        matches!(self, AuthCommand::Token(_))
    }
}

/// Adds a user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserAdd {
    /// Name, not empty.
    pub name: String,
    /// Hash of the password; empty for a user without one.
    pub password_hash: Bytes,
    /// The user can only sign in with a certificate.
    pub no_password: bool,
}

/// Replaces a password.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserChangePassword {
    /// Name of the user.
    pub name: String,
    /// Hash of the new password.
    pub password_hash: Bytes,
}

/// A user and a role.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserRole {
    /// Name of the user.
    pub user: String,
    /// Name of the role.
    pub role: String,
}

/// Gives a permission to a role.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoleGrant {
    /// Name of the role.
    pub role: String,
    /// What is granted; `None` is rejected.
    pub permission: Option<Permission>,
}

/// Takes a permission from a role.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoleRevoke {
    /// Name of the role.
    pub role: String,
    /// First key, as granted.
    pub key: Bytes,
    /// Range end, as granted.
    pub range_end: Bytes,
}

/// A permission for `[key, range_end)` (etcd `Permission`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Permission {
    /// Reading, writing or both.
    pub kind: PermissionKind,
    /// First key.
    pub key: Bytes,
    /// Empty: only `key`; `"\0"`: all keys from `key`.
    pub range_end: Bytes,
}

/// Kinds of permissions; the numbers are etcd's and durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum PermissionKind {
    /// Reading.
    #[default]
    Read = 0,
    /// Writing, which does not include reading.
    Write = 1,
    /// Reading and writing.
    ReadWrite = 2,
}

impl PermissionKind {
    /// etcd's number, which is also the durable one.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            PermissionKind::Read => 0,
            PermissionKind::Write => 1,
            PermissionKind::ReadWrite => 2,
        }
    }

    /// The inverse of [`PermissionKind::number`].
    #[must_use]
    pub fn from_number(number: u8) -> Option<PermissionKind> {
        [PermissionKind::Read, PermissionKind::Write, PermissionKind::ReadWrite]
            .into_iter()
            .find(|kind| kind.number() == number)
    }

    /// Whether it includes reading.
    #[must_use]
    pub fn reads(self) -> bool {
        matches!(self, PermissionKind::Read | PermissionKind::ReadWrite)
    }

    /// Whether it includes writing.
    #[must_use]
    pub fn writes(self) -> bool {
        matches!(self, PermissionKind::Write | PermissionKind::ReadWrite)
    }
}

/// Issues a token to a user whose password was verified.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenIssue {
    /// Name of the user.
    pub user: String,
    /// Hash of the token; only its owner knows the token itself.
    pub fingerprint: Bytes,
    /// Auth revision at which the password was verified.
    pub auth_revision: u64,
    /// When it was issued, in milliseconds since 1970; 0 if that is not known.
    pub issued_ms: i64,
}
