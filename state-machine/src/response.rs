//! What a command answers, and what it changed.

use bytes::Bytes;

use crate::command::{AlarmKind, MemberRecord};
use crate::registry::index::ServiceRow;

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
    /// State before, `None` for a creation.
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
    /// Somebody deleted it.
    #[default]
    Deleted = 0,
    /// The owner, or an operator, took the instance out of the registry.
    Deregistered = 1,
    /// Its lease expired.
    SessionExpired = 2,
    /// Its lease was revoked.
    SessionEnded = 3,
    /// The instance was critical for too long.
    CriticalTooLong = 4,
    /// The instance had the time to drain that it was given.
    Drained = 5,
}

impl Cause {
    /// All causes, in the order of their numbers.
    pub const ALL: [Cause; 6] = [
        Cause::Deleted,
        Cause::Deregistered,
        Cause::SessionExpired,
        Cause::SessionEnded,
        Cause::CriticalTooLong,
        Cause::Drained,
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
        }
    }

    /// Reads back what [`Cause::number`] gave.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Cause> {
        Cause::ALL.into_iter().find(|cause| cause.number() == number)
    }
}

/// The outcome of one command with everything it changed.
#[derive(Clone, Debug)]
pub struct Applied {
    /// Answer for the client; equal on every replica.
    pub outcome: Result<Response, Rejection>,
    /// Store revision after the command.
    pub revision: i64,
    /// Changes in (revision, sub-revision) order. One command may span several revisions
    /// (`LeaseExpire`); each event's revision is its `kv.mod_revision`.
    pub events: Vec<Event>,
    /// Leases that began or ended.
    pub leases: Vec<LeaseChange>,
}

/// A lease that began or ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseChange {
    /// The lease exists from now on.
    Granted {
        /// Lease id.
        id: i64,
        /// Seconds.
        ttl: i64,
    },
    /// The lease and its keys are gone.
    Ended {
        /// Lease id.
        id: i64,
    },
}

/// Answer of a command that took effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Response {
    /// Of [`crate::command::Put`].
    Put(PutResponse),
    /// Of [`crate::command::DeleteRange`].
    DeleteRange(DeleteRangeResponse),
    /// Of [`crate::command::Txn`].
    Txn(TxnResponse),
    /// Of [`crate::command::Compact`].
    Compact {
        /// [`crate::head::Head::digest`] at this place of the log.
        digest: u64,
    },
    /// Of [`crate::command::LeaseGrant`].
    LeaseGrant {
        /// Lease id.
        id: i64,
        /// Seconds.
        ttl: i64,
    },
    /// Of [`crate::command::LeaseRevoke`].
    LeaseRevoke,
    /// Of [`crate::command::LeaseExpire`]: how many leases ended.
    LeaseExpire {
        /// Leases that ended; 0 when the term had changed.
        ended: usize,
    },
    /// Of [`crate::command::AlarmChange`]: the alarms it touched or listed, as (member, kind).
    Alarm(Vec<(u64, AlarmKind)>),
    /// Of [`crate::command::Command::MemberPublish`].
    MemberPublish(MemberRecord),
    /// Of [`crate::command::SessionBegin`].
    SessionBegin {
        /// Lease id.
        id: i64,
        /// Seconds.
        ttl: i64,
    },
    /// Of [`crate::command::LockCommand`].
    Lock(LockResponse),
    /// Of [`crate::command::GuardedTxn`]: `None` if a guard is not held, so that nothing happened.
    GuardedTxn(Option<TxnResponse>),
    /// Of [`crate::command::AuthCommand`].
    Auth(AuthChange),
    /// Of [`crate::command::Primitive`].
    Primitive(PrimitiveResponse),
    /// Of [`crate::command::RegistryCommand`].
    Registry(RegistryResponse),
    /// Of [`crate::command::Write`].
    Write(WriteResponse),
}

/// Answer of a write that may come again: the same each time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriteResponse {
    /// Revision as of which it is so.
    pub revision: i64,
    /// What became of it.
    pub answer: WriteAnswer,
}

/// What became of a write that may come again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteAnswer {
    /// A guard was not held, and nothing happened.
    NotHeld,
    /// It was carried out.
    Done(TxnResponse),
    /// It was carried out when it came first, and its answer was too large to be kept.
    Unkept,
    /// It is not carried out: whether it was before is not known any more.
    Forgotten,
}

