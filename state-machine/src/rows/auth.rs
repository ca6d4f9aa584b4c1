//! `Auth` rows: users with their password hashes and roles, and roles with their permissions.

use bytes::Bytes;

use super::{RowReader, RowWriter};
use crate::command::{Permission, PermissionKind};
use crate::response::Halt;

/// First byte of the key of a user's row.
pub(crate) const USERS: u8 = b'u';
/// First byte of the key of a role's row.
pub(crate) const ROLES: u8 = b'r';

const FORM: u8 = 1;
/// Format of a user's row with the fields `added` and `password_since`.
const FORM_SINCE: u8 = 2;

/// A user as stored.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct UserRow {
    /// Hash of the password; empty for a user without one.
    pub password_hash: Bytes,
    /// The user can only sign in with a certificate.
    pub no_password: bool,
    /// Names of roles, ascending.
    pub roles: Vec<String>,
    /// Auth revision at which the user was added: a caller that was verified under this name before
    /// that is another user. 0 in rows without this field, and for users imported from another
    /// store.
    pub added: u64,
    /// Auth revision of the last change of the password; initially equal to `added`.
    pub password_since: u64,
}

/// Omits the hash, because debug output may end up in a log.
impl std::fmt::Debug for UserRow {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("UserRow")
            .field("no_password", &self.no_password)
            .field("roles", &self.roles)
            .field("added", &self.added)
            .field("password_since", &self.password_since)
            .finish_non_exhaustive()
    }
}

impl UserRow {
    /// Whether the role is granted.
    #[must_use]
    pub fn has_role(&self, role: &str) -> bool {
        self.roles.iter().any(|granted| granted == role)
    }

    pub(crate) fn encode(&self) -> Bytes {
        let mut row = RowWriter::new(FORM_SINCE);
        row.uint(self.added);
        row.uint(self.password_since);
        row.byte(u8::from(self.no_password));
        row.bytes(&self.password_hash);
        row.size(self.roles.len());
        self.roles.iter().for_each(|role| row.bytes(role.as_bytes()));
        row.finish()
    }

    /// # Errors
    /// [`Halt::CorruptRow`] if the bytes are not such a row.
    pub(crate) fn decode(row: &[u8]) -> Result<UserRow, Halt> {
        let mut row = RowReader::new("auth", row);
        let (added, password_since) = match row.form()? {
            FORM => (0, 0),
            FORM_SINCE => (row.uint()?, row.uint()?),
            _ => return Err(row.corrupt("unknown form")),
        };
        Ok(UserRow {
            added,
            password_since,
            no_password: row.uint()? != 0,
            password_hash: Bytes::copy_from_slice(row.bytes()?),
            // Each item takes at least a byte, so a corrupt count ends with the row.
            roles: (0..row.size()?).map(|_| row.string()).collect::<Result<_, Halt>>()?,
        })
    }
}

/// A role as stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoleRow {
    /// Sorted by key and range end.
    pub permissions: Vec<Permission>,
}

impl RoleRow {
    pub(crate) fn encode(&self) -> Bytes {
        let mut row = RowWriter::new(FORM);
        row.size(self.permissions.len());
        for permission in &self.permissions {
            row.byte(permission.kind.number());
            row.bytes(&permission.key);
            row.bytes(&permission.range_end);
        }
        row.finish()
    }

    /// # Errors
    /// [`Halt::CorruptRow`] if the bytes are not such a row.
    pub(crate) fn decode(row: &[u8]) -> Result<RoleRow, Halt> {
        let mut row = RowReader::new("auth", row);
        if row.form()? != FORM {
            return Err(row.corrupt("unknown form"));
        }
        let count = row.size()?;
        let permissions = (0..count).map(|_| permission(&mut row));
        Ok(RoleRow { permissions: permissions.collect::<Result<_, Halt>>()? })
    }
}

fn permission(row: &mut RowReader<'_>) -> Result<Permission, Halt> {
    let number = row.uint()?;
    let kind = u8::try_from(number).ok().and_then(PermissionKind::from_number);
    Ok(Permission {
        kind: kind.ok_or_else(|| row.corrupt("unknown kind of permission"))?,
        key: Bytes::copy_from_slice(row.bytes()?),
        range_end: Bytes::copy_from_slice(row.bytes()?),
    })
}

/// Key of a user's row.
pub(crate) fn user_key(name: &str) -> Bytes {
    Bytes::from([&[USERS], name.as_bytes()].concat())
}

/// Key of a role's row.
pub(crate) fn role_key(name: &str) -> Bytes {
    Bytes::from([&[ROLES], name.as_bytes()].concat())
}

/// Returns the name in the key of a row.
///
/// # Errors
/// [`Halt::CorruptRow`] if the bytes are not such a key.
pub(crate) fn name_of(row_key: &[u8]) -> Result<String, Halt> {
    let name = row_key.split_first().and_then(|(_, name)| std::str::from_utf8(name).ok());
    let corrupt = || Halt::CorruptRow { table: "auth", detail: "name is not UTF-8".to_owned() };
    name.map(str::to_owned).ok_or_else(corrupt)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_round_trip() {
        let user = UserRow {
            password_hash: "$2a$10$hash".into(),
            no_password: false,
            roles: vec!["a".into(), "b".into()],
            added: 3,
            password_since: 300,
        };
        let bare = UserRow { no_password: true, ..UserRow::default() };
        for user in [user, bare] {
            let row = user.encode();
            assert!(UserRow::decode(&row).unwrap() == user);
            assert!(UserRow::decode(&row[..row.len() - 1]).is_err());
        }
        let permission = Permission {
            kind: PermissionKind::ReadWrite,
            key: "a".into(),
            range_end: Bytes::from_static(b"\0"),
        };
        let role = RoleRow { permissions: vec![permission] };
        let row = role.encode();
        assert_eq!(RoleRow::decode(&row).unwrap(), role);
        assert!(RoleRow::decode(&row[..row.len() - 1]).is_err());
        assert_eq!(name_of(&user_key("ann")).unwrap(), "ann");
    }

    #[test]
    fn hashes_are_not_printed() {
        let user = UserRow { password_hash: "secret".into(), ..UserRow::default() };
        assert!(!format!("{user:?}").contains("secret"));
    }
}
