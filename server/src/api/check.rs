//! Validates KV requests in etcd's order, so that a request with several faults gets the same error
//! as from etcd.
//!
//! The rules are `conclave_state_machine::validate`. They are applied to the messages themselves,
//! so that a proposed request is never copied. Only a transaction that changes several keys is
//! converted, to find out whether it changes a key twice.

use conclave_proto::etcdserverpb as etcd;
use conclave_raft_store::command;
use conclave_state_machine::response::Rejection;
use conclave_state_machine::validate::{self, OpFields, PutFields, TXN_DEPTH_MAX, TxnFields};
use etcd::range_request::{SortOrder, SortTarget};
use etcd::request_op::Request;
use tonic::Status;

use crate::status;

/// Checks a range read.
pub(super) fn range(request: &etcd::RangeRequest) -> Result<(), Status> {
    validate::range_fields(&request.key, is_sort_known(request)).map_err(refused)
}

/// Checks a put.
pub(super) fn put(request: &etcd::PutRequest) -> Result<(), Status> {
    validate::put_fields(put_fields(request)).map_err(refused)
}

/// Checks a range delete.
pub(super) fn delete_range(request: &etcd::DeleteRangeRequest) -> Result<(), Status> {
    validate::key(&request.key).map_err(refused)
}

/// Checks a transaction, nested transactions included.
pub(crate) fn txn(request: &etcd::TxnRequest, ops_max: usize) -> Result<(), Status> {
    // The depth is checked here and not only in apply. In the log a transaction is nested deeper
    // than in the request, and prost refuses messages of more than 100 levels: the whole log entry,
    // with the commands of other clients in it, could not be decoded.
    validate::operations(Arrived(request), ops_max, TXN_DEPTH_MAX).map_err(refused)?;
    if changes(&request.success).max(changes(&request.failure)) > 1 {
        let txn = command::txn(request.clone()).map_err(refused)?;
        validate::txn(&txn, ops_max).map_err(refused)?;
    }
    Ok(())
}

fn refused(rejection: Rejection) -> Status {
    status::from_rejection(&rejection)
}

fn is_sort_known(request: &etcd::RangeRequest) -> bool {
    SortOrder::try_from(request.sort_order).is_ok()
        && SortTarget::try_from(request.sort_target).is_ok()
}

fn put_fields(request: &etcd::PutRequest) -> PutFields<'_> {
    let etcd::PutRequest { key, value, lease, ignore_value, ignore_lease, .. } = request;
    let (lease, ignore_value, ignore_lease) = (*lease, *ignore_value, *ignore_lease);
    PutFields { key, value, lease, ignore_value, ignore_lease }
}

/// A transaction as it was received.
#[derive(Clone, Copy)]
struct Arrived<'a>(&'a etcd::TxnRequest);

impl<'a> TxnFields<'a> for Arrived<'a> {
    fn compared(self) -> impl ExactSizeIterator<Item = &'a [u8]> {
        self.0.compare.iter().map(|compare| &compare.key[..])
    }

    fn branches(self) -> [impl ExactSizeIterator<Item = OpFields<'a, Self>>; 2] {
        [&self.0.success, &self.0.failure].map(|branch| branch.iter().map(op_fields))
    }
}

fn op_fields(op: &etcd::RequestOp) -> OpFields<'_, Arrived<'_>> {
    match &op.request {
        Some(Request::RequestRange(range)) => {
            OpFields::Range { key: &range.key, is_sort_known: is_sort_known(range) }
        }
        Some(Request::RequestPut(put)) => OpFields::Put(put_fields(put)),
        Some(Request::RequestDeleteRange(delete)) => OpFields::DeleteRange(&delete.key),
        Some(Request::RequestTxn(nested)) => OpFields::Txn(Arrived(nested)),
        None => OpFields::Nothing,
    }
}

/// Number of operations in a branch that may change keys, nested ones included.
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

/// Whether all reads of a transaction are serializable; `None` if it does more than read. A
/// transaction that only compares counts as linearizable, because it has no read that asks for a
/// serializable answer.
pub(super) fn read_only(request: &etcd::TxnRequest) -> Option<bool> {
    let mut is_serializable = !(request.success.is_empty() && request.failure.is_empty());
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
    use crate::status::Fault;

    fn op(request: Request) -> etcd::RequestOp {
        etcd::RequestOp { request: Some(request) }
    }

    fn put_of(key: &'static str, ignore_value: bool) -> etcd::RequestOp {
        let (key, value) = (key.into(), "v".into());
        let put = etcd::PutRequest { key, value, ignore_value, ..Default::default() };
        op(Request::RequestPut(put))
    }

    #[test]
    fn only_reads_that_say_so_are_answered_from_an_old_state() {
        let read = |serializable| {
            op(Request::RequestRange(etcd::RangeRequest { serializable, ..Default::default() }))
        };
        let of = |success| read_only(&etcd::TxnRequest { success, ..Default::default() });
        assert_eq!(of(vec![read(true)]), Some(true));
        assert_eq!(of(vec![read(true), read(false)]), Some(false));
        assert_eq!(of(Vec::new()), Some(false), "it only compares, and that now");
        assert_eq!(of(vec![read(true), put_of("k", false)]), None);
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
