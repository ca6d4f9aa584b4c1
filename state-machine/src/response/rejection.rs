//! How a command ends without an answer: refused, or because this node must stop.

/// Why a command or read was refused. Computed alike by every replica; goes to the client.
///
/// The texts are etcd's, byte for byte, without the `etcdserver: ` prefix where etcd adds it
/// (server/src/status/fault.rs maps variants to codes and full texts).
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
    /// A holder that is not alone cannot ask for more, and requests that share a place cannot change it.
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
    /// What the session registered is gone, or the id is another's by now.
    #[error("the instance was taken over or removed")]
    InstanceReplaced,
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
