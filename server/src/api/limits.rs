//! What a request costs: its size in the log, and the space it takes in the store.
//!
//! The figures are etcd's (`server/storage/quota.go`), so that a quota fills at the same pace.

use conclave_proto::etcdserverpb as etcd;
use prost::Message;

/// What etcd counts for a key in addition to its bytes.
const KEY_OVERHEAD_BYTES: usize = 256;
/// What etcd counts for a lease.
pub(crate) const LEASE_COST_BYTES: usize = 64;
/// Overhead of a request's header in etcd's log: tag and length of the header, tag of the id.
const HEADER_BYTES: usize = 4;

/// Size of a request in the log of an etcd member with this id. etcd's request ids begin with two
/// bytes of the member id and end with a time, so their length depends on the member.
pub(crate) fn logged_bytes(request: &impl Message, member_id: u64) -> usize {
    let request_id = member_id << 48 | 1 << 47;
    let bytes = request.encoded_len();
    HEADER_BYTES
        + prost::encoding::encoded_len_varint(request_id)
        + 1
        + prost::length_delimiter_len(bytes)
        + bytes
}

/// Space that a put takes.
pub(crate) fn put_cost(request: &etcd::PutRequest) -> usize {
    key_cost(&request.key) + request.value.len()
}

/// Space that a key takes, without its value.
pub(crate) fn key_cost(key: &bytes::Bytes) -> usize {
    KEY_OVERHEAD_BYTES + key.len()
}

/// Space that a transaction may take: that of its more expensive branch. Reads and deletes are
/// free.
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
    fn requests_have_the_size_that_etcd_counts() {
        // The largest values that etcd 3.4.23 accepted under key "k" with its default limit.
        for (member_id, value_bytes) in
            [(0xbac7_efc3_61f1_457e, 1_572_840), (0x994d_2631_bf88_89ce, 1_572_839)]
        {
            let put = |value_bytes| etcd::PutRequest { key: "k".into(), ..put(value_bytes) };
            assert_eq!(logged_bytes(&put(value_bytes), member_id), 1_572_864);
            assert_eq!(logged_bytes(&put(value_bytes + 1), member_id), 1_572_865);
        }
    }
}
