//! Imports the history of another store with etcd's rules, unchanged.
//!
//! Revisions, versions and leases are those of the other store, so that clients can continue from
//! what they have seen. What it has compacted is missing here, too; what it had compacted but not
//! yet deleted is deleted by our sweep, as after a compaction of our own.

#[cfg(test)]
mod tests;

use bytes::Bytes;

use crate::auth::{self, AuthHead, RoleRow, UserRow};
use crate::change::{Before, Change};
use crate::command::AlarmKind;
use crate::events::Events;
use crate::head::Head;
use crate::leases::{self, LeaseRow, TTL_SECONDS_MAX};
use crate::overlay::Overlay;
use crate::read::Read;
use crate::response::Halt;
use crate::revision::Revision;
use crate::rows::State;

/// A change of a key, as the other store has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignChange {
    /// Revision of the change.
    pub at: Revision,
    /// The changed key.
    pub key: Bytes,
    /// The new state; `None` for a deletion.
    pub put: Option<ForeignPut>,
}

/// A put, as the other store has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignPut {
    /// Revision of the put that (re)created the key.
    pub create_revision: i64,
    /// Puts since creation, from 1.
    pub version: i64,
    /// Attached lease, 0 for none.
    pub lease: i64,
    /// Value.
    pub value: Bytes,
}

/// Why something cannot be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// It breaks a rule of etcd that the other store must have kept.
    #[error("{0}")]
    Impossible(&'static str),
    /// The storage failed.
    #[error(transparent)]
    Halt(#[from] Halt),
}

/// An import into an empty store, in progress.
#[derive(Debug)]
pub struct Import {
    head: Head,
    last: Option<Revision>,
}

impl Import {
    /// Begins with the other store's compacted revision, if it ever compacted.
    #[must_use]
    pub fn new(compacted: Option<i64>) -> Import {
        let mut head = Head::default();
        if let Some(compacted) = compacted {
            head.compacted = compacted;
            // A compaction may have deleted the newest change, so the revision is at least that.
            head.revision = head.revision.max(compacted);
        }
        Import { head, last: None }
    }

    /// Imports a change; changes must come in the order of their revisions.
    ///
    /// # Errors
    /// [`ImportError`].
    pub fn change<R: Read>(
        &mut self,
        rows: &mut Overlay<'_, R>,
        change: &ForeignChange,
    ) -> Result<(), ImportError> {
        let ForeignChange { at, key, put } = change;
        if key.is_empty() {
            return Err(ImportError::Impossible("a key is empty"));
        }
        if at.main < 1 || at.main == i64::MAX || self.last.is_some_and(|last| *at <= last) {
            return Err(ImportError::Impossible("revisions are out of order"));
        }
        self.last = Some(*at);
        let state = put.as_ref().map(|put| State {
            create_revision: put.create_revision,
            version: put.version,
            lease: put.lease,
            value: &put.value,
        });
        if let Some(state) = &state
            && (!(1..=at.main).contains(&state.create_revision) || state.version < 1)
        {
            return Err(ImportError::Impossible("a key has an impossible revision or version"));
        }
        let newest = self.head.revision.max(at.main);
        let before = Before::load(rows, key)?;
        let mut events = Events::default();
        Change::begin(rows, &mut self.head, &mut events)?.adopt(*at, key, &before, state)?;
        self.head.revision = newest;
        Ok(())
    }

    /// Imports a lease. Which keys are attached to it is part of the keys' changes.
    ///
    /// # Errors
    /// [`ImportError`].
    pub fn lease<R: Read>(
        &mut self,
        rows: &mut Overlay<'_, R>,
        id: i64,
        ttl: i64,
    ) -> Result<(), ImportError> {
        if id == 0 || !(1..=TTL_SECONDS_MAX).contains(&ttl) || leases::lease(rows, id)?.is_some() {
            return Err(ImportError::Impossible("a lease has an impossible id or TTL"));
        }
        leases::create(rows, &mut self.head, id, &LeaseRow { ttl, ..LeaseRow::default() });
        Ok(())
    }

    /// Imports an active alarm.
    pub fn alarm(&mut self, member: u64, kind: AlarmKind) {
        let alarms = &mut self.head.alarms;
        if let Err(place) = alarms.binary_search(&(member, kind)) {
            alarms.insert(place, (member, kind));
        }
    }

    /// Imports a user with the hash of its password; roles may be in any order.
    ///
    /// # Errors
    /// [`ImportError::Impossible`] if the name is empty.
    pub fn user<R: Read>(
        &mut self,
        rows: &mut Overlay<'_, R>,
        name: &str,
        user: UserRow,
    ) -> Result<(), ImportError> {
        if name.is_empty() {
            return Err(ImportError::Impossible("a user has no name"));
        }
        auth::adopt_user(rows, name, user);
        Ok(())
    }

    /// Imports a role; permissions may be in any order. Returns how many of them were left out:
    /// etcd up to 3.5 accepts a permission without a key, or one whose range ends before it begins,
    /// which grants nothing there and could not be granted here.
    ///
    /// # Errors
    /// [`ImportError::Impossible`] if the name is empty.
    pub fn role<R: Read>(
        &mut self,
        rows: &mut Overlay<'_, R>,
        name: &str,
        role: RoleRow,
    ) -> Result<usize, ImportError> {
        if name.is_empty() {
            return Err(ImportError::Impossible("a role has no name"));
        }
        Ok(auth::adopt_role(rows, name, role))
    }

    /// Imports whether authentication is enabled, and the auth revision.
    pub fn auth(&mut self, enabled: bool, revision: u64) {
        self.head.auth = AuthHead { enabled, revision: revision.max(1) };
    }

    /// Writes the counters, which reflect what was imported so far.
    pub fn finish<R: Read>(&self, rows: &mut Overlay<'_, R>) {
        self.head.write(rows);
    }
}