/// Answer of a change of a counter, latch, barrier or group, or of an instance. A session remembers it for
/// repetitions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrimitiveResponse {
    /// Whether there was something to do; of one who enters a double barrier, whether it is in; of an instance
    /// that registers, whether there was none.
    pub is_done: bool,
    /// The number of a counter or latch, the fence of a barrier, participant, member or instance; of one who leaves
    /// a double barrier, the fence up to which others are waited for.
    pub number: i64,
    /// Revision of the last change of the key.
    pub revision: i64,
}

/// What a command changed about users; what members keep in memory follows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuthChange {
    /// Nothing; it was so already.
    Nothing,
    /// Users, roles or permissions.
    Changed,
    /// Every call needs a user from now on.
    Enabled,
    /// No call needs a user any more; all tokens are void.
    Disabled,
    /// The tokens of a user are void: it has another password, or is no more.
    TokensVoid {
        /// Name of the user.
        user: String,
    },
    /// A token is valid from now on.
    Token {
        /// Name of the user.
        user: String,
        /// Hash of the token.
        fingerprint: Bytes,
        /// Log index of the command.
        index: u64,
    },
}

/// Answer of a command of the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegistryResponse {
    /// Of a registration.
    Registered {
        /// Create revision of the instance's key.
        fence: i64,
        /// Revision of its last change.
        mod_revision: i64,
        /// There was none with this id.
        is_new: bool,
    },
    /// Of an update, or the result of a check.
    Updated {
        /// Create revision of the instance's key.
        fence: i64,
        /// Revision of its last change.
        mod_revision: i64,
    },
    /// Of a deregistration.
    Removed {
        /// Whether there was something to remove.
        was_there: bool,
    },
    /// Of what was due: how many instances it was true of.
    Settled {
        /// Instances.
        done: usize,
    },
    /// Of switches of a service: what is kept about it now.
    Configured(ServiceRow),
}

/// Answer of a command that changes queues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LockResponse {
    /// Of an acquisition or conversion.
    Places {
        /// How it stands.
        state: LockState,
        /// The places, in the order of the names; none if nothing is taken.
        taken: Vec<Taken>,
    },
    /// Of a release.
    Released {
        /// Whether there was something to give up.
        was_held: bool,
    },
    /// Of a break: what was taken away. Of a hand-over: who is next.
    Broken(Vec<Taken>),
}

/// How a request for locks stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockState {
    /// All places hold.
    Held,
    /// At least one has to wait.
    Queued,
    /// At least one would have to wait, and the request may not: nothing is taken.
    Busy,
    /// The request was given up, or one of several places was broken: nothing is taken.
    Cancelled,
}

/// One place in a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Name of the lock.
    pub name: Bytes,
    /// Key of the place.
    pub key: Bytes,
    /// Its fencing token: the create revision of the key.
    pub fence: i64,
}

/// Answer of a put. The revision is in the surrounding [`Applied`] or [`TxnResponse`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PutResponse {
    /// Present when asked for and the key existed.
    pub prev_kv: Option<KeyValue>,
}

/// Answer of a range delete.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeleteRangeResponse {
    /// Keys deleted.
    pub deleted: i64,
    /// Filled when asked for.
    pub prev_kvs: Vec<KeyValue>,
}

/// Answer of a range read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeResponse {
    /// Found key-values, cut to the limit.
    pub kvs: Vec<KeyValue>,
    /// There is more than the limit let through.
    pub more: bool,
    /// Live keys in the range, whatever the limit and filters.
    pub count: i64,
}

/// Answer of a transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TxnResponse {
    /// Whether all compares held.
    pub succeeded: bool,
    /// One answer for each operation of the branch taken, with the store revision after it.
    pub responses: Vec<(i64, OpResponse)>,
}

/// Answer of one operation of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpResponse {
    /// Of a read.
    Range(RangeResponse),
    /// Of a write.
    Put(PutResponse),
    /// Of a delete.
    DeleteRange(DeleteRangeResponse),
    /// Of a nested transaction.
    Txn(TxnResponse),
}

