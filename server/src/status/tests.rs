//! Codes and texts compared with a table that shares nothing with ours.

use std::collections::BTreeSet;

use super::*;

/// The part of etcd 3.7.1's table that we answer, by code, typed from its documentation
/// independently of the table above, so that a slip in either shows.
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
            "rpc not supported for learner",
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
    assert_eq!(status.message(), "grpc: received message larger than max (2200000 vs. 2097152)");
    assert!(too_large_as_in_go(&Fault::Compacted.into()).is_none());
}
