//! Reads snapshots of etcd (3.4 to 3.7): the meaning of its buckets, and their conversion to rows.
//!
//! | bucket | what is imported |
//! |---|---|
//! | `key` | every change that is not compacted, with revision, version and lease |
//! | `meta` | the compacted revision; the storage version, for display |
//! | `lease` | leases with their TTL, which starts anew |
//! | `alarm` | active alarms |
//! | `auth`, `authUsers`, `authRoles` | users with their password hashes, roles, whether auth is enabled |
//! | `members`, `members_removed`, `cluster` | nothing: the members are new |
//! | `conclave` | in a backup of ours, exactly as saved: everything that etcd has no place for (`own`) |

use std::collections::BTreeMap;
use std::fs::File;
use std::io;

use bytes::Bytes;
use conclave_proto::authpb;
use conclave_proto::etcdserverpb::AlarmMember;
use conclave_proto::internal::BackupMeta;
use conclave_proto::mvccpb::KeyValue;
use conclave_state_machine::auth::{RoleRow, UserRow};
use conclave_state_machine::command::{AlarmKind, Permission, PermissionKind};
use conclave_state_machine::import::{ForeignChange, ForeignPut, Import, ImportError};
use conclave_state_machine::overlay::Overlay;
use conclave_state_machine::revision::Revision;
use prost::Message;

use super::bolt::{Bolt, Bucket, Element};
use super::format::damaged;
use super::{BackupStatus, OnProgress, own};
use crate::engine::{Rows, halt_to_io};

/// Names of buckets.
pub(super) const KEYS: &str = "key";
pub(super) const META: &str = "meta";
pub(super) const LEASES: &str = "lease";
pub(super) const ALARMS: &str = "alarm";
pub(super) const AUTH: &str = "auth";
pub(super) const USERS: &str = "authUsers";
pub(super) const ROLES: &str = "authRoles";
/// Keys of `meta`.
pub(super) const COMPACTION_BEGUN: &str = "scheduledCompactRev";
pub(super) const COMPACTION_DONE: &str = "finishedCompactRev";
/// Keys of `auth`.
pub(super) const AUTH_ENABLED: &str = "authEnabled";
pub(super) const AUTH_REVISION: &str = "authRevision";
/// Most changes to write in one batch.
const BATCH_CHANGES_MAX: usize = 1_000;
/// Bytes of changes after which a batch is written.
const BATCH_BYTES_MAX: usize = 4 << 20;
/// Length of a revision as a key: main, `_`, sub; a deletion has one byte more.
const REVISION_BYTES: usize = 17;
const TOMBSTONE: u8 = b't';

/// An open snapshot.
#[derive(Debug)]
pub(super) struct EtcdSnapshot {
    bolt: Bolt,
    buckets: BTreeMap<Vec<u8>, Bucket>,
    own: Option<Box<BackupMeta>>,
}

/// A lease as etcd stores it.
#[derive(Clone, PartialEq, Message)]
pub(super) struct StoredLease {
    #[prost(int64, tag = "1")]
    pub(super) id: i64,
    #[prost(int64, tag = "2")]
    pub(super) ttl: i64,
}

impl EtcdSnapshot {
    /// Opens a file; `None` if it is not a bbolt database.
    pub(super) fn open(file: File, bytes: u64) -> io::Result<Option<Self>> {
        let Some(bolt) = Bolt::open(file, bytes)? else { return Ok(None) };
        let buckets = bolt.buckets()?;
        if !buckets.contains_key(KEYS.as_bytes()) {
            return Err(damaged("it is a bbolt database without etcd's keys"));
        }
        let own = own::summary(&bolt, &buckets)?;
        Ok(Some(Self { bolt, buckets, own }))
    }

    /// The metadata of our backup, if this is one.
    pub(super) fn own(&self) -> Option<&BackupMeta> {
        self.own.as_deref()
    }

    /// Bytes of its pages in use.
    pub(super) fn bytes(&self) -> u64 {
        self.bolt.bytes()
    }

    pub(super) fn find(&self, bucket: &str, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        match self.buckets.get(bucket.as_bytes()) {
            Some(bucket) => self.bolt.find(bucket, key),
            None => Ok(None),
        }
    }

