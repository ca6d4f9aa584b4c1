//! Between the histories' plain types and etcd's messages.

use anyhow::{Context, Result};
use bytes::Bytes;
use conclave_benches::connection::Connection;
use conclave_proto::etcdserverpb::kv_client::KvClient;
use conclave_proto::etcdserverpb::{
    self as pb, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, ResponseOp, TxnRequest,
    compare::{CompareResult, CompareTarget, TargetUnion},
    request_op, response_op,
};
use conclave_proto::mvccpb;
use tonic::{Code, Status};

use crate::history::{
    Compare, Event, KeyValue, Operand, Outcome, Relation, Request, Response, Revision, Txn,
    WatchNews, WatchSession,
};

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn text(bytes: &Bytes) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn revision(header: Option<&pb::ResponseHeader>) -> Result<Revision> {
    Ok(header.context("a response has a header")?.revision)
}

/// Sends a request and waits for the answer; an answer that makes no sense is an error of its own.
///
/// # Errors
/// The server's or the transport's status.
pub async fn send(kv: &mut KvClient<Connection>, request: &Request) -> Result<Outcome, Status> {
    let garbled = |error: anyhow::Error| Status::data_loss(format!("garbled answer: {error:#}"));
    let (revision, response) = match request_op(request) {
        request_op::Request::RequestPut(put) => {
            let answer = kv.put(put).await?.into_inner();
            (revision(answer.header.as_ref()), response_op::Response::ResponsePut(answer))
        }
        request_op::Request::RequestDeleteRange(delete) => {
            let answer = kv.delete_range(delete).await?.into_inner();
            (revision(answer.header.as_ref()), response_op::Response::ResponseDeleteRange(answer))
        }
        request_op::Request::RequestRange(range) => {
            let answer = kv.range(range).await?.into_inner();
            (revision(answer.header.as_ref()), response_op::Response::ResponseRange(answer))
        }
        request_op::Request::RequestTxn(txn) => {
            let answer = kv.txn(txn).await?.into_inner();
            (revision(answer.header.as_ref()), response_op::Response::ResponseTxn(answer))
        }
    };
    let response = self::response(response).map_err(garbled)?;
    Ok(Outcome::Ok { revision: revision.map_err(garbled)?, response })
}

/// What an error means for the request: refused for certain, or unknown.
#[must_use]
pub fn failure(status: &Status) -> Outcome {
    let detail = format!("{:?}: {}", status.code(), status.message());
    match status.code() {
        Code::InvalidArgument
        | Code::NotFound
        | Code::OutOfRange
        | Code::FailedPrecondition
        | Code::Unimplemented
        | Code::PermissionDenied => Outcome::Failed(detail),
        _ => Outcome::Unknown(detail),
    }
}

fn request_op(request: &Request) -> request_op::Request {
    match request {
        Request::Put { key, value } => request_op::Request::RequestPut(PutRequest {
            key: bytes(key),
            value: bytes(value),
            prev_kv: true,
            ..Default::default()
        }),
        Request::Delete { start, end } => {
            request_op::Request::RequestDeleteRange(DeleteRangeRequest {
                key: bytes(start),
                range_end: bytes(end),
                prev_kv: true,
            })
        }
        Request::Range(range) => request_op::Request::RequestRange(RangeRequest {
            key: bytes(&range.start),
            range_end: bytes(&range.end),
            limit: range.limit,
            revision: range.revision,
            serializable: range.serializable,
            ..Default::default()
        }),
        Request::Txn(txn) => request_op::Request::RequestTxn(txn_request(txn)),
    }
}

fn txn_request(txn: &Txn) -> TxnRequest {
    let operations = |requests: &[Request]| {
        requests.iter().map(|request| RequestOp { request: Some(request_op(request)) }).collect()
    };
    TxnRequest {
        compare: txn.compares.iter().map(compare).collect(),
        success: operations(&txn.success),
        failure: operations(&txn.failure),
    }
}

