//! Changes of keys at their revisions, and why a key was deleted.

use bytes::Bytes;

/// One key at one revision (etcd `KeyValue`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyValue {
    /// Key.
    pub key: Bytes,
    /// Revision of the put that (re)created the key.
    pub create_revision: i64,
    /// Revision of the last change.
    pub mod_revision: i64,
    /// Puts since creation, from 1.
    pub version: i64,
    /// Value.
    pub value: Bytes,
    /// Attached lease, 0 for none.
    pub lease: i64,
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// New state; for a delete only `key` and `mod_revision` are set.
    pub kv: KeyValue,
    /// Previous state; `None` for a creation, or if it was left out for lack of room.
    pub prev_kv: Option<KeyValue>,
}

/// Kinds of events; the numbers are durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum EventKind {
    /// The key was written.
    Put = 0,
    /// The key was deleted.
    Delete = 1,
}

/// Why a key was deleted; the numbers are durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Cause {
    /// A client deleted it.
    #[default]
    Deleted = 0,
    /// The instance was deregistered by its owner.
    Deregistered = 1,
    /// Its lease expired.
    SessionExpired = 2,
    /// Its lease was revoked.
    SessionEnded = 3,
    /// The instance was critical for too long.
    CriticalTooLong = 4,
    /// The instance's time to drain was over.
    Drained = 5,
    /// The instance was deregistered by somebody other than its owner.
    Admin = 6,
}

impl Cause {
    /// All causes, in the order of their numbers.
    pub const ALL: [Cause; 7] = [
        Cause::Deleted,
        Cause::Deregistered,
        Cause::SessionExpired,
        Cause::SessionEnded,
        Cause::CriticalTooLong,
        Cause::Drained,
        Cause::Admin,
    ];

    /// The durable number.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Cause::Deleted => 0,
            Cause::Deregistered => 1,
            Cause::SessionExpired => 2,
            Cause::SessionEnded => 3,
            Cause::CriticalTooLong => 4,
            Cause::Drained => 5,
            Cause::Admin => 6,
        }
    }

    /// The inverse of [`Cause::number`].
    #[must_use]
    pub fn from_number(number: u8) -> Option<Cause> {
        Cause::ALL.into_iter().find(|cause| cause.number() == number)
    }
}
