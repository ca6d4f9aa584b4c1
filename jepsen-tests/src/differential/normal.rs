//! What may differ between two correct servers is made equal here, each difference with its name.

use conclave_proto::etcdserverpb::range_request::SortTarget;
use conclave_proto::etcdserverpb::{
    RangeRequest, RangeResponse, RequestOp, ResponseHeader, ResponseOp, TxnRequest, TxnResponse,
    request_op, response_op,
};
use conclave_proto::mvccpb::KeyValue;

use super::Step;
use super::answer::Answer;

/// Remaining seconds of a lease may differ by the time between the two answers.
const TTL_STEP_SECONDS: i64 = 1000;

/// The answer without what may differ.
pub(super) fn form(step: &Step, mut answer: Answer) -> Answer {
    match (&mut answer, step) {
        (Answer::Put(put), _) => anonymous(&mut put.header),
        (Answer::Delete(delete), _) => anonymous(&mut delete.header),
        (Answer::Range(range), Step::Range(request)) => {
            anonymous(&mut range.header);
            self::range(request, range);
        }
        (Answer::Txn(txn), Step::Txn(request)) => {
            anonymous(&mut txn.header);
            self::txn(request, txn);
        }
        (Answer::Compact(compact), _) => anonymous(&mut compact.header),
        (Answer::Grant(grant), _) => anonymous(&mut grant.header),
        (Answer::Revoke(revoke), _) => anonymous(&mut revoke.header),
        (Answer::KeepAlive(keep_alive), _) => anonymous(&mut keep_alive.header),
        (Answer::TimeToLive(left), _) => {
            anonymous(&mut left.header);
            // The full time of a lease just granted counts as begun.
            left.ttl = if left.ttl > 0 { (left.ttl - 1) / TTL_STEP_SECONDS } else { left.ttl };
            // The order of a lease's keys is undefined.
            left.keys.sort();
        }
        (Answer::Campaign(elected), _) => anonymous(&mut elected.header),
        (Answer::Leases(leases), _) => {
            anonymous(&mut leases.header);
            // Sorted by remaining time, which is as good as equal for all.
            leases.leases.sort_by_key(|lease| lease.id);
        }
        // Before 3.6 maintenance calls were refused in other words.
        (Answer::Error(code, text), _) if text.starts_with("auth: ") => {
            *text = text.replacen("auth: ", "etcdserver: ", 1);
            *code = if text.ends_with("permission denied") { 7 } else { 3 };
        }
        _ => {}
    }
    answer
}

/// Whether two answers in that form are as good as equal: we look at who calls before we look at the request,
/// etcd the other way round, so that of two faults another one is told.
pub(super) fn are_equal(step: &Step, reference: &Answer, other: &Answer) -> bool {
    let (Answer::Error(..), Answer::Error(_, told)) = (reference, other) else {
        return reference == other;
    };
    let is_caller = match told.as_str() {
        "etcdserver: user name is empty" | "etcdserver: invalid auth token" => true,
        "etcdserver: permission denied" => matches!(step, Step::Call(_) | Step::Members(_)),
        _ => false,
    };
    is_caller || reference == other
}

/// Ids of cluster and member, and the raft term.
pub(super) fn anonymous(header: &mut Option<ResponseHeader>) {
    if let Some(header) = header {
        (header.cluster_id, header.member_id, header.raft_term) = (0, 0, 0);
    }
}

fn range(request: &RangeRequest, response: &mut RangeResponse) {
    if request.keys_only {
        // From 3.7 on a keys-only answer has no lease.
        response.kvs.iter_mut().for_each(|kv| kv.lease = 0);
    }
    let field: fn(&KeyValue) -> i64 = match request.sort_target() {
        SortTarget::Key | SortTarget::Value => return,
        SortTarget::Version => |kv| kv.version,
        SortTarget::Create => |kv| kv.create_revision,
        SortTarget::Mod => |kv| kv.mod_revision,
    };
    // Ties may come in any order, and a limit may cut any of them off: only the sorted field is compared.
    let has_ties = response.kvs.windows(2).any(|pair| field(&pair[0]) == field(&pair[1]));
    if request.limit > 0 || has_ties {
        let sorted: Vec<KeyValue> = response
            .kvs
            .iter()
            .map(|kv| KeyValue { version: field(kv), ..Default::default() })
            .collect();
        response.kvs = sorted;
    }
}

/// The operations of the branch that was taken, beside their answers.
fn txn(request: &TxnRequest, response: &mut TxnResponse) {
    let branch = if response.succeeded { &request.success } else { &request.failure };
    for (RequestOp { request }, ResponseOp { response }) in
        branch.iter().zip(&mut response.responses)
    {
        match (request, response) {
            (
                Some(request_op::Request::RequestRange(request)),
                Some(response_op::Response::ResponseRange(response)),
            ) => range(request, response),
            (
                Some(request_op::Request::RequestTxn(request)),
                Some(response_op::Response::ResponseTxn(response)),
            ) => txn(request, response),
            _ => {}
        }
    }
}
