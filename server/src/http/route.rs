//! Routes requests to services and pages.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use conclave_state_machine::auth::AuthHead;
use http::uri::PathAndQuery;
use http::{Extensions, HeaderMap, Method, Request, Response};
use hyper::body::Incoming;
use tokio::sync::Semaphore;
use tonic::Status;
use tonic::body::Body;
use tower::{BoxError, Service as _};

use super::grpc_web::{self, Kind};
use super::listen::{Entrance, Role};
use super::{deadline, gateway, held, pages, place, web};
use crate::api::context::Context;
use crate::api::{ELECTION_PATH, KV_PATH, LEASE_PATH, LOCK_PATH, Services, reflection};
use crate::auth::Refused;
use crate::auth::access::{self, Access};
use crate::coordination;
use crate::status::{self, Fault};
use crate::tls::ClientName;
use crate::trace::Tracer;

/// How much of a call is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hearing {
    /// Everything within the usual limits.
    Whole,
    /// Little: the call needs no user and has little to send, or is told of its refusal only in the
    /// answer to its first request.
    Little,
    /// Nothing: it is refused whatever it says.
    Nothing,
}

/// Answers the requests of all connections.
pub(crate) struct Router {
    services: Services,
    pub(crate) context: Context,
    /// Makes spans of calls, if tracing is on.
    tracer: Option<Arc<Tracer>>,
    /// Permits for web sockets.
    pub(super) sockets: Arc<Semaphore>,
    /// Byte budgets for JSON being received.
    pub(super) rooms: gateway::Rooms,
}

impl Router {
    /// Routes to these services.
    pub(crate) fn new(services: Services, context: Context, tracer: Option<Arc<Tracer>>) -> Self {
        let sockets = Arc::new(Semaphore::new(gateway::SOCKETS_MAX));
        let rooms = gateway::Rooms::new(&context.limits);
        Self { services, context, tracer, sockets, rooms }
    }

    /// Answers one request. Never fails: failures are answers.
    pub(super) async fn answer(
        self: &Arc<Self>,
        entrance: Entrance,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Infallible> {
        let kind = Kind::of(request.version(), request.headers());
        // On a port without gRPC such a request asks for a page that does not exist.
        if entrance.role == Role::Clients && kind == Kind::Grpc {
            return Ok(self.call(request).await);
        }
        if let Some(refusal) = web::nameless(&request) {
            return Ok(refusal);
        }
        let settings = &self.context.node.settings().web;
        if asks_for_host(entrance)
            && let Some(refusal) = web::misdirected(settings, &request)
        {
            return Ok(refusal);
        }
        let asker = web::Asker::of(request.headers());
        let is_web_call = kind == Kind::GrpcWeb && entrance.role != Role::Pages;
        let mut response = match *request.method() {
            Method::OPTIONS => Response::new(Body::empty()),
            _ if is_web_call => Box::pin(grpc_web::answer(self, request)).await,
            _ => self.page(entrance.role, request).await,
        };
        web::share(settings, &asker, response.headers_mut());
        Ok(response)
    }

    /// Answers a request that is not gRPC.
    async fn page(self: &Arc<Self>, role: Role, request: Request<Incoming>) -> Response<Body> {
        let settings = &self.context.node.settings().web;
        let mut request = match place::straight(request) {
            Ok(request) => request,
            Err(answer) => return *answer,
        };
        let has_gateway = role != Role::Pages && settings.has_gateway;
        let Some(method) = gateway::find(request.uri().path()).filter(|_| has_gateway) else {
            return match gateway::nowhere(request.uri()).filter(|_| has_gateway) {
                Some(answer) => self.answered(request, answer),
                None => pages::answer(&self.context, self.heard(request)).await,
            };
        };
        // Removed first: when users are required, a certificate does not name one here.
        let certificate = request.extensions_mut().remove::<ClientName>();
        if certificate.is_some() && self.context.auth.head().enabled {
            self.answered(request, gateway::certified())
        } else if gateway::is_socket(&request) {
            // Browsers open a web socket without asking permission (CORS).
            match web::foreign(settings, request.headers()) {
                Some(refusal) => refusal,
                None => gateway::socket(self, method, request),
            }
        } else if request.method() != Method::POST {
            self.answered(request, pages::wrong_method())
        } else {
            // A call with many requests may end before they do. The body of any other call is read
            // to its end.
            if method.is_client_streaming() {
                return Box::pin(gateway::answer(self, method, request)).await;
            }
            Box::pin(gateway::answer(self, method, self.heard(request))).await
        }
    }

    /// Wraps the request so that its body is read to the end, whether it matters or not: some
    /// clients, curl among them, fail if an HTTP/2 stream ends before its body.
    fn heard(&self, request: Request<Incoming>) -> Request<gateway::Rest> {
        request.map(|body| gateway::Rest::new(body, self.context.background.clone()))
    }

    /// The answer to a request whose body is not needed.
    fn answered(&self, request: Request<Incoming>, answer: Response<Body>) -> Response<Body> {
        drop(self.heard(request));
        answer
    }

    /// Answers a gRPC call.
    pub(super) async fn call<B>(&self, request: Request<B>) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError> + Send,
    {
        let Some(tracer) = &self.tracer else { return self.serve(request).await };
        let span = tracer.begin(&request);
        span.follow(self.serve(request).await)
    }

    async fn serve<B>(&self, request: Request<B>) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError> + Send,
    {
        if let Some(status) = missing(request.uri().path()) {
            return status.into_http();
        }
        self.count(&request);
        let until = deadline::of(&request);
        if self.context.node.is_learner() && !is_for_learners(request.uri().path()) {
            return Status::from(Fault::NotSupportedForLearner).into_http();
        }
        let mut request = request;
        let head = self.context.auth.head_for(request.headers()).await;
        if head.enabled
            && let Err(status) = self.admit(head, &mut request).await
        {
            return status.into_http();
        }
        let path = request.uri().path_and_query().cloned();
        let answer = self.services.ask(request);
        let Ok(response) = match until {
            None => answer.await,
            Some(until) => match deadline::in_time(until, answer).await {
                Ok(answer) => answer,
                Err(status) => return status.into_http(),
            },
        };
        held::hold(self.reword(response, path.as_ref()))
    }
}

impl Services {
    /// Has the service of the path answer the call.
    async fn ask<B>(&self, request: Request<B>) -> Result<Response<Body>, Infallible>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError> + Send,
    {
        let path = request.uri().path();
        if path.starts_with(KV_PATH) {
            self.kv.clone().call(request).await
        } else if path.starts_with(LOCK_PATH) {
            self.lock.clone().call(request).await
        } else if path.starts_with(LEASE_PATH) {
            self.lease.clone().call(request).await
        } else {
            self.others.clone().call(request.map(Body::new)).await
        }
    }
}

impl Router {
    /// Counts a call of a known method.
    fn count<B>(&self, request: &Request<B>) {
        let path = request.uri().path();
        let is_stream = match path.strip_prefix(KV_PATH) {
            Some(method) => method == "RangeStream",
            None => match access::method_of(path) {
                Some(method) => !method.is_unary(),
                None => match service_and_method(path) {
                    Some((HEALTH, method)) => method == "Watch",
                    _ => return,
                },
            },
        };
        self.context.metrics.requests.count(request.headers(), is_stream);
    }