/// Why a command or read was refused. Computed alike by every replica; goes to the client.
///
/// The texts are etcd's, byte for byte, without the `etcdserver: ` prefix where etcd adds it
/// (server/src/status.rs maps variants to codes and full texts).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// The key is empty.
    #[error("key is not provided")]
    EmptyKey,
    /// `ignore_value` or `ignore_lease` on a missing key, or an empty operation.
    #[error("key not found")]
    KeyNotFound,
    /// `ignore_value` with a value.
    #[error("value is provided")]
    ValueProvided,
    /// `ignore_lease` with a lease.
    #[error("lease is provided")]
    LeaseProvided,
    /// One transaction touches a key twice.
    #[error("duplicate key given in txn request")]
    DuplicateKey,
    /// More operations than allowed.
    #[error("too many operations in txn request")]
    TooManyOps,
    /// Unknown sort order or target.
    #[error("invalid sort option")]
    InvalidSort,
    /// The revision is older than the compacted one.
    #[error("mvcc: required revision has been compacted")]
    Compacted,
    /// The revision does not exist yet.
    #[error("mvcc: required revision is a future revision")]
    FutureRevision,
    /// No such lease.
    #[error("requested lease not found")]
    LeaseNotFound,
    /// The lease id is taken.
    #[error("lease already exists")]
    LeaseExists,
    /// TTL above 9,000,000,000 s.
    #[error("too large lease TTL")]
    LeaseTtlTooLarge,
    /// A NOSPACE alarm is active.
    #[error("mvcc: database space exceeded")]
    NoSpace,
    /// A CORRUPT alarm is active.
    #[error("corrupt cluster")]
    Corrupt,
    /// The request has no place that holds.
    #[error("lock is not held")]
    LockNotHeld,
    /// A holder that is not alone cannot ask for more.
    #[error("lock has other holders")]
    LockShared,
    /// The request comes after a later one that makes it void.
    #[error("a later request came first")]
    Overtaken,
    /// The number would not fit.
    #[error("the sum does not fit 64 bits")]
    Overflow,
    /// Nobody created the latch.
    #[error("no such latch")]
    NoLatch,
    /// What is there forbids it.
    #[error("{0}")]
    Refused(&'static str),
    /// A request for a lock or session breaks a rule.
    #[error("{0}")]
    InvalidLock(&'static str),
    /// A client did not say who it is, or a name is missing.
    #[error("user name is empty")]
    UserEmpty,
    /// A name is missing.
    #[error("role name is empty")]
    RoleEmpty,
    /// The user may not.
    #[error("permission denied")]
    PermissionDenied,
    /// Users or roles changed since the caller's name was verified.
    #[error("revision of auth store is old")]
    AuthOldRevision,
    /// What would leave nobody in charge, or a permission for no keys.
    #[error("invalid auth management")]
    InvalidAuthManagement,
    /// A grant of nothing.
    #[error("permission not given")]
    PermissionNotGiven,
    /// Auth cannot be enabled without this user.
    #[error("root user does not exist")]
    RootUserNotExist,
    /// Auth cannot be enabled while the root user lacks this role.
    #[error("root user does not have root role")]
    RootRoleNotExist,
    /// The name is taken.
    #[error("user name already exists")]
    UserExists,
    /// No such user.
    #[error("user name not found")]
    UserNotFound,
    /// The name is taken.
    #[error("role name already exists")]
    RoleExists,
    /// No such role.
    #[error("role name not found")]
    RoleNotFound,
    /// The user does not have the role.
    #[error("role is not granted to the user")]
    RoleNotGranted,
    /// The role does not have the permission.
    #[error("permission is not granted to the role")]
    PermissionNotGranted,
    /// There are no tokens while nobody needs them.
    #[error("authentication is not enabled")]
    AuthNotEnabled,
    /// A request to the registry breaks a rule.
    #[error("{0}")]
    InvalidInstance(&'static str),
    /// There is no such instance.
    #[error("instance not found")]
    InstanceNotFound,
    /// The instance is another's, or has changed.
    #[error("{0}")]
    InstanceTaken(&'static str),
    /// A field holds a value that no known client sends.
    #[error("malformed command: {0}")]
    Malformed(&'static str),
}

/// Why this node must stop: its storage failed or holds what cannot be. Never goes to a client.
#[derive(Debug, thiserror::Error)]
pub enum Halt {
    /// The storage below failed.
    #[error("storage failed: {0}")]
    Storage(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A stored row does not decode or contradicts another.
    #[error("corrupt {table} row: {detail}")]
    CorruptRow {
        /// Table of the row.
        table: &'static str,
        /// What is wrong with it.
        detail: String,
    },
}
