//! Checks of KV requests as they arrive, in etcd's order: of several faults, a client hears the same one.
//!
//! The messages themselves are looked at, so that a request that is proposed is never copied. Only a
//! transaction that changes several keys is converted, to find out whether it changes one twice.

use conclave_proto::etcdserverpb as etcd;
use conclave_raft_store::command;
use conclave_state_machine::validate;
use etcd::range_request::{SortOrder, SortTarget};
use etcd::request_op::Request;
use tonic::Status;

use crate::status::{self, Fault};

/// Checks a range read.
pub(super) fn range(request: &etcd::RangeRequest) -> Result<(), Fault> {
    if request.key.is_empty() {
        return Err(Fault::EmptyKey);
    }
    if SortOrder::try_from(request.sort_order).is_err()
        || SortTarget::try_from(request.sort_target).is_err()
    {
        return Err(Fault::InvalidSortOption);
    }
    Ok(())
}

/// Checks a put.
pub(super) fn put(request: &etcd::PutRequest) -> Result<(), Fault> {
    if request.key.is_empty() {
        return Err(Fault::EmptyKey);
    }
    if request.ignore_value && !request.value.is_empty() {
        return Err(Fault::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(Fault::LeaseProvided);
    }
    Ok(())
}

/// Checks a range delete.
pub(super) fn delete_range(request: &etcd::DeleteRangeRequest) -> Result<(), Fault> {
    if request.key.is_empty() { Err(Fault::EmptyKey) } else { Ok(()) }
}

/// Checks a transaction with everything nested in it.
pub(crate) fn txn(request: &etcd::TxnRequest, ops_max: usize) -> Result<(), Status> {
    operations(request, ops_max)?;
    if changes(&request.success).max(changes(&request.failure)) > 1 {
        let refused = |rejection| status::from_rejection(&rejection);
        let txn = command::txn(request.clone()).map_err(refused)?;
        validate::txn(&txn, ops_max).map_err(refused)?;
    }
    Ok(())
}

// The depth is bounded by prost, which decodes at most 100 levels.
fn operations(request: &etcd::TxnRequest, ops_max: usize) -> Result<(), Fault> {
    let ops = request.compare.len().max(request.success.len()).max(request.failure.len());
    let ops_left = ops_max.checked_sub(ops).ok_or(Fault::TooManyOps)?;
    if request.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(Fault::EmptyKey);
    }
    for op in request.success.iter().chain(&request.failure) {
        match &op.request {
            Some(Request::RequestRange(request)) => range(request)?,
            Some(Request::RequestPut(request)) => put(request)?,
            Some(Request::RequestDeleteRange(request)) => delete_range(request)?,
            Some(Request::RequestTxn(nested)) => operations(nested, ops_left)?,
            None => return Err(Fault::KeyNotFound),
        }
    }
    Ok(())
}

/// How many operations of a branch may change keys.
fn changes(branch: &[etcd::RequestOp]) -> usize {
    branch
        .iter()
        .map(|op| match &op.request {
            Some(Request::RequestPut(_) | Request::RequestDeleteRange(_)) => 1,
            Some(Request::RequestTxn(nested)) => {
                changes(&nested.success) + changes(&nested.failure)
            }
            Some(Request::RequestRange(_)) | None => 0,
        })
        .sum()
}

/// Whether all reads of a transaction are serializable; `None` if it does more than read.
pub(super) fn read_only(request: &etcd::TxnRequest) -> Option<bool> {
    let mut is_serializable = true;
    for op in request.success.iter().chain(&request.failure) {
        match &op.request {
            Some(Request::RequestRange(range)) => is_serializable &= range.serializable,
            _ => return None,
        }
    }
    Some(is_serializable)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(request: Request) -> etcd::RequestOp {
        etcd::RequestOp { request: Some(request) }
    }

    fn put_of(key: &'static str, ignore_value: bool) -> etcd::RequestOp {
        let (key, value) = (key.into(), "v".into());
        let put = etcd::PutRequest { key, value, ignore_value, ..Default::default() };
        op(Request::RequestPut(put))
    }

    #[test]
    fn of_several_faults_the_first_counts() {
        let empty = etcd::RequestOp { request: None };
        let unsorted = op(Request::RequestRange(etcd::RangeRequest {
            key: "k".into(),
            sort_order: 9,
            ..Default::default()
        }));
        let nested =
            |success| op(Request::RequestTxn(etcd::TxnRequest { success, ..Default::default() }));
        let cases = [
            (vec![put_of("a", true), empty.clone()], Fault::ValueProvided),
            (vec![empty.clone(), put_of("a", true)], Fault::KeyNotFound),
            (vec![nested(vec![put_of("", false)]), unsorted.clone()], Fault::EmptyKey),
            (vec![unsorted.clone(), empty.clone(), empty.clone(), empty], Fault::TooManyOps),
            (vec![put_of("a", false), put_of("a", false), unsorted], Fault::InvalidSortOption),
            (vec![put_of("a", false), nested(vec![put_of("a", false)])], Fault::DuplicateKey),
        ];
        for (success, fault) in cases {
            let request = etcd::TxnRequest { success, ..Default::default() };
            let refused = txn(&request, 3).unwrap_err();
            assert_eq!(refused.message(), fault.text());
        }
        let fine = etcd::TxnRequest { success: vec![put_of("a", false)], ..Default::default() };
        txn(&fine, 3).unwrap();
    }
}
