//! etcd's error table: codes and texts, which are wire contract (etcd's
//! `api/v3rpc/rpctypes/error.go`), and the mapping from rejections to them.

use conclave_state_machine::response::Rejection;
use tonic::{Code, Status};

/// Declares [`Fault`] with the code and text of each variant.
macro_rules! faults {
    ($($(#[$doc:meta])* $name:ident: $code:ident, $text:literal;)*) => {
        /// An error with etcd's text. Errors of etcd's table that this server never answers are
        /// left out.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Fault {
            $($(#[$doc])* #[doc = concat!("`", $text, "`")] $name,)*
        }

        impl Fault {
            /// All faults, in table order.
            pub const ALL: &'static [Fault] = &[$(Fault::$name,)*];

            /// The code on the wire.
            pub const fn code(self) -> Code {
                match self { $(Fault::$name => Code::$code,)* }
            }

            /// The text on the wire.
            pub const fn text(self) -> &'static str {
                match self { $(Fault::$name => $text,)* }
            }
        }
    };
}

faults! {
    EmptyKey: InvalidArgument, "etcdserver: key is not provided";
    KeyNotFound: InvalidArgument, "etcdserver: key not found";
    ValueProvided: InvalidArgument, "etcdserver: value is provided";
    LeaseProvided: InvalidArgument, "etcdserver: lease is provided";
    TooManyOps: InvalidArgument, "etcdserver: too many operations in txn request";
    DuplicateKey: InvalidArgument, "etcdserver: duplicate key given in txn request";
    InvalidSortOption: InvalidArgument, "etcdserver: invalid sort option";
    MemberBadUrls: InvalidArgument, "etcdserver: given member URLs are invalid";
    RequestTooLarge: InvalidArgument, "etcdserver: request is too large";
    UserEmpty: InvalidArgument, "etcdserver: user name is empty";
    RoleEmpty: InvalidArgument, "etcdserver: role name is empty";
    AuthFailed: InvalidArgument, "etcdserver: authentication failed, invalid user ID or password";
    PermissionNotGiven: InvalidArgument, "etcdserver: permission not given";
    InvalidAuthManagement: InvalidArgument, "etcdserver: invalid auth management";
    AuthOldRevision: InvalidArgument, "etcdserver: revision of auth store is old";
    WrongDowngradeVersionFormat:
        InvalidArgument, "etcdserver: wrong downgrade target version format";
    InvalidDowngradeTarget: InvalidArgument, "etcdserver: invalid downgrade target version";

    Compacted: OutOfRange, "etcdserver: mvcc: required revision has been compacted";
    FutureRevision: OutOfRange, "etcdserver: mvcc: required revision is a future revision";
    LeaseTtlTooLarge: OutOfRange, "etcdserver: too large lease TTL";

    NoSpace: ResourceExhausted, "etcdserver: mvcc: database space exceeded";
    /// Code Unknown on the wire, as in etcd; Go's client derives the code from the text.
    TooManyRequests: Unknown, "etcdserver: too many requests";

    LeaseNotFound: NotFound, "etcdserver: requested lease not found";
    MemberNotFound: NotFound, "etcdserver: member not found";

    LeaseExists: FailedPrecondition, "etcdserver: lease already exists";
    PeerUrlExists: FailedPrecondition, "etcdserver: Peer URLs already exists";
    /// Code Unknown on the wire, as in etcd.
    MemberNotEnoughStarted:
        Unknown, "etcdserver: re-configuration failed due to not enough started members";
    MemberNotLearner: FailedPrecondition, "etcdserver: can only promote a learner member";
    LearnerNotReady: FailedPrecondition,
        "etcdserver: can only promote a learner member which is in sync with leader";
    TooManyLearners: FailedPrecondition, "etcdserver: too many learner members in cluster";
    RootUserNotExist: FailedPrecondition, "etcdserver: root user does not exist";
    RootRoleNotExist: FailedPrecondition, "etcdserver: root user does not have root role";
    UserExists: FailedPrecondition, "etcdserver: user name already exists";
    UserNotFound: FailedPrecondition, "etcdserver: user name not found";
    RoleExists: FailedPrecondition, "etcdserver: role name already exists";
    RoleNotFound: FailedPrecondition, "etcdserver: role name not found";
    RoleNotGranted: FailedPrecondition, "etcdserver: role is not granted to the user";
    PermissionNotGranted: FailedPrecondition, "etcdserver: permission is not granted to the role";
    AuthNotEnabled: FailedPrecondition, "etcdserver: authentication is not enabled";
    NotLeader: FailedPrecondition, "etcdserver: not leader";
    BadLeaderTransferee: FailedPrecondition, "etcdserver: bad leader transferee";
    ClusterVersionUnavailable:
        FailedPrecondition, "etcdserver: cluster version not found during downgrade";
    NoInflightDowngrade: FailedPrecondition, "etcdserver: no inflight downgrade job";

    PermissionDenied: PermissionDenied, "etcdserver: permission denied";
    InvalidAuthToken: Unauthenticated, "etcdserver: invalid auth token";

    NoLeader: Unavailable, "etcdserver: no leader";
    /// As in etcd before 3.5.13: the watches, leases and reads of Go clients older than that go on
    /// with another member only if the code says so. Newer ones go by the text.
    NotSupportedForLearner: Unavailable, "etcdserver: rpc not supported for learner";
    Stopped: Unavailable, "etcdserver: server stopped";
    Timeout: Unavailable, "etcdserver: request timed out";
    TimeoutLeaderFail:
        Unavailable, "etcdserver: request timed out, possibly due to previous leader failure";
    TimeoutConnectionLost:
        Unavailable, "etcdserver: request timed out, possibly due to connection lost";
    Unhealthy: Unavailable, "etcdserver: unhealthy cluster";
    Corrupt: DataLoss, "etcdserver: corrupt cluster";
}

impl From<Fault> for Status {
    fn from(fault: Fault) -> Self {
        Status::new(fault.code(), fault.text())
    }
}

/// The fault for a rejection; `None` for rejections that no etcd client can cause.
pub fn fault_of(rejection: &Rejection) -> Option<Fault> {
    Some(match rejection {
        Rejection::EmptyKey => Fault::EmptyKey,
        Rejection::KeyNotFound => Fault::KeyNotFound,
        Rejection::ValueProvided => Fault::ValueProvided,
        Rejection::LeaseProvided => Fault::LeaseProvided,
        Rejection::DuplicateKey => Fault::DuplicateKey,
        Rejection::TooManyOps => Fault::TooManyOps,
        Rejection::InvalidSort => Fault::InvalidSortOption,
        Rejection::Compacted => Fault::Compacted,
        Rejection::FutureRevision => Fault::FutureRevision,
        Rejection::LeaseNotFound => Fault::LeaseNotFound,
        Rejection::LeaseExists => Fault::LeaseExists,
        Rejection::LeaseTtlTooLarge => Fault::LeaseTtlTooLarge,
        Rejection::NoSpace => Fault::NoSpace,
        Rejection::Corrupt => Fault::Corrupt,
        Rejection::UserEmpty => Fault::UserEmpty,
        Rejection::RoleEmpty => Fault::RoleEmpty,
        Rejection::PermissionDenied => Fault::PermissionDenied,
        Rejection::AuthOldRevision => Fault::AuthOldRevision,
        Rejection::InvalidAuthManagement => Fault::InvalidAuthManagement,
        Rejection::PermissionNotGiven => Fault::PermissionNotGiven,
        Rejection::RootUserNotExist => Fault::RootUserNotExist,
        Rejection::RootRoleNotExist => Fault::RootRoleNotExist,
        Rejection::UserExists => Fault::UserExists,
        Rejection::UserNotFound => Fault::UserNotFound,
        Rejection::RoleExists => Fault::RoleExists,
        Rejection::RoleNotFound => Fault::RoleNotFound,
        Rejection::RoleNotGranted => Fault::RoleNotGranted,
        Rejection::PermissionNotGranted => Fault::PermissionNotGranted,
        Rejection::AuthNotEnabled => Fault::AuthNotEnabled,
        Rejection::LockNotHeld
        | Rejection::LockShared
        | Rejection::Overtaken
        | Rejection::Overflow
        | Rejection::NoLatch
        | Rejection::Refused(_)
        | Rejection::InvalidLock(_)
        | Rejection::InvalidInstance(_)
        | Rejection::InstanceNotFound
        | Rejection::InstanceTaken(_)
        | Rejection::InstanceReplaced
        | Rejection::Malformed(_) => return None,
    })
}
