//! Tells which commands may take long: those whose cost may grow with the number of keys.

use conclave_proto::{etcdserverpb as etcd, internal};

/// Whether the cost of applying it may grow with the number of keys.
pub(crate) fn is_long(message: &internal::Command) -> bool {
    use internal::command::Command as Message;
    match &message.command {
        Some(Message::DeleteRange(request)) => !request.range_end.is_empty(),
        Some(Message::Txn(txn)) => has_spans(txn),
        Some(Message::GuardedTxn(request)) => request.txn.as_ref().is_some_and(has_spans),
        Some(Message::Write(request)) => request.txn.as_ref().is_some_and(has_spans),
        Some(Message::LeaseRevoke(_) | Message::LeaseExpire(_)) => true,
        Some(
            Message::Put(_)
            | Message::Compact(_)
            | Message::LeaseGrant(_)
            | Message::Alarm(_)
            | Message::MemberPublish(_)
            | Message::SessionBegin(_)
            | Message::LockAcquire(_)
            | Message::LockRelease(_)
            | Message::LockConvert(_)
            | Message::LockBreak(_)
            | Message::Campaign(_)
            | Message::Leave(_)
            | Message::HandOver(_)
            | Message::Primitive(_)
            | Message::AuthEnable(_)
            | Message::AuthDisable(_)
            | Message::AuthUserAdd(_)
            | Message::AuthUserDelete(_)
            | Message::AuthChangePassword(_)
            | Message::AuthUserGrantRole(_)
            | Message::AuthUserRevokeRole(_)
            | Message::AuthRoleAdd(_)
            | Message::AuthRoleDelete(_)
            | Message::AuthRoleGrant(_)
            | Message::AuthRoleRevoke(_)
            | Message::AuthToken(_)
            | Message::RegistryRegister(_)
            | Message::RegistryDeregister(_)
            | Message::RegistryUpdate(_)
            | Message::RegistryChecked(_)
            | Message::RegistrySettle(_)
            | Message::RegistryConfigure(_),
        )
        | None => false,
    }
}

/// Whether a transaction, or one nested in it, compares, reads or deletes more than single keys.
fn has_spans(txn: &etcd::TxnRequest) -> bool {
    use etcd::request_op::Request;
    let mut pending = vec![txn];
    while let Some(txn) = pending.pop() {
        if txn.compare.iter().any(|compare| !compare.range_end.is_empty()) {
            return true;
        }
        for op in txn.success.iter().chain(&txn.failure) {
            match &op.request {
                Some(Request::RequestRange(range)) if !range.range_end.is_empty() => return true,
                Some(Request::RequestDeleteRange(delete)) if !delete.range_end.is_empty() => {
                    return true;
                }
                Some(Request::RequestTxn(nested)) => pending.push(nested),
                Some(
                    Request::RequestRange(_)
                    | Request::RequestDeleteRange(_)
                    | Request::RequestPut(_),
                )
                | None => {}
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use conclave_proto::etcdserverpb::request_op::Request;
    use internal::command::Command as Message;

    use super::*;

    fn is_long(command: Message) -> bool {
        super::is_long(&internal::Command { command: Some(command), ..Default::default() })
    }

    fn delete(range_end: &'static str) -> etcd::DeleteRangeRequest {
        let (key, range_end) = ("a".into(), range_end.into());
        etcd::DeleteRangeRequest { key, range_end, ..Default::default() }
    }

    fn txn(op: Request) -> etcd::TxnRequest {
        let failure = vec![etcd::RequestOp { request: Some(op) }];
        etcd::TxnRequest { failure, ..Default::default() }
    }

    #[test]
    fn spans_and_leases_may_take_long() {
        let range = |range_end: &'static str| {
            let (key, range_end) = ("a".into(), range_end.into());
            Request::RequestRange(etcd::RangeRequest { key, range_end, ..Default::default() })
        };
        let compare = etcd::Compare { range_end: "b".into(), ..Default::default() };
        let compares = etcd::TxnRequest { compare: vec![compare], ..Default::default() };
        let nested = |op| txn(Request::RequestTxn(txn(op)));
        let deletes = |range_end| nested(Request::RequestDeleteRange(delete(range_end)));
        for (long, short) in [
            (Message::DeleteRange(delete("b")), Message::DeleteRange(delete(""))),
            (Message::Txn(txn(range("b"))), Message::Txn(txn(range("")))),
            (Message::Txn(deletes("b")), Message::Txn(deletes(""))),
            (Message::Txn(compares), Message::Put(Default::default())),
            (Message::LeaseRevoke(Default::default()), Message::LeaseGrant(Default::default())),
        ] {
            assert!(is_long(long));
            assert!(!is_long(short));
        }
    }
}
