//! The commands of the log: plain data, chosen by the proposer, equal on every replica.
//!
//! They follow etcd's requests in form. They were validated before they were proposed; `apply`
//! still treats every field as untrusted and never panics on it.

mod auth;
mod lock;
mod primitive;
mod registry;
mod write;

use bytes::Bytes;

pub use auth::{
    AuthCommand, Caller, Permission, PermissionKind, RoleGrant, RoleRevoke, TokenIssue, UserAdd,
    UserChangePassword, UserName, UserRole,
};
pub use lock::{
    Campaign, Guard, GuardedTxn, HandOver, Leave, LockAcquire, LockBreak, LockCommand, LockConvert,
    LockRelease, SessionBegin,
};
pub use primitive::{Action, Condition, Once, Primitive};
pub use registry::{
    CheckResult, Configure, Deregister, Former, InstanceUpdate, Register, RegisterMode,
    RegistryCommand, Settle, SettleItem, Settlement,
};
pub use write::{Write, WriteId};

/// One command of a log entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Writes one key.
    Put(Put),
    /// Deletes a range of keys.
    DeleteRange(DeleteRange),
    /// Evaluates compares, then runs one of two lists of operations, all at one revision.
    Txn(Txn),
    /// Forgets history before a revision.
    Compact(Compact),
    /// Creates a lease.
    LeaseGrant(LeaseGrant),
    /// Ends a lease and deletes its keys.
    LeaseRevoke(LeaseRevoke),
    /// Ends many leases that the leader of one term saw expire.
    LeaseExpire(LeaseExpire),
    /// Raises or clears an alarm.
    Alarm(AlarmChange),
    /// Records a member's name and URLs.
    MemberPublish(MemberRecord),
    /// Creates a lease that has an owner.
    SessionBegin(SessionBegin),
    /// Changes the queues of locks and elections.
    Lock(LockCommand),
    /// A transaction that runs only while locks are held.
    GuardedTxn(GuardedTxn),
    /// Changes a counter, latch, barrier or group.
    Primitive(Primitive),
    /// Changes users, roles and permissions.
    Auth(AuthCommand),
    /// Changes instances of services.
    Registry(RegistryCommand),
    /// A transaction that may be retried and takes effect once.
    Write(Write),
}

/// Writes one key (etcd `PutRequest`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Put {
    /// Key, not empty.
    pub key: Bytes,
    /// New value; empty with `ignore_value`.
    pub value: Bytes,
    /// Lease to attach, 0 for none.
    pub lease: i64,
    /// Return the previous key-value.
    pub prev_kv: bool,
    /// Keep the present value; the key must exist.
    pub ignore_value: bool,
    /// Keep the present lease; the key must exist.
    pub ignore_lease: bool,
}

/// Deletes `[key, range_end)` (etcd `DeleteRangeRequest`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeleteRange {
    /// First key.
    pub key: Bytes,
    /// Empty: only `key`; `"\0"`: all keys from `key`.
    pub range_end: Bytes,
    /// Return the deleted key-values.
    pub prev_kv: bool,
}

/// Reads `[key, range_end)` (etcd `RangeRequest`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// First key.
    pub key: Bytes,
    /// Empty: only `key`; `"\0"`: all keys from `key`.
    pub range_end: Bytes,
    /// Maximum number of keys to return; 0 or below for no limit.
    pub limit: i64,
    /// Revision to read at, 0 or below for the current one.
    pub revision: i64,
    /// Direction.
    pub sort_order: SortOrder,
    /// Field to sort by.
    pub sort_target: SortTarget,
    /// Return keys without values.
    pub keys_only: bool,
    /// Return only the count.
    pub count_only: bool,
    /// Inclusive bounds on the mod revision, 0 for none.
    pub min_mod_revision: i64,
    /// See `min_mod_revision`.
    pub max_mod_revision: i64,
    /// Inclusive bounds on the create revision, 0 for none.
    pub min_create_revision: i64,
    /// See `min_create_revision`.
    pub max_create_revision: i64,
}

/// Direction of a sorted range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SortOrder {
    /// As stored (key order), with etcd's quirk for other targets.
    #[default]
    None,
    /// Smallest first.
    Ascend,
    /// Largest first.
    Descend,
}

/// Field a range is sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SortTarget {
    /// Key bytes.
    #[default]
    Key,
    /// Number of puts since creation.
    Version,
    /// Create revision.
    Create,
    /// Mod revision.
    Mod,
    /// Value bytes.
    Value,
}

