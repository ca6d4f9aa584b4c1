//! Authentication in the scripted server: if a token is required, only the valid one is accepted.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
};

use conclave_client::pb::{AuthenticateRequest, AuthenticateResponse};
use tonic::{
    Request, Response, Status,
    body::Body,
    codegen::{Service, http},
    server::{Grpc, NamedService},
};
use tonic_prost::ProstCodec;

use super::Script;

/// Accepts or refuses a request of any kind.
pub(super) fn admit(script: &Script, request: Request<()>) -> Result<Request<()>, Status> {
    if script.is_learner.load(Ordering::Relaxed) {
        return Err(Status::failed_precondition("etcdserver: rpc not supported for learner"));
    }
    if let Some(timeout) = request.metadata().get("grpc-timeout") {
        script.timeouts.lock().push(timeout.to_str().unwrap_or_default().to_owned());
    }
    if let Some(failure) = &*script.failure.lock() {
        return Err(failure.clone());
    }
    if let Some(context) = request.metadata().get("traceparent") {
        let context = context.to_str().unwrap_or_default().to_owned();
        script.traced.lock().push(context);
    }
    let good = script.token.load(Ordering::Relaxed);
    match request.metadata().get("token") {
        Some(token) if good > 0 && token.as_bytes() != good.to_string().as_bytes() => {
            Err(Status::unauthenticated("etcdserver: invalid auth token"))
        }
        _ => Ok(request),
    }
}

/// The one call of etcd's Auth service needed here: returns the valid token.
#[derive(Clone)]
pub(super) struct Desk(pub(super) Arc<Script>);

impl NamedService for Desk {
    const NAME: &'static str = "etcdserverpb.Auth";
}

type Answer = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

impl Service<http::Request<Body>> for Desk {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let script = Arc::clone(&self.0);
        let login = tower::service_fn(move |_: Request<AuthenticateRequest>| {
            script.logins.fetch_add(1, Ordering::Relaxed);
            let token = script.token.load(Ordering::Relaxed).to_string();
            let answer = AuthenticateResponse { token, ..AuthenticateResponse::default() };
            async move { Ok::<_, Status>(Response::new(answer)) }
        });
        Box::pin(async move {
            let codec = ProstCodec::<AuthenticateResponse, AuthenticateRequest>::default();
            Ok(Grpc::new(codec).unary(login, request).await)
        })
    }
}
