//! A namespace within the key space: a prefix is added to every key that is sent, and removed from
//! the keys in answers. It works like the package `namespace` of etcd's own client.

use bytes::Bytes;
use conclave_proto::{
    etcdserverpb::{
        Compare, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest,
        RangeResponse, RequestOp, ResponseOp, TxnRequest, TxnResponse, request_op::Request,
        response_op::Response,
    },
    mvccpb::{Event, KeyValue},
};
use tonic::Status;

use crate::{
    error::Error,
    key::{ALL, prefix_end},
};

/// The prefix of every key; empty by default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Namespace(Bytes);

impl Namespace {
    /// The namespace `prefix` within this one.
    pub(crate) fn within(&self, prefix: &[u8]) -> Self {
        Self(self.name(prefix))
    }

    pub(crate) fn prefix(&self) -> &Bytes {
        &self.0
    }

    /// The full name of a lock, an election or anything else with its keys below its name.
    pub(crate) fn name(&self, name: impl Into<Vec<u8>>) -> Bytes {
        let name = name.into();
        if self.0.is_empty() { name.into() } else { [&self.0[..], &name].concat().into() }
    }

    /// Makes a name or key relative to this namespace.
    pub(crate) fn strip(&self, key: &mut Bytes) {
        if key.starts_with(&self.0) {
            *key = key.slice(self.0.len()..);
        }
    }

    /// Those of `keys` that are in this namespace, relative to it.
    pub(crate) fn own(&self, keys: Vec<Bytes>) -> Vec<Bytes> {
        let own = keys.into_iter().filter(|key| key.starts_with(&self.0));
        own.map(|key| key.slice(self.0.len()..)).collect()
    }

    /// Maps a key, or a range, which is limited to this namespace.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the key is empty: the prefix alone is not a key.
    pub(crate) fn span(&self, key: &mut Bytes, range_end: &mut Bytes) -> Result<(), Error> {
        if self.0.is_empty() {
            return Ok(());
        }
        if key.is_empty() {
            return Err(Error::Invalid(Status::invalid_argument("conclave: key is not provided")));
        }
        let is_open = range_end == ALL;
        *key = match &key[..] {
            // The first possible key; within the namespace that is the empty name.
            ALL if is_open => self.0.clone(),
            key => self.name(key),
        };
        if is_open {
            *range_end = prefix_end(&self.0);
        } else if !range_end.is_empty() {
            *range_end = self.name(&range_end[..]);
        }
        Ok(())
    }

    pub(crate) fn range(&self, mut request: RangeRequest) -> Result<RangeRequest, Error> {
        self.span(&mut request.key, &mut request.range_end)?;
        Ok(request)
    }

    pub(crate) fn put(&self, mut request: PutRequest) -> Result<PutRequest, Error> {
        self.span(&mut request.key, &mut Bytes::new())?;
        Ok(request)
    }

    pub(crate) fn delete(
        &self,
        mut request: DeleteRangeRequest,
    ) -> Result<DeleteRangeRequest, Error> {
        self.span(&mut request.key, &mut request.range_end)?;
        Ok(request)
    }

    pub(crate) fn txn(&self, request: TxnRequest) -> Result<TxnRequest, Error> {
        if self.0.is_empty() {
            return Ok(request);
        }
        let TxnRequest { compare, success, failure } = request;
        let compare = compare.into_iter().map(|compare| self.compare(compare));
        Ok(TxnRequest {
            compare: compare.collect::<Result<_, _>>()?,
            success: self.operations(success)?,
            failure: self.operations(failure)?,
        })
    }

    fn compare(&self, mut compare: Compare) -> Result<Compare, Error> {
        self.span(&mut compare.key, &mut compare.range_end)?;
        Ok(compare)
    }

    fn operations(&self, operations: Vec<RequestOp>) -> Result<Vec<RequestOp>, Error> {
        let operation = |operation: RequestOp| {
            let request = match operation.request {
                Some(Request::RequestRange(range)) => Request::RequestRange(self.range(range)?),
                Some(Request::RequestPut(put)) => Request::RequestPut(self.put(put)?),
                Some(Request::RequestDeleteRange(delete)) => {
                    Request::RequestDeleteRange(self.delete(delete)?)
                }
                Some(Request::RequestTxn(txn)) => Request::RequestTxn(self.txn(txn)?),
                None => return Ok(RequestOp { request: None }),
            };
            Ok(RequestOp { request: Some(request) })
        };
        operations.into_iter().map(operation).collect()
    }