    /// Gives the error for a message beyond the receive limit the code and text of Go's gRPC, and
    /// counts it. tonic checks this before any code of ours and words it differently.
    fn reword(&self, response: Response<Body>, path: Option<&PathAndQuery>) -> Response<Body> {
        let status = response.extensions().get::<Status>().and_then(status::too_large_as_in_go);
        let Some(status) = status else { return response };
        if let Some(method) = path.and_then(|path| access::method_of(path.path())) {
            self.context.metrics.calls(method).refuse(&status);
        }
        status.into_http()
    }

    /// How much of a call is worth reading before its content is known.
    pub(super) async fn hearing(
        &self,
        path: &str,
        headers: &HeaderMap,
        extensions: &Extensions,
    ) -> Hearing {
        let access = access::of_path(path);
        if access == Some(Access::Open) {
            return Hearing::Little;
        }
        let auth = &self.context.auth;
        let head = auth.head();
        if !head.enabled || auth.admit(head, path, headers, extensions).await.is_ok() {
            Hearing::Whole
        } else if access == Some(Access::Watch) {
            Hearing::Little
        } else {
            Hearing::Nothing
        }
    }

    /// Adds the caller to the request, or returns why it may not call. A watch is refused later, in
    /// its first answer.
    async fn admit<B>(&self, head: AuthHead, request: &mut Request<B>) -> Result<(), Status> {
        let path = request.uri().path();
        let (headers, extensions) = (request.headers(), request.extensions());
        match self.context.auth.admit(head, path, headers, extensions).await {
            Ok(caller) => {
                request.extensions_mut().insert(caller);
                Ok(())
            }
            Err(status) if access::of_path(path) == Some(Access::Watch) => {
                request.extensions_mut().insert(Refused(status));
                Ok(())
            }
            Err(status) => {
                let status = in_words_of(path, status);
                if let Some(method) = access::method_of(path) {
                    self.context.metrics.calls(method).refuse(&status);
                }
                Err(status)
            }
        }
    }
}

/// Rewords the refusal of a call: etcd's lock and election services call the store as clients and
/// pass on its error text without its code.
fn in_words_of(path: &str, refusal: Status) -> Status {
    if path.starts_with(LOCK_PATH) || path.starts_with(ELECTION_PATH) {
        status::unknown(refusal.message())
    } else {
        refusal
    }
}

/// Whether `--host-whitelist` applies. Not where there are only pages for probes and Prometheus, as
/// in etcd: their callers use addresses that nobody lists, such as a pod's.
fn asks_for_host(entrance: Entrance) -> bool {
    match entrance.role {
        Role::Clients | Role::Http => !entrance.is_tls,
        Role::Pages => false,
    }
}

/// Services besides KV and our own whose methods have entries in the access table.
const KNOWN: [&str; 7] = [
    "etcdserverpb.Watch",
    "etcdserverpb.Lease",
    "etcdserverpb.Cluster",
    "etcdserverpb.Maintenance",
    "etcdserverpb.Auth",
    "v3lockpb.Lock",
    "v3electionpb.Election",
];
const HEALTH: &str = "grpc.health.v1.Health";
/// The methods below [`KV_PATH`], which most calls use.
const KV_METHODS: [&str; 6] = ["Put", "Range", "Txn", "DeleteRange", "Compact", "RangeStream"];

/// The answer of Go's gRPC to a call that does not exist, which it gives before it authenticates
/// the caller.
fn missing(path: &str) -> Option<Status> {
    let is_kv_call = path.strip_prefix(KV_PATH).is_some_and(|method| KV_METHODS.contains(&method));
    if is_kv_call || access::method_of(path).is_some() {
        return None;
    }
    let Some((service, method)) = service_and_method(path) else {
        return Some(status::unimplemented(format!("malformed method name: {path:?}")));
    };
    let is_ours = KV_PATH[1..].strip_suffix('/') == Some(service)
        || KNOWN.contains(&service)
        || coordination::SERVICES.contains(&service);
    if is_ours {
        let text = format!("unknown method {method} for service {service}");
        return Some(status::unimplemented(text));
    }
    let is_there = service == HEALTH || reflection::SERVICES.contains(&service);
    (!is_there).then(|| status::unimplemented(format!("unknown service {service}")))
}

fn service_and_method(path: &str) -> Option<(&str, &str)> {
    path.strip_prefix('/')?.rsplit_once('/')
}

/// The calls that a learner answers. Of reads only serializable ones, which the read itself checks.
const FOR_LEARNERS: [&str; 5] = [
    "/etcdserverpb.KV/Range",
    "/etcdserverpb.KV/RangeStream",
    "/etcdserverpb.Maintenance/Status",
    "/etcdserverpb.Maintenance/Snapshot",
    "/grpc.health.v1.Health/Check",
];

fn is_for_learners(path: &str) -> bool {
    FOR_LEARNERS.contains(&path)
        || service_and_method(path)
            .is_some_and(|(service, _)| reflection::SERVICES.contains(&service))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_named_as_by_gos_grpc() {
        let text = |path: &str| missing(path).map(|status| status.message().to_owned());
        for (path, told) in [
            ("/no.Such/Call", "unknown service no.Such"),
            ("/etcdserverpb.KV/Peek", "unknown method Peek for service etcdserverpb.KV"),
            ("/etcdserverpb.Auth/", "unknown method  for service etcdserverpb.Auth"),
            ("/etcdserverpb.KV/Put/x", "unknown service etcdserverpb.KV/Put"),
            (
                "/conclave.v1.LockService/Peek",
                "unknown method Peek for service conclave.v1.LockService",
            ),
            ("/nothing", "malformed method name: \"/nothing\""),
        ] {
            assert_eq!(text(path).as_deref(), Some(told), "{path}");
        }
    }

    #[test]
    fn only_ports_of_clients_in_the_clear_ask_for_the_host() {
        for (role, clear) in [(Role::Clients, true), (Role::Http, true), (Role::Pages, false)] {
            assert_eq!(asks_for_host(Entrance { role, is_tls: false }), clear, "{role:?}");
            assert!(!asks_for_host(Entrance { role, is_tls: true }), "{role:?}");
        }
    }

    #[test]
    fn every_method_is_there() {
        for method in crate::metrics::Method::ALL {
            let [_, (_, service), (_, name)] = method.labels();
            let path = format!("/{service}/{name}");
            assert!(missing(&path).is_none(), "{path}");
            for (prefix, owner) in
                [(LOCK_PATH, "v3lockpb.Lock"), (LEASE_PATH, "etcdserverpb.Lease")]
            {
                assert_eq!(path.starts_with(prefix), service == owner, "{path}");
            }
            let is_kv = path.strip_prefix(KV_PATH).is_some();
            assert_eq!(is_kv, KV_METHODS.contains(&name) && service == "etcdserverpb.KV", "{path}");
        }
        for path in ["/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"] {
            assert!(missing(path).is_none(), "{path}");
        }
    }
}