    pub(super) fn visit(
        &self,
        bucket: &str,
        visit: &mut dyn FnMut(Element<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        match self.buckets.get(bucket.as_bytes()) {
            Some(bucket) => self.bolt.visit(bucket, visit),
            None => Ok(()),
        }
    }

    fn value(&self, bucket: &str, key: &str) -> io::Result<Option<Vec<u8>>> {
        self.find(bucket, key.as_bytes())
    }

    /// Reads everything. Hash and number of keys are computed as etcdutl does: over the names of
    /// all buckets, and over all their keys and values.
    pub(super) fn status(&self) -> io::Result<BackupStatus> {
        let (mut hash, mut keys, mut revision) = (0, 0, 0);
        for (name, bucket) in &self.buckets {
            hash = crc32c::crc32c_append(hash, name);
            self.bolt.visit(bucket, &mut |Element { key, value, .. }| {
                hash = crc32c::crc32c_append(crc32c::crc32c_append(hash, key), value);
                keys += 1;
                if name == KEYS.as_bytes() {
                    revision = stored_revision(key)?.0.main;
                }
                Ok(())
            })?;
        }
        let version = self.value(META, "storageVersion")?.unwrap_or_default();
        let version = match &self.own {
            Some(own) => format!("conclave {}", own.version),
            None => String::from_utf8_lossy(&version).into_owned(),
        };
        Ok(BackupStatus { hash, revision, keys, bytes: self.bolt.bytes(), version })
    }

    /// Imports everything into an empty store, except permissions that cover no keys. Returns the
    /// roles that had such permissions.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] if the content is impossible; otherwise any error of the
    /// system.
    pub(super) fn import(
        &self,
        rows: &Rows,
        on_progress: OnProgress<'_>,
    ) -> io::Result<Vec<String>> {
        let mut import = Import::new(self.compacted()?);
        let mut batch = Batch { rows, changes: Vec::new(), bytes: 0 };
        let (mut done, total) = (0, self.bolt.bytes());
        self.visit(KEYS, &mut |Element { key, value, .. }| {
            batch.push(change(key, value)?);
            done += (key.len() + value.len()) as u64;
            if batch.is_full() {
                on_progress(done.min(total), total);
                batch.write(&mut import)?;
            }
            Ok(())
        })?;
        batch.write(&mut import)?;
        let mut overlay = Overlay::new(rows);
        self.visit(LEASES, &mut |element| {
            let lease = decode::<StoredLease>(element.value, "a lease")?;
            import.lease(&mut overlay, lease.id, lease.ttl).map_err(import_error)?;
            if overlay.len() >= BATCH_CHANGES_MAX {
                let full = std::mem::replace(&mut overlay, Overlay::new(rows));
                rows.write(&mut full.into_writes())?;
            }
            Ok(())
        })?;
        self.visit(ALARMS, &mut |element| {
            let alarm = decode::<AlarmMember>(element.key, "an alarm")?;
            let kind = u8::try_from(alarm.alarm).ok().and_then(AlarmKind::from_number);
            let kind = kind.filter(|kind| *kind != AlarmKind::None);
            import.alarm(alarm.member_id, kind.ok_or_else(|| damaged("an alarm is unknown"))?);
            Ok(())
        })?;
        let reduced = self.import_auth(&mut import, &mut overlay)?;
        import.finish(&mut overlay);
        rows.write(&mut overlay.into_writes())?;
        Ok(reduced)
    }

    /// The revision up to which history was compacted, or is being compacted.
    fn compacted(&self) -> io::Result<Option<i64>> {
        let mut compacted = None;
        for name in [COMPACTION_BEGUN, COMPACTION_DONE] {
            if let Some(stored) = self.value(META, name)? {
                compacted = compacted.max(Some(stored_revision(&stored)?.0.main));
            }
        }
        Ok(compacted)
    }

    /// Imports users and roles. Returns the roles whose permissions were reduced.
    fn import_auth(
        &self,
        import: &mut Import,
        rows: &mut Overlay<'_, Rows>,
    ) -> io::Result<Vec<String>> {
        let mut reduced = Vec::new();
        self.visit(ROLES, &mut |element| {
            let role = decode::<authpb::Role>(element.value, "a role")?;
            let permissions = role.key_permission.into_iter().map(permission);
            let permissions = permissions.collect::<io::Result<_>>()?;
            let name = text(&role.name)?;
            let role = import.role(rows, &name, RoleRow { permissions });
            if role.map_err(import_error)? > 0 {
                reduced.push(name);
            }
            Ok(())
        })?;
        self.visit(USERS, &mut |element| {
            let user = decode::<authpb::User>(element.value, "a user")?;
            let row = UserRow {
                password_hash: user.password,
                no_password: user.options.is_some_and(|options| options.no_password),
                roles: user.roles,
                ..UserRow::default()
            };
            import.user(rows, &text(&user.name)?, row).map_err(import_error)
        })?;
        let enabled = self.value(AUTH, AUTH_ENABLED)?.is_some_and(|value| value == [1]);
        let revision = self.value(AUTH, AUTH_REVISION)?;
        let revision =
            revision.and_then(|bytes| bytes.try_into().ok()).map_or(1, u64::from_be_bytes);
        import.auth(enabled, revision);
        Ok(reduced)
    }
}

fn permission(stored: authpb::Permission) -> io::Result<Permission> {
    let kind = u8::try_from(stored.perm_type).ok().and_then(PermissionKind::from_number);
    let kind = kind.ok_or_else(|| damaged("a permission is unknown"))?;
    Ok(Permission { kind, key: stored.key, range_end: stored.range_end })
}

fn text(name: &[u8]) -> io::Result<String> {
    String::from_utf8(name.to_vec()).map_err(|_| damaged("the name of a user or role is not UTF-8"))
}

/// Changes that are written together.
struct Batch<'a> {
    rows: &'a Rows,
    changes: Vec<ForeignChange>,
    bytes: usize,
}

