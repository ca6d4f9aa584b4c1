//! What a request may cost: its size in the log, and the room it takes in the store.
//!
//! The figures are etcd's (`server/storage/quota.go`), so that a quota fills at the same pace.

use conclave_proto::etcdserverpb as etcd;
use prost::Message;

/// What etcd counts for a key beside its bytes.
const KEY_OVERHEAD_BYTES: usize = 256;
/// What etcd counts for a lease.
pub(crate) const LEASE_COST_BYTES: usize = 64;
/// What surrounds a request in etcd's log: a header with an id, a tag and a length.
const ENVELOPE_BYTES: usize = 14;

/// Size of a request as etcd would put it into its log.
pub(crate) fn logged_bytes(request: &impl Message) -> usize {
    let bytes = request.encoded_len();
    ENVELOPE_BYTES + 1 + prost::length_delimiter_len(bytes) + bytes
}

/// Room that a put takes.
pub(crate) fn put_cost(request: &etcd::PutRequest) -> usize {
    KEY_OVERHEAD_BYTES + request.key.len() + request.value.len()
}

/// Room that a transaction may take: that of its dearer branch. Reads and deletes are free.
pub(crate) fn txn_cost(request: &etcd::TxnRequest) -> usize {
    branch_cost(&request.success).max(branch_cost(&request.failure))
}

fn branch_cost(branch: &[etcd::RequestOp]) -> usize {
    use etcd::request_op::Request;
    branch
        .iter()
        .map(|op| match &op.request {
            Some(Request::RequestPut(put)) => put_cost(put),
            // prost refuses to decode more than 100 levels.
            Some(Request::RequestTxn(txn)) => txn_cost(txn),
            Some(Request::RequestRange(_) | Request::RequestDeleteRange(_)) | None => 0,
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use etcd::request_op::Request;

    use super::*;

    fn put(value_bytes: usize) -> etcd::PutRequest {
        etcd::PutRequest {
            key: "key".into(),
            value: vec![0; value_bytes].into(),
            ..Default::default()
        }
    }

    fn op(request: Request) -> etcd::RequestOp {
        etcd::RequestOp { request: Some(request) }
    }

    #[test]
    fn a_transaction_costs_its_dearer_branch_with_what_is_nested() {
        assert_eq!(put_cost(&put(10)), 269);
        let nested = etcd::TxnRequest {
            failure: vec![op(Request::RequestPut(put(1)))],
            ..Default::default()
        };
        let txn = etcd::TxnRequest {
            success: vec![
                op(Request::RequestPut(put(0))),
                op(Request::RequestTxn(nested)),
                op(Request::RequestDeleteRange(etcd::DeleteRangeRequest::default())),
            ],
            failure: vec![op(Request::RequestRange(etcd::RangeRequest::default()))],
            ..Default::default()
        };
        assert_eq!(txn_cost(&txn), 259 + 260);
    }

    #[test]
    fn the_default_limit_separates_a_value_of_the_limit_from_one_beyond() {
        let limit = 1_572_864 + 64;
        assert!(logged_bytes(&put(1_572_864)) <= limit);
        assert!(logged_bytes(&put(1_572_864 + 100)) > limit);
    }
}