/// Compares, then `success` or `failure` (etcd `TxnRequest`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// All must hold.
    pub compare: Vec<Compare>,
    /// Run when all compares hold.
    pub success: Vec<TxnOp>,
    /// Run otherwise.
    pub failure: Vec<TxnOp>,
}

/// One operation of a transaction branch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TxnOp {
    /// A read.
    Range(Range),
    /// A write.
    Put(Put),
    /// A delete.
    DeleteRange(DeleteRange),
    /// A nested transaction.
    Txn(Txn),
}

/// One condition on every key of a range (etcd `Compare`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compare {
    /// First key, not empty.
    pub key: Bytes,
    /// Empty: only `key`; `"\0"`: all keys from `key`.
    pub range_end: Bytes,
    /// Relation that must hold: stored `result` operand.
    pub result: CompareResult,
    /// Field and operand.
    pub target: CompareTarget,
}

/// Relation of a compare.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CompareResult {
    /// Stored field equals the operand.
    #[default]
    Equal,
    /// Stored field is greater.
    Greater,
    /// Stored field is less.
    Less,
    /// Stored field differs.
    NotEqual,
    /// A number that etcd does not know either. As there, such a compare holds wherever it is
    /// evaluated, which a value compare of a missing key is not.
    Unknown,
}

/// Field of a compare with its operand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CompareTarget {
    /// Number of puts since creation.
    Version(i64),
    /// Create revision.
    Create(i64),
    /// Mod revision.
    Mod(i64),
    /// Value bytes; never holds for a missing key.
    Value(Bytes),
    /// Attached lease.
    Lease(i64),
    /// A number that etcd does not know either. There the stored field counts as equal to the
    /// operand.
    Unknown,
}

/// Forgets history before the state at `revision`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compact {
    /// First revision that stays readable.
    pub revision: i64,
}

/// Creates a lease; id and TTL are final.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeaseGrant {
    /// Lease id, above 0.
    pub id: i64,
    /// Seconds.
    pub ttl: i64,
}

/// Ends a lease at a client's request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeaseRevoke {
    /// Lease id.
    pub id: i64,
}

/// Ends leases that the leader of `term` saw expire; a no-op when applied in another term.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeaseExpire {
    /// Term in which the expiry was decided.
    pub term: u64,
    /// Lease ids; unknown ones are skipped.
    pub ids: Vec<i64>,
    /// Log index at which each lease was granted, in the order of `ids`. A lease that was revoked
    /// and granted again since is skipped. 0 for a lease whose row says 0. Empty if the proposer
    /// did not look it up; then no lease is skipped for this reason.
    pub granted: Vec<u64>,
    /// Wall clock of the leader, in milliseconds; the registry dates losses by it.
    pub now_ms: i64,
    /// Whether instances that are lost together with most others of their service are kept for a
    /// while.
    pub is_guarded: bool,
    /// Whether losses of instances count as flaps.
    pub is_damping: bool,
}

/// Raises or clears an alarm, or lists alarms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AlarmChange {
    /// What to do.
    pub action: AlarmAction,
    /// Member the alarm is about. `Get` lists the alarms of all members.
    pub member: u64,
    /// Which alarm; `None` with `Get` for any.
    pub alarm: AlarmKind,
}

/// What an alarm command does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AlarmAction {
    /// Lists.
    #[default]
    Get,
    /// Raises.
    Activate,
    /// Clears.
    Deactivate,
}

/// Kinds of alarms; the numbers are etcd's and durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum AlarmKind {
    /// No particular kind.
    #[default]
    None = 0,
    /// The quota is used up: commands that grow the store are rejected.
    NoSpace = 1,
    /// Replicas differ: commands that change keys or leases are rejected.
    Corrupt = 2,
}

impl AlarmKind {
    /// etcd's number, which is also the durable one.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            AlarmKind::None => 0,
            AlarmKind::NoSpace => 1,
            AlarmKind::Corrupt => 2,
        }
    }

    /// The inverse of [`AlarmKind::number`].
    #[must_use]
    pub fn from_number(number: u8) -> Option<AlarmKind> {
        [AlarmKind::None, AlarmKind::NoSpace, AlarmKind::Corrupt]
            .into_iter()
            .find(|kind| kind.number() == number)
    }
}

/// A member's name and URLs as it published them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemberRecord {
    /// Member id.
    pub id: u64,
    /// Human name.
    pub name: String,
    /// URLs for other members.
    pub peer_urls: Vec<String>,
    /// URLs for clients.
    pub client_urls: Vec<String>,
}
