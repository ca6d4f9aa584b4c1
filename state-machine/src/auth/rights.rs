//! The rights of a user: the permissions of all its roles combined, once per auth revision.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::interval::KeySet;
use super::{ROOT_ROLE, role, user};
use crate::command::Permission;
use crate::read::Read;
use crate::response::Halt;

/// What one user may do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rights {
    /// Name of the user.
    pub name: String,
    /// Auth revision at which the user was added; see [`super::UserRow::added`].
    pub added: u64,
    /// Auth revision of its last change of password; see [`super::UserRow::password_since`].
    pub password_since: u64,
    /// Whether the user may do everything.
    pub is_root: bool,
    /// Keys that may be read.
    pub read: KeySet,
    /// Keys that may be written.
    pub write: KeySet,
}

impl Rights {
    /// Combines the roles of a user; `None` if there is no such user.
    ///
    /// # Errors
    /// [`Halt`] if the storage fails or a row is damaged.
    pub fn load<R: Read>(rows: &R, name: &str) -> Result<Option<Rights>, Halt> {
        let Some(user) = user(rows, name)? else { return Ok(None) };
        let mut permissions: Vec<Permission> = Vec::new();
        for name in &user.roles {
            if let Some(role) = role(rows, name)? {
                permissions.extend(role.permissions);
            }
        }
        let pair =
            |permission: &'_ Permission| (permission.key.clone(), permission.range_end.clone());
        let reads: Vec<_> = permissions.iter().filter(|one| one.kind.reads()).map(pair).collect();
        let writes: Vec<_> = permissions.iter().filter(|one| one.kind.writes()).map(pair).collect();
        Ok(Some(Rights {
            name: name.to_owned(),
            added: user.added,
            password_since: user.password_since,
            is_root: user.has_role(ROOT_ROLE),
            read: KeySet::new(reads.iter().map(|(key, end)| (key, end))),
            write: KeySet::new(writes.iter().map(|(key, end)| (key, end))),
        }))
    }
}

/// Rights of the users that called since users or roles last changed.
#[derive(Clone, Debug, Default)]
pub struct RightsCache {
    revision: u64,
    users: BTreeMap<String, Arc<Rights>>,
}

impl RightsCache {
    /// The rights of a user at auth revision `revision`, which `rows` must have reached; `None` if
    /// there is no such user.
    ///
    /// # Errors
    /// [`Halt`] if the storage fails or a row is damaged.
    pub fn of<R: Read>(
        &mut self,
        rows: &R,
        revision: u64,
        name: &str,
    ) -> Result<Option<Arc<Rights>>, Halt> {
        if self.revision != revision {
            self.users.clear();
            self.revision = revision;
        }
        if let Some(rights) = self.users.get(name) {
            return Ok(Some(Arc::clone(rights)));
        }
        let Some(rights) = Rights::load(rows, name)? else { return Ok(None) };
        let rights = Arc::new(rights);
        self.users.insert(name.to_owned(), Arc::clone(&rights));
        Ok(Some(rights))
    }

    /// Forgets everything, because the rows were replaced.
    pub fn clear(&mut self) {
        *self = RightsCache::default();
    }
}
