//! The only place that knows gRPC codes: one table of etcd's errors, byte for byte.
//!
//! Clients match errors by their text, so texts and codes here are wire contract (etcd's
//! `api/v3rpc/rpctypes/error.go`). Two of them leave etcd with code Unknown; so they do here.

use conclave_raft_store::store::ReadError;
use conclave_state_machine::members::rules::MemberRefusal;
use conclave_state_machine::response::Rejection;
use http::StatusCode;
use tonic::{Code, Status};

use crate::lessor::LessorError;
use crate::node::TransferError;
use crate::propose::ProposeError;
use crate::raft::ChangeError;
use crate::read_index::ReadIndexError;
use crate::watch::End;

/// Declares [`Fault`] with its code and text by variant.
macro_rules! faults {
    ($($(#[$doc:meta])* $name:ident: $code:ident, $text:literal;)*) => {
        /// An error that etcd has a text for; those of its table that nothing here answers are left out.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Fault {
            $($(#[$doc])* #[doc = concat!("`", $text, "`")] $name,)*
        }

        impl Fault {
            /// All of them, in table order.
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
    /// Unknown on the wire, as in etcd; Go's client recovers the code from the text.
    TooManyRequests: Unknown, "etcdserver: too many requests";

    LeaseNotFound: NotFound, "etcdserver: requested lease not found";
    MemberNotFound: NotFound, "etcdserver: member not found";

    LeaseExists: FailedPrecondition, "etcdserver: lease already exists";
    PeerUrlExists: FailedPrecondition, "etcdserver: Peer URLs already exists";
    /// Unknown on the wire, as in etcd.
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
    NotSupportedForLearner: FailedPrecondition, "etcdserver: rpc not supported for learner";
    BadLeaderTransferee: FailedPrecondition, "etcdserver: bad leader transferee";
    ClusterVersionUnavailable:
        FailedPrecondition, "etcdserver: cluster version not found during downgrade";
    NoInflightDowngrade: FailedPrecondition, "etcdserver: no inflight downgrade job";

    PermissionDenied: PermissionDenied, "etcdserver: permission denied";
    InvalidAuthToken: Unauthenticated, "etcdserver: invalid auth token";

    NoLeader: Unavailable, "etcdserver: no leader";
    Stopped: Unavailable, "etcdserver: server stopped";
    Timeout: Unavailable, "etcdserver: request timed out";
    TimeoutLeaderFail:
        Unavailable, "etcdserver: request timed out, possibly due to previous leader failure";
    TimeoutConnectionLost:
        Unavailable, "etcdserver: request timed out, possibly due to connection lost";
    Unhealthy: Unavailable, "etcdserver: unhealthy cluster";
    Corrupt: DataLoss, "etcdserver: corrupt cluster";
}

/// Number of gRPC codes; they count from 0.
pub(crate) const CODES: usize = 17;

/// Name of a code in Go's spelling, as in metrics and in watch cancel reasons.
pub(crate) fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}

/// `rpc error: code = C desc = T`, as etcd puts errors into watch cancel reasons.
pub(crate) fn rpc_error_text(status: &Status) -> String {
    format!("rpc error: code = {} desc = {}", code_name(status.code()), status.message())
}

impl From<Fault> for Status {
    fn from(fault: Fault) -> Self {
        Status::new(fault.code(), fault.text())
    }
}

/// The fault of a rejection, or `None` for what no client of etcd can cause.
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
        | Rejection::Malformed(_) => return None,
    })
}

/// The answer to a rejected request.
pub fn from_rejection(rejection: &Rejection) -> Status {
    match (fault_of(rejection), rejection) {
        (Some(fault), _) => fault.into(),
        (
            None,
            Rejection::LockNotHeld
            | Rejection::LockShared
            | Rejection::Overtaken
            | Rejection::Refused(_)
            | Rejection::InstanceTaken(_),
        ) => Status::failed_precondition(format!("conclave: {rejection}")),
        (None, Rejection::Overflow) => Status::out_of_range(format!("conclave: {rejection}")),
        (None, Rejection::NoLatch | Rejection::InstanceNotFound) => {
            Status::not_found(format!("conclave: {rejection}"))
        }
        (None, Rejection::InvalidLock(_) | Rejection::InvalidInstance(_)) => {
            Status::invalid_argument(format!("conclave: {rejection}"))
        }
        (None, _) => Status::invalid_argument(format!("etcdserver: {rejection}")),
    }
}

/// The answer to a proposal without an answer.
pub(crate) fn from_propose(error: &ProposeError) -> Status {
    match error {
        ProposeError::TooManyRequests => Fault::TooManyRequests,
        ProposeError::TooLarge => Fault::RequestTooLarge,
        ProposeError::Timeout => Fault::Timeout,
        ProposeError::LeaderLost => Fault::TimeoutLeaderFail,
        ProposeError::Stopped => Fault::Stopped,
    }
    .into()
}

/// The answer to a read that could not be made linearizable.
pub(crate) fn from_read_index(error: &ReadIndexError) -> Status {
    match error {
        ReadIndexError::TooManyRequests => Fault::TooManyRequests,
        ReadIndexError::Timeout => Fault::Timeout,
        ReadIndexError::Stopped => Fault::Stopped,
    }
    .into()
}

/// The answer to a failed local read.
pub(crate) fn from_read(error: &ReadError) -> Status {
    match error {
        ReadError::Rejected(rejection) => from_rejection(rejection),
        ReadError::Halt(_) => halted(),
    }
}

/// The answer to a lease question that the leader did not answer.
pub(crate) fn from_lessor(error: &LessorError) -> Status {
    match error {
        LessorError::TooManyRequests => Fault::TooManyRequests,
        LessorError::Timeout => Fault::Timeout,
        LessorError::Stopped => Fault::Stopped,
    }
    .into()
}

/// The answer to a leader transfer that did not happen.
pub(crate) fn from_transfer(error: &TransferError) -> Status {
    match error {
        TransferError::NotLeader => Fault::NotLeader,
        TransferError::BadTarget => Fault::BadLeaderTransferee,
        TransferError::Timeout => Fault::Timeout,
        TransferError::Stopped => Fault::Stopped,
    }
    .into()
}

/// The answer to a change of the members that was not made, or perhaps not.
pub(crate) fn from_change(error: ChangeError) -> Status {
    match error {
        ChangeError::Refused(refusal) => match refusal {
            MemberRefusal::NotEnoughStarted => Fault::MemberNotEnoughStarted,
            MemberRefusal::Unhealthy => Fault::Unhealthy,
            MemberRefusal::PeerUrlExists => Fault::PeerUrlExists,
            MemberRefusal::TooManyLearners => Fault::TooManyLearners,
            MemberRefusal::NotFound => Fault::MemberNotFound,
            MemberRefusal::NotLearner => Fault::MemberNotLearner,
            MemberRefusal::LearnerNotReady => Fault::LearnerNotReady,
        },
        ChangeError::Timeout => Fault::Timeout,
        ChangeError::Unknown => Fault::TimeoutConnectionLost,
        ChangeError::Stopped => Fault::Stopped,
    }
    .into()
}

/// The end of a watch that its client did not end.
pub(crate) fn from_watch_end(end: End) -> Status {
    match end {
        End::Stopped => Fault::Stopped.into(),
        End::Failed(reason) => Status::unavailable(reason),
    }
}

/// The words of etcd's lock and election recipes, which know no codes.
pub(crate) fn unknown(text: impl Into<String>) -> Status {
    Status::unknown(text)
}

/// The answer to a wish to go back to an older storage format.
pub(crate) fn no_older_format() -> Status {
    Status::failed_precondition("conclave: there is no older storage format to downgrade to")
}

/// The answer to a call that does not exist.
pub(crate) fn unimplemented(text: impl Into<String>) -> Status {
    Status::unimplemented(text)
}

/// The answer to JSON that is no message of the call.
pub(crate) fn no_message(text: impl Into<String>) -> Status {
    Status::invalid_argument(text)
}

/// The answer to JSON that is larger than any message may be.
pub(crate) fn json_too_large(bytes_max: usize) -> Status {
    Status::resource_exhausted(format!("conclave: a message in JSON has at most {bytes_max} bytes"))
}

/// For a call that ended well without its answer, which none of ours does.
pub(crate) fn no_answer() -> Status {
    Status::internal("conclave: the call ended without an answer")
}

/// The status in HTTP for a code, as in grpc-gateway.
pub(crate) fn http(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::Cancelled => StatusCode::REQUEST_TIMEOUT,
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => {
            StatusCode::BAD_REQUEST
        }
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// The answer to a call that met damage: this node stops, and its last line says why.
pub(crate) fn halted() -> Status {
    Fault::Stopped.into()
}

/// The answer to a call that failed inside this node; `error` goes to the log, not to the client.
pub(crate) fn internal(error: &dyn std::error::Error) -> Status {
    tracing::error!(error = %error, "request failed");
    Fault::Stopped.into()
}

/// What Go's gRPC answers to a message beyond the receive limit, if that is what `status` says in
/// tonic's words.
pub(crate) fn too_large_as_in_go(status: &Status) -> Option<Status> {
    const TONICS_WORDS: &str = "Error, decoded message length too large: ";
    if status.code() != Code::OutOfRange {
        return None;
    }
    let mut numbers = status
        .message()
        .strip_prefix(TONICS_WORDS)?
        .split(' ')
        .filter(|word| word.bytes().all(|byte| byte.is_ascii_digit()));
    let (bytes, limit) = (numbers.next()?, numbers.next()?);
    let text = format!("grpc: received message larger than max ({bytes} vs. {limit})");
    Some(Status::resource_exhausted(text))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// What we answer of the table of etcd 3.7.1, by code, typed afresh from its documentation: it
    /// shares nothing with the table above, so that a slip in either shows.
    const EXPECTED: &[(i32, &[&str])] = &[
        (
            3,
            &[
                "key is not provided",
                "key not found",
                "value is provided",
                "lease is provided",
                "too many operations in txn request",
                "duplicate key given in txn request",
                "invalid sort option",
                "given member URLs are invalid",
                "request is too large",
                "user name is empty",
                "role name is empty",
                "authentication failed, invalid user ID or password",
                "permission not given",
                "invalid auth management",
                "revision of auth store is old",
                "wrong downgrade target version format",
                "invalid downgrade target version",
            ],
        ),
        (
            11,
            &[
                "mvcc: required revision has been compacted",
                "mvcc: required revision is a future revision",
                "too large lease TTL",
            ],
        ),
        (8, &["mvcc: database space exceeded"]),
        (2, &["too many requests", "re-configuration failed due to not enough started members"]),
        (5, &["requested lease not found", "member not found"]),
        (
            9,
            &[
                "lease already exists",
                "Peer URLs already exists",
                "can only promote a learner member",
                "can only promote a learner member which is in sync with leader",
                "too many learner members in cluster",
                "root user does not exist",
                "root user does not have root role",
                "user name already exists",
                "user name not found",
                "role name already exists",
                "role name not found",
                "role is not granted to the user",
                "permission is not granted to the role",
                "authentication is not enabled",
                "not leader",
                "rpc not supported for learner",
                "bad leader transferee",
                "cluster version not found during downgrade",
                "no inflight downgrade job",
            ],
        ),
        (7, &["permission denied"]),
        (16, &["invalid auth token"]),
        (
            14,
            &[
                "no leader",
                "server stopped",
                "request timed out",
                "request timed out, possibly due to previous leader failure",
                "request timed out, possibly due to connection lost",
                "unhealthy cluster",
            ],
        ),
        (15, &["corrupt cluster"]),
    ];

    #[test]
    fn codes_and_texts_are_etcds_byte_for_byte() {
        let ours: BTreeSet<(i32, String)> = Fault::ALL
            .iter()
            .map(|&fault| {
                let status = Status::from(fault);
                (status.code() as i32, status.message().to_owned())
            })
            .collect();
        let theirs: BTreeSet<(i32, String)> = EXPECTED
            .iter()
            .flat_map(|(code, texts)| {
                texts.iter().map(move |text| (*code, format!("etcdserver: {text}")))
            })
            .collect();
        assert_eq!(ours, theirs);
        assert_eq!(ours.len(), Fault::ALL.len(), "no text twice");
    }

    #[test]
    fn rejections_keep_the_text_that_the_state_machine_gave_them() {
        for rejection in [
            Rejection::EmptyKey,
            Rejection::KeyNotFound,
            Rejection::ValueProvided,
            Rejection::LeaseProvided,
            Rejection::DuplicateKey,
            Rejection::TooManyOps,
            Rejection::InvalidSort,
            Rejection::Compacted,
            Rejection::FutureRevision,
            Rejection::LeaseNotFound,
            Rejection::LeaseExists,
            Rejection::LeaseTtlTooLarge,
            Rejection::NoSpace,
            Rejection::Corrupt,
            Rejection::UserEmpty,
            Rejection::RoleEmpty,
            Rejection::PermissionDenied,
            Rejection::AuthOldRevision,
            Rejection::InvalidAuthManagement,
            Rejection::PermissionNotGiven,
            Rejection::RootUserNotExist,
            Rejection::RootRoleNotExist,
            Rejection::UserExists,
            Rejection::UserNotFound,
            Rejection::RoleExists,
            Rejection::RoleNotFound,
            Rejection::RoleNotGranted,
            Rejection::PermissionNotGranted,
            Rejection::AuthNotEnabled,
        ] {
            let status = from_rejection(&rejection);
            assert_eq!(status.message(), format!("etcdserver: {rejection}"));
        }
        let status = from_rejection(&Rejection::Malformed("no command"));
        assert_eq!(status.code(), Code::InvalidArgument);
    }

    #[test]
    fn refused_changes_keep_the_text_that_the_rules_gave_them() {
        for refusal in [
            MemberRefusal::NotEnoughStarted,
            MemberRefusal::Unhealthy,
            MemberRefusal::PeerUrlExists,
            MemberRefusal::TooManyLearners,
            MemberRefusal::NotFound,
            MemberRefusal::NotLearner,
            MemberRefusal::LearnerNotReady,
        ] {
            let status = from_change(ChangeError::Refused(refusal));
            assert_eq!(status.message(), format!("etcdserver: {refusal}"));
        }
    }

    #[test]
    fn cancel_reasons_are_worded_as_in_go() {
        assert_eq!(
            rpc_error_text(&Fault::PermissionDenied.into()),
            "rpc error: code = PermissionDenied desc = etcdserver: permission denied"
        );
    }

    #[test]
    fn a_message_beyond_the_receive_limit_is_worded_as_in_go() {
        let tonics = Status::out_of_range(
            "Error, decoded message length too large: found 2200000 bytes, the limit is: 2097152 \
             bytes",
        );
        let status = too_large_as_in_go(&tonics).unwrap();
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(
            status.message(),
            "grpc: received message larger than max (2200000 vs. 2097152)"
        );
        assert!(too_large_as_in_go(&Fault::Compacted.into()).is_none());
    }
}