    pub(crate) fn ranged(&self, mut answer: RangeResponse) -> RangeResponse {
        self.strip_all(&mut answer.kvs);
        answer
    }

    pub(crate) fn was_put(&self, mut answer: PutResponse) -> PutResponse {
        self.strip_all(&mut answer.prev_kv);
        answer
    }

    pub(crate) fn deleted(&self, mut answer: DeleteRangeResponse) -> DeleteRangeResponse {
        self.strip_all(&mut answer.prev_kvs);
        answer
    }

    pub(crate) fn committed(&self, mut answer: TxnResponse) -> TxnResponse {
        if self.0.is_empty() {
            return answer;
        }
        let operation = |operation: ResponseOp| {
            let response = operation.response.map(|response| match response {
                Response::ResponseRange(range) => Response::ResponseRange(self.ranged(range)),
                Response::ResponsePut(put) => Response::ResponsePut(self.was_put(put)),
                Response::ResponseDeleteRange(delete) => {
                    Response::ResponseDeleteRange(self.deleted(delete))
                }
                Response::ResponseTxn(txn) => Response::ResponseTxn(self.committed(txn)),
            });
            ResponseOp { response }
        };
        answer.responses = answer.responses.into_iter().map(operation).collect();
        answer
    }

    pub(crate) fn happened(&self, events: &mut [Event]) {
        for event in events {
            self.strip_all(&mut event.kv);
            self.strip_all(&mut event.prev_kv);
        }
    }

    fn strip_all<'a>(&self, pairs: impl IntoIterator<Item = &'a mut KeyValue>) {
        if !self.0.is_empty() {
            pairs.into_iter().for_each(|kv| self.strip(&mut kv.key));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        kv::{delete, get, put},
        txn::{key, txn},
    };

    fn span(key: &'static str, end: &'static str) -> (Bytes, Bytes) {
        let mut span = (Bytes::from(key), Bytes::from(end));
        Namespace(Bytes::from("a/")).span(&mut span.0, &mut span.1).unwrap();
        span
    }

    #[test]
    fn a_range_stays_within_its_namespace() {
        assert_eq!(span("k", ""), ("a/k".into(), "".into()));
        assert_eq!(span("k", "l"), ("a/k".into(), "a/l".into()));
        assert_eq!(span("k", "\0"), ("a/k".into(), "a0".into()), "from the key on");
        assert_eq!(span("\0", "\0"), ("a/".into(), "a0".into()), "all keys");
        assert_eq!(span("\0", ""), ("a/\0".into(), "".into()), "the key of one zero");
        let all = Namespace(Bytes::from_static(&[255, 255]));
        let mut from = (Bytes::from("k"), Bytes::from("\0"));
        all.span(&mut from.0, &mut from.1).unwrap();
        assert_eq!(from.1, "\0", "nothing sorts behind it");
    }

    #[test]
    fn without_a_key_there_is_none() {
        let inner = Namespace(Bytes::from("a/"));
        let error = inner.put(put("", "v").into()).unwrap_err();
        assert!(matches!(error, Error::Invalid(_)), "{error}");
        assert!(Namespace::default().put(put("", "v").into()).is_ok(), "the server says so");
        assert_eq!(inner.within(b"b/").name("k"), "a/b/k");
    }

    #[test]
    fn transactions_are_translated_to_the_innermost() {
        let inner = txn().when(key("c").prefix().version().equal(0)).then(delete("d").prefix());
        let outer = txn().when(key("c").value().equal("c")).then(inner).or_else(get("g"));
        let outer = outer.or_else(put("p", "c"));
        let namespace = Namespace(Bytes::from("a/"));
        let there = namespace.txn(outer.request.clone()).unwrap();
        let inner = txn().when(key("a/c").prefix().version().equal(0)).then(delete("a/d").prefix());
        let translated = txn().when(key("a/c").value().equal("c")).then(inner).or_else(get("a/g"));
        let translated = translated.or_else(put("a/p", "c"));
        assert_eq!(there, translated.request);
        assert_eq!(Namespace::default().txn(outer.request.clone()).unwrap(), outer.request);
    }
}
