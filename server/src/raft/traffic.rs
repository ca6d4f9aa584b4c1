//! Counts the bytes exchanged with each member.
//!
//! The caller names itself in a header, so that the receiver knows whom the bytes of a call belong
//! to before it reads any. As in etcd only message bytes are counted, not those of the connection.

use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use http::{HeaderName, HeaderValue, Request, Response};
use http_body_util::BodyExt as _;
use prometheus_client::metrics::counter::Counter;
use tonic::body::Body;
use tower::{Layer, Service};

use crate::metrics::{Peer, Peers};

/// Carries the caller's member id in hexadecimal.
const CALLER: HeaderName = HeaderName::from_static("conclave-member");

/// Counts the bytes of a body as they pass.
fn counted(body: Body, bytes: &Counter) -> Body {
    let bytes = bytes.clone();
    Body::new(body.inspect_frame(move |frame| {
        if let Some(data) = frame.data_ref() {
            bytes.inc_by(data.len() as u64);
        }
    }))
}

/// Makes calls to one member and counts their bytes.
#[derive(Clone, Debug)]
pub(crate) struct Caller<S> {
    inner: S,
    peer: Arc<Peer>,
    own_id: HeaderValue,
}

impl<S> Caller<S> {
    /// Calls `peer` through `inner` as member `own_id`.
    pub(crate) fn new(inner: S, peer: Arc<Peer>, own_id: u64) -> Self {
        let own_id = HeaderValue::from_str(&format!("{own_id:x}"));
        Self { inner, peer, own_id: own_id.expect("hexadecimal digits are a header value") }
    }
}

impl<S> Service<Request<Body>> for Caller<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let mut request = request.map(|body| counted(body, &self.peer.sent_bytes));
        request.headers_mut().insert(CALLER, self.own_id.clone());
        let (answer, peer) = (self.inner.call(request), self.peer.clone());
        Box::pin(async move {
            let answer = answer.await;
            if answer.is_err() {
                peer.send_failures.inc();
            }
            answer.map(|answer| answer.map(|body| counted(body, &peer.received_bytes)))
        })
    }
}

/// Layer that counts the bytes of incoming calls by member.
#[derive(Clone)]
pub(crate) struct Receiving {
    pub(crate) peers: Peers,
}

/// A service whose callers' bytes are counted.
#[derive(Clone)]
pub(crate) struct Receiver<S> {
    inner: S,
    peers: Peers,
}

impl<S> Layer<S> for Receiving {
    type Service = Receiver<S>;

    fn layer(&self, inner: S) -> Receiver<S> {
        Receiver { inner, peers: self.peers.clone() }
    }
}

impl<S> Service<Request<Body>> for Receiver<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let caller = request.headers().get(&CALLER).and_then(|id| id.to_str().ok());
        let caller = caller.and_then(|id| u64::from_str_radix(id, 16).ok());
        let Some(peer) = caller.and_then(|id| self.peers.caller(id)) else {
            return Box::pin(self.inner.call(request));
        };
        let request = request.map(|body| counted(body, &peer.received_bytes));
        let answer = self.inner.call(request);
        Box::pin(async move {
            answer.await.map(|answer| answer.map(|body| counted(body, &peer.sent_bytes)))
        })
    }
}
