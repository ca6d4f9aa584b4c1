//! Converts answers of the state machine to etcd's messages. Values are moved, not copied.
//!
//! The other direction, from messages to commands, is `conclave_raft_store::command`, because apply
//! needs it, too.

use conclave_proto::etcdserverpb as etcd;
use conclave_proto::mvccpb;
use conclave_state_machine::command::AlarmKind;
use conclave_state_machine::response::{
    DeleteRangeResponse, KeyValue, OpResponse, PutResponse, RangeResponse, TxnResponse,
};

/// Converts one key at one revision.
pub(crate) fn key_value(kv: KeyValue) -> mvccpb::KeyValue {
    mvccpb::KeyValue {
        key: kv.key,
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
        value: kv.value,
        lease: kv.lease,
    }
}

/// Converts the answer to a range read.
pub(crate) fn range(header: etcd::ResponseHeader, found: RangeResponse) -> etcd::RangeResponse {
    etcd::RangeResponse {
        header: Some(header),
        kvs: found.kvs.into_iter().map(key_value).collect(),
        more: found.more,
        count: found.count,
    }
}

/// Converts the answer to a put.
pub(crate) fn put(header: etcd::ResponseHeader, answer: PutResponse) -> etcd::PutResponse {
    etcd::PutResponse { header: Some(header), prev_kv: answer.prev_kv.map(key_value) }
}

/// Converts the answer to a range delete.
pub(crate) fn delete_range(
    header: etcd::ResponseHeader,
    answer: DeleteRangeResponse,
) -> etcd::DeleteRangeResponse {
    etcd::DeleteRangeResponse {
        header: Some(header),
        deleted: answer.deleted,
        prev_kvs: answer.prev_kvs.into_iter().map(key_value).collect(),
    }
}

/// Converts the answer to a transaction. As in etcd, headers inside it have only the revision, and
/// the header of a nested transaction is empty.
pub(crate) fn txn(header: etcd::ResponseHeader, answer: TxnResponse) -> etcd::TxnResponse {
    etcd::TxnResponse {
        header: Some(header),
        succeeded: answer.succeeded,
        responses: answer
            .responses
            .into_iter()
            .map(|(revision, response)| etcd::ResponseOp { response: Some(op(revision, response)) })
            .collect(),
    }
}

fn op(revision: i64, response: OpResponse) -> etcd::response_op::Response {
    use etcd::response_op::Response;
    let header = etcd::ResponseHeader { revision, ..Default::default() };
    match response {
        OpResponse::Range(found) => Response::ResponseRange(range(header, found)),
        OpResponse::Put(answer) => Response::ResponsePut(put(header, answer)),
        OpResponse::DeleteRange(answer) => {
            Response::ResponseDeleteRange(delete_range(header, answer))
        }
        // The nesting depth was limited when the request was validated.
        OpResponse::Txn(answer) => Response::ResponseTxn(txn(Default::default(), answer)),
    }
}

/// The protocol's alarm type.
pub(crate) fn alarm_type(kind: AlarmKind) -> etcd::AlarmType {
    match kind {
        AlarmKind::None => etcd::AlarmType::None,
        AlarmKind::NoSpace => etcd::AlarmType::Nospace,
        AlarmKind::Corrupt => etcd::AlarmType::Corrupt,
    }
}

/// An alarm as Go prints the message: zero fields omitted, with a trailing blank.
pub(crate) fn alarm_text(&(member, kind): &(u64, AlarmKind)) -> String {
    let name = alarm_type(kind).as_str_name();
    match member {
        0 => format!("alarm:{name} "),
        member => format!("memberID:{member} alarm:{name} "),
    }
}

/// Active alarms as they appear in answers.
pub(crate) fn alarm_members(alarms: &[(u64, AlarmKind)]) -> Vec<etcd::AlarmMember> {
    alarms
        .iter()
        .map(|&(member_id, kind)| etcd::AlarmMember { member_id, alarm: alarm_type(kind) as i32 })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_inside_a_transaction_hold_at_most_the_revision() {
        let nested = TxnResponse {
            succeeded: true,
            responses: vec![(7, OpResponse::Put(PutResponse::default()))],
        };
        let answer = TxnResponse {
            succeeded: true,
            responses: vec![
                (6, OpResponse::Range(RangeResponse::default())),
                (7, OpResponse::Txn(nested)),
            ],
        };
        let header =
            etcd::ResponseHeader { cluster_id: 1, member_id: 2, revision: 7, raft_term: 3 };
        let message = txn(header, answer);
        assert_eq!(message.header, Some(header));
        let Some(etcd::response_op::Response::ResponseRange(range)) =
            &message.responses[0].response
        else {
            panic!("a range comes first");
        };
        let only_revision = etcd::ResponseHeader { revision: 6, ..Default::default() };
        assert_eq!(range.header, Some(only_revision));
        let Some(etcd::response_op::Response::ResponseTxn(nested)) = &message.responses[1].response
        else {
            panic!("a transaction comes second");
        };
        assert_eq!(nested.header, Some(etcd::ResponseHeader::default()));
    }
}