impl Batch<'_> {
    fn push(&mut self, change: ForeignChange) {
        let value_bytes = change.put.as_ref().map_or(0, |put| put.value.len());
        self.bytes += change.key.len() + value_bytes;
        self.changes.push(change);
    }

    fn is_full(&self) -> bool {
        self.changes.len() >= BATCH_CHANGES_MAX || self.bytes >= BATCH_BYTES_MAX
    }

    fn write(&mut self, import: &mut Import) -> io::Result<()> {
        let mut overlay = Overlay::new(self.rows);
        for change in self.changes.drain(..) {
            import.change(&mut overlay, &change).map_err(import_error)?;
        }
        self.bytes = 0;
        self.rows.write(&mut overlay.into_writes())
    }
}

/// Decodes an element of the bucket `key`.
pub(super) fn change(key: &[u8], value: &[u8]) -> io::Result<ForeignChange> {
    let (at, is_tombstone) = stored_revision(key)?;
    let kv = decode::<KeyValue>(value, "a key")?;
    if is_tombstone {
        return Ok(ForeignChange { at, key: kv.key, put: None });
    }
    if kv.mod_revision != at.main {
        return Err(damaged("a key is stored at another revision than its own"));
    }
    let put = ForeignPut {
        create_revision: kv.create_revision,
        version: kv.version,
        lease: kv.lease,
        value: kv.value,
    };
    Ok(ForeignChange { at, key: kv.key, put: Some(put) })
}

/// Encodes a revision as a key of the database.
pub(super) fn stored_key(at: Revision, is_deletion: bool) -> Vec<u8> {
    let mut key = Vec::with_capacity(REVISION_BYTES + 1);
    key.extend_from_slice(&at.main.to_be_bytes());
    key.push(b'_');
    key.extend_from_slice(&u64::from(at.sub).to_be_bytes());
    key.extend(is_deletion.then_some(TOMBSTONE));
    key
}

/// Decodes a revision from a key of the database; also tells whether it is that of a deletion.
fn stored_revision(bytes: &[u8]) -> io::Result<(Revision, bool)> {
    let revision = || {
        let (revision, rest) = bytes.split_at_checked(REVISION_BYTES)?;
        let is_tombstone = rest == [TOMBSTONE];
        let main = i64::from_be_bytes(revision[..8].try_into().ok()?);
        let sub = u64::from_be_bytes(revision[9..].try_into().ok()?);
        let revision = Revision { main, sub: u32::try_from(sub).ok()? };
        (main >= 0 && (is_tombstone || rest.is_empty())).then_some((revision, is_tombstone))
    };
    revision().ok_or_else(|| damaged("a revision has no meaning"))
}

fn decode<M: Message + Default>(bytes: &[u8], what: &str) -> io::Result<M> {
    // Copied once, so that decoded fields are slices of this copy and not of the page.
    M::decode(Bytes::copy_from_slice(bytes)).map_err(|_| damaged(&format!("{what} has no meaning")))
}

fn import_error(error: ImportError) -> io::Error {
    match error {
        ImportError::Impossible(reason) => damaged(reason),
        ImportError::Halt(halt) => halt_to_io(halt),
    }
}
