//! How a command fails: it was rejected, or this node must stop.

/// Why a command or read was rejected. Computed alike by every replica; returned to the client.
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
    /// The request has no queue entry that holds.
    #[error("lock is not held")]
    LockNotHeld,
    /// A holder that is not alone cannot ask for more, and requests that share an entry cannot
    /// change it.
    #[error("lock has other holders")]
    LockShared,
    /// A later request, which makes this one void, arrived first.
    #[error("a later request came first")]
    Overtaken,
    /// The sum would not fit.
    #[error("the sum does not fit 64 bits")]
    Overflow,
    /// The latch was never created.
    #[error("no such latch")]
    NoLatch,
    /// The present state does not allow it.
    #[error("{0}")]
    Refused(&'static str),
    /// A request for a lock or session breaks a rule.
    #[error("{0}")]
    InvalidLock(&'static str),
    /// The client is not authenticated, or a user name is missing.
    #[error("user name is empty")]
    UserEmpty,
    /// A role name is missing.
    #[error("role name is empty")]
    RoleEmpty,
    /// The user does not have the permission.
    #[error("permission denied")]
    PermissionDenied,
    /// Users or roles changed since the caller's name was verified.
    #[error("revision of auth store is old")]
    AuthOldRevision,
    /// A change that would leave no administrator, or a permission for an empty range of keys.
    #[error("invalid auth management")]
    InvalidAuthManagement,
    /// A grant without a permission.
    #[error("permission not given")]
    PermissionNotGiven,
    /// Auth cannot be enabled without this user.
    #[error("root user does not exist")]
    RootUserNotExist,
    /// Auth cannot be enabled while the root user lacks this role.
    #[error("root user does not have root role")]
    RootRoleNotExist,
    /// The user name is taken.
    #[error("user name already exists")]
    UserExists,
    /// No such user.
    #[error("user name not found")]
    UserNotFound,
    /// The role name is taken.
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
    /// Tokens are not issued while authentication is disabled.
    #[error("authentication is not enabled")]
    AuthNotEnabled,
    /// A request to the registry breaks a rule.
    #[error("{0}")]
    InvalidInstance(&'static str),
    /// There is no such instance.
    #[error("instance not found")]
    InstanceNotFound,
    /// The instance belongs to another session, or has changed.
    #[error("{0}")]
    InstanceTaken(&'static str),
    /// What the session registered was removed, or the id belongs to somebody else now.
    #[error("the instance was taken over or removed")]
    InstanceReplaced,
    /// A field holds a value that no known client sends.
    #[error("malformed command: {0}")]
    Malformed(&'static str),
}

/// Why this node must stop: its storage failed or holds something impossible. Never sent to a
/// client.
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
