//! What the reference decides otherwise than we do: steps that are left out for who is not root, or tried in
//! another shape while an alarm is on.

use conclave_proto::etcdserverpb::request_op::Request;
use conclave_proto::etcdserverpb::{LeaseGrantRequest, TxnRequest};

use super::Step;
use super::calls::Call;
use super::generate::LEASE_TTL_SECONDS;

/// A lease that is only asked for where it is refused.
const NEVER_GRANTED: i64 = 4242;

/// What the reference decides otherwise than we and later versions of etcd for who is not root: it does not
/// look at transactions within a transaction, nor at the keys of a lease there (a lock is a transaction), it
/// refuses ranges that hold nothing, and some calls ask for no user, or not for root.
pub(super) fn is_newer(step: &Step) -> bool {
    match step {
        Step::Range(range) => is_inverted(&range.key, &range.range_end),
        Step::Delete(delete) => is_inverted(&delete.key, &delete.range_end),
        Step::Txn(txn) => {
            let is_empty =
                txn.compare.is_empty() && txn.success.is_empty() && txn.failure.is_empty();
            let mut compares = txn.compare.iter();
            is_empty
                || compares.any(|compare| is_inverted(&compare.key, &compare.range_end))
                || is_nested(txn)
                || txn.success.iter().chain(&txn.failure).any(|op| match &op.request {
                    Some(Request::RequestPut(put)) => put.lease != 0,
                    Some(Request::RequestRange(range)) => is_inverted(&range.key, &range.range_end),
                    Some(Request::RequestDeleteRange(it)) => is_inverted(&it.key, &it.range_end),
                    Some(Request::RequestTxn(_)) | None => false,
                })
        }
        Step::Grant(_) | Step::TimeToLive(_) | Step::Leases | Step::KeepAlive(_) => true,
        Step::Revoke(_) | Step::Compact(_) | Step::Campaign(_) => true,
        Step::Call(call) => matches!(
            call,
            Call::Alarm(_)
                | Call::AuthStatus(_)
                | Call::Downgrade(_)
                | Call::MemberList(_)
                | Call::MoveLeader(_)
                | Call::Status(_)
                | Call::Lock(_)
                | Call::Proclaim(_)
        ),
        _ => false,
    }
}

/// What to try instead of a step while there is no space. Of two faults the reference tells the alarm, we the TTL;
/// and a short lease has to be revoked at once.
pub(super) fn without_space(step: Step) -> Step {
    match step {
        Step::Grant(_) => Step::Leases,
        // The reference does not count what transactions within a transaction put.
        Step::Txn(txn) if is_nested(&txn) => Step::Leases,
        step => step,
    }
}

/// What to try instead of a step while the cluster is corrupt. The lease would stay if it were granted.
pub(super) fn corrupt(step: Step) -> Step {
    match step {
        Step::Grant(_) => {
            Step::Grant(LeaseGrantRequest { id: NEVER_GRANTED, ttl: LEASE_TTL_SECONDS })
        }
        step => step,
    }
}

/// Whether there is a transaction in it.
pub(super) fn is_nested(txn: &TxnRequest) -> bool {
    let mut operations = txn.success.iter().chain(&txn.failure);
    operations.any(|operation| matches!(operation.request, Some(Request::RequestTxn(_))))
}

pub(super) fn is_inverted(key: &[u8], end: &[u8]) -> bool {
    !end.is_empty() && end != b"\0" && key >= end
}