fn compare(compare: &Compare) -> pb::Compare {
    let result = match compare.relation {
        Relation::Equal => CompareResult::Equal,
        Relation::NotEqual => CompareResult::NotEqual,
        Relation::Greater => CompareResult::Greater,
        Relation::Less => CompareResult::Less,
    };
    let (target, union) = match &compare.operand {
        Operand::Version(version) => (CompareTarget::Version, TargetUnion::Version(*version)),
        Operand::Create(revision) => {
            (CompareTarget::Create, TargetUnion::CreateRevision(*revision))
        }
        Operand::Modified(revision) => (CompareTarget::Mod, TargetUnion::ModRevision(*revision)),
        Operand::Value(value) => (CompareTarget::Value, TargetUnion::Value(bytes(value))),
    };
    pb::Compare {
        result: result.into(),
        target: target.into(),
        key: bytes(&compare.key),
        target_union: Some(union),
        ..Default::default()
    }
}

fn response(response: response_op::Response) -> Result<Response> {
    Ok(match response {
        response_op::Response::ResponsePut(put) => {
            Response::Put { previous: put.prev_kv.as_ref().map(key_value) }
        }
        response_op::Response::ResponseDeleteRange(delete) => {
            let previous: Vec<KeyValue> = delete.prev_kvs.iter().map(key_value).collect();
            anyhow::ensure!(previous.len() as i64 == delete.deleted, "deleted {}", delete.deleted);
            Response::Delete { previous }
        }
        response_op::Response::ResponseRange(range) => {
            let is_cut = range.count > range.kvs.len() as i64;
            anyhow::ensure!(
                range.more == is_cut,
                "more is {} at count {}",
                range.more,
                range.count
            );
            Response::Range { kvs: range.kvs.iter().map(key_value).collect(), count: range.count }
        }
        response_op::Response::ResponseTxn(txn) => {
            let nested = |op: ResponseOp| self::response(op.response.context("an empty answer")?);
            let responses = txn.responses.into_iter().map(nested).collect::<Result<_>>()?;
            Response::Txn { succeeded: txn.succeeded, responses }
        }
    })
}

fn key_value(kv: &mvccpb::KeyValue) -> KeyValue {
    KeyValue {
        key: text(&kv.key),
        value: text(&kv.value),
        create: kv.create_revision,
        modified: kv.mod_revision,
        version: kv.version,
    }
}

/// The request that opens `session` at `from`.
#[must_use]
pub fn watch_request(session: &WatchSession) -> pb::WatchRequest {
    use pb::watch_create_request::FilterType;
    let puts = session.no_puts.then_some(FilterType::Noput.into());
    let deletes = session.no_deletes.then_some(FilterType::Nodelete.into());
    let create = pb::WatchCreateRequest {
        key: bytes(&session.start),
        range_end: bytes(&session.end),
        start_revision: session.from,
        filters: puts.into_iter().chain(deletes).collect(),
        prev_kv: session.with_previous,
        ..Default::default()
    };
    pb::WatchRequest { request_union: Some(pb::watch_request::RequestUnion::CreateRequest(create)) }
}

/// The request for a progress notice.
#[must_use]
pub fn progress_request() -> pb::WatchRequest {
    let progress = pb::watch_request::RequestUnion::ProgressRequest(pb::WatchProgressRequest {});
    pb::WatchRequest { request_union: Some(progress) }
}

/// What a response on a watch stream says.
#[must_use]
pub fn watch_news(response: &pb::WatchResponse) -> WatchNews {
    if response.canceled {
        return WatchNews::Canceled {
            reason: response.cancel_reason.clone(),
            compact_revision: response.compact_revision,
        };
    }
    if response.created {
        return WatchNews::Created;
    }
    if response.events.is_empty() {
        return WatchNews::Progress;
    }
    WatchNews::Events(response.events.iter().map(event).collect())
}

fn event(event: &mvccpb::Event) -> Event {
    let kv = event.kv.clone().unwrap_or_default();
    let previous = event.prev_kv.as_ref().map(key_value);
    match event.r#type() {
        mvccpb::event::EventType::Put => Event::Put { kv: key_value(&kv), previous },
        mvccpb::event::EventType::Delete => {
            Event::Delete { key: text(&kv.key), revision: kv.mod_revision, previous }
        }
    }
}
