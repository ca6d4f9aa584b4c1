//! Maps each kind of error to a gRPC status; the only place that knows the codes. etcd's own errors
//! are in one table (`fault`), byte for byte, because clients match errors by their text.

mod fault;
#[cfg(test)]
mod tests;

use std::fmt::Display;

use conclave_raft_store::store::ReadError;
use conclave_state_machine::members::rules::MemberRefusal;
use conclave_state_machine::response::Rejection;
use http::StatusCode;
use tonic::{Code, Status};

use crate::lessor::LessorError;
use crate::node::TransferError;
use crate::propose::ProposeError;
use crate::raft::{ChangeError, Denial};
use crate::read_index::ReadIndexError;
use crate::watch::End;

pub use fault::{Fault, fault_of};

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
        (None, Rejection::InstanceReplaced) => Status::aborted(format!("conclave: {rejection}")),
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

/// The answer to a membership change that was not made, or may not have been made.
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
        ChangeError::Denied(Denial::NoRight) => Fault::PermissionDenied,
        ChangeError::Denied(Denial::NoUser) => Fault::UserEmpty,
        ChangeError::Denied(Denial::OldUser) => Fault::AuthOldRevision,
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

/// An error of etcd's lock and election recipes, which have text but no code.
pub(crate) fn unknown(text: impl Into<String>) -> Status {
    Status::unknown(text)
}

/// The answer to a request to downgrade to an older storage format.
pub(crate) fn no_older_format() -> Status {
    Status::failed_precondition("conclave: there is no older storage format to downgrade to")
}

/// The answer to a call that does not exist.
pub(crate) fn unimplemented(text: impl Into<String>) -> Status {
    Status::unimplemented(text)
}

/// The answer to JSON that is not a message of the call.
pub(crate) fn no_message(text: impl Into<String>) -> Status {
    Status::invalid_argument(text)
}

/// The error of Go's gRPC for a message larger than the limit.
pub(crate) fn larger_than_max(bytes: impl Display, limit: impl Display) -> Status {
    let text = format!("grpc: received message larger than max ({bytes} vs. {limit})");
    Status::resource_exhausted(text)
}

/// The answer to JSON when the byte budget for receiving it is used up.
pub(crate) fn json_crowded() -> Status {
    Status::resource_exhausted("conclave: too many requests in JSON are being received")
}

/// The answer to JSON that did not arrive in time.
pub(crate) fn json_too_late() -> Status {
    Status::deadline_exceeded("conclave: the request did not arrive in time")
}

/// For a call that ended successfully without an answer, which none of ours does.
pub(crate) fn no_answer() -> Status {
    Status::internal("conclave: the call ended without an answer")
}

/// The end of a stream whose client accepted nothing for too long.
pub(crate) fn not_taken() -> Status {
    Status::deadline_exceeded("conclave: the answers were not taken in time")
}

/// The HTTP status for a code, as in grpc-gateway.
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

/// The answer to a call that found damage: this node stops, and its last log line says why.
pub(crate) fn halted() -> Status {
    Fault::Stopped.into()
}

/// The answer to a call that failed inside this node; `error` is logged and not sent to the client.
pub(crate) fn internal(error: &dyn std::error::Error) -> Status {
    tracing::error!(error = %error, "request failed");
    Fault::Stopped.into()
}

/// Converts tonic's error for a message beyond the receive limit to that of Go's gRPC; `None` for
/// any other status.
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
    Some(larger_than_max(bytes, limit))
}
