//! Spans of calls, as a collector gets them.

use std::collections::BTreeMap;
use std::sync::Arc;

use conclave_proto::etcdserverpb::auth_client::AuthClient;
use conclave_proto::etcdserverpb::{
    AuthEnableRequest, AuthUserAddRequest, AuthUserGrantRoleRequest, AuthenticateRequest,
};
use futures::StreamExt as _;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use crate::cluster::{free_ports, within};
use crate::support::{put, range, server};

/// What arrived: spans, and what was said of who sent them.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<(Vec<Span>, Attributes)>>);

type Attributes = BTreeMap<String, String>;

fn attributes(attributes: &[KeyValue]) -> Attributes {
    let text = |value: &Option<AnyValue>| match value.as_ref().and_then(|v| v.value.as_ref()) {
        Some(any_value::Value::StringValue(text)) => text.clone(),
        Some(any_value::Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    };
    attributes.iter().map(|pair| (pair.key.clone(), text(&pair.value))).collect()
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut seen = self.0.lock();
        for resource in request.into_inner().resource_spans {
            seen.1 = attributes(&resource.resource.unwrap_or_default().attributes);
            seen.0.extend(resource.scope_spans.into_iter().flat_map(|scope| scope.spans));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Listens; returns where.
    async fn start(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let service = TraceServiceServer::new(self.clone());
        let serving = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(serving.serve_with_incoming(TcpListenerStream::new(listener)));
        address
    }
}

/// A request of a caller that traces what it does.
fn traced<T>(message: T, sampled: bool) -> Request<T> {
    let mut request = Request::new(message);
    let flags = u8::from(sampled);
    let parent = format!("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-{flags:02x}");
    request.metadata_mut().insert("traceparent", parent.parse().unwrap());
    request
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_traced_put_is_seen_by_the_collector() {
    let collector = Collector::default();
    let address = collector.start().await;
    let server = server(&[
        "--enable-distributed-tracing",
        &format!("--distributed-tracing-address={address}"),
        "--distributed-tracing-service-name=svc",
        "--experimental-distributed-tracing-instance-id=one",
    ])
    .await;
    let mut kv = server.kv();
    kv.put(traced(put("a", "1"), true)).await.unwrap();
    kv.put(traced(put("", "1"), true)).await.unwrap_err();
    // Not of interest to its caller, and no caller that traces.
    kv.range(traced(range("a", ""), false)).await.unwrap();
    kv.range(range("a", "")).await.unwrap();
    drop(kv);
    // What is not sent yet is sent then.
    within("it stops", server.running.stop()).await;
    let (spans, resource) = collector.0.lock().clone();
    assert_eq!(resource["service.name"], "svc");
    assert_eq!(resource["service.instance.id"], "one");
    let names: Vec<_> = spans.iter().map(|span| span.name.as_str()).collect();
    assert_eq!(names, ["etcdserverpb.KV/Put", "etcdserverpb.KV/Put"]);
    for (span, code) in spans.iter().zip(["0", "3"]) {
        assert_eq!(span.trace_id[..2], [0x0a, 0xf7]);
        assert_eq!(span.parent_span_id[..2], [0xb7, 0xad]);
        assert!(span.end_time_unix_nano >= span.start_time_unix_nano);
        let attributes = attributes(&span.attributes);
        assert_eq!(attributes["rpc.service"], "etcdserverpb.KV");
        assert_eq!(attributes["rpc.grpc.status_code"], code);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_without_a_trace_are_chosen_by_chance() {
    let collector = Collector::default();
    let address = collector.start().await;
    let all = ["--distributed-tracing-sampling-rate=1000000", "--enable-distributed-tracing=true"];
    let address = format!("--distributed-tracing-address={address}");
    let server = server(&[&all, [address.as_str()].as_slice()].concat()).await;
    server.put("a", "1").await;
    within("it stops", server.running.stop()).await;
    let (spans, resource) = collector.0.lock().clone();
    assert_eq!(resource["service.name"], "etcd");
    assert!(spans.iter().any(|span| span.name == "etcdserverpb.KV/Put"), "{spans:?}");
    assert!(spans.iter().all(|span| span.parent_span_id.is_empty()));
}

/// What a span tells of a call is its name and its outcome.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spans_hold_no_secrets() {
    const SECRETS: [&str; 3] = ["canary-password", "canary-key", "canary-value"];
    let [password, key, value] = SECRETS;
    let collector = Collector::default();
    let address = format!("--distributed-tracing-address={}", collector.start().await);
    let all = "--distributed-tracing-sampling-rate=1000000";
    let server = server(&["--enable-distributed-tracing", all, &address]).await;
    let mut auth = AuthClient::new(server.channel.clone());
    let (name, role) = ("root".to_owned(), "root".to_owned());
    let user = AuthUserAddRequest { name, password: password.to_owned(), ..Default::default() };
    auth.user_add(user).await.unwrap();
    auth.user_grant_role(AuthUserGrantRoleRequest { user: "root".to_owned(), role }).await.unwrap();
    auth.auth_enable(AuthEnableRequest {}).await.unwrap();
    let who = |password: &str| AuthenticateRequest {
        name: "root".to_owned(),
        password: password.to_owned(),
    };
    auth.authenticate(who(&format!("{password}-wrong"))).await.unwrap_err();
    let token = auth.authenticate(who(password)).await.unwrap().into_inner().token;
    let mut request = Request::new(put(key, value));
    request.metadata_mut().insert("token", token.parse().unwrap());
    server.kv().put(request).await.unwrap();
    server.kv().range(range(key, "")).await.unwrap_err();
    drop(auth);
    within("it stops", server.running.stop()).await;
    let seen = format!("{:?}", collector.0.lock());
    for name in ["Auth/Authenticate", "Auth/UserAdd", "KV/Put", "KV/Range"] {
        assert!(seen.contains(name), "{seen}");
    }
    for secret in [password, key, value, &token] {
        // Bytes would be shown as numbers.
        assert!(!seen.contains(secret), "{secret} in {seen}");
        assert!(!seen.contains(&format!("{:?}", secret.as_bytes())), "{secret} in {seen}");
    }
}

/// A collector that is not there costs no call anything, and no stop more than its patience.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_is_away_disturbs_nobody() {
    let nobody = format!("--distributed-tracing-address=127.0.0.1:{}", free_ports(1)[0]);
    let all = "--distributed-tracing-sampling-rate=1000000";
    let server = server(&["--enable-distributed-tracing", all, &nobody]).await;
    // More than wait at one time.
    let puts = (0..5_000).map(|i| {
        let mut kv = server.kv();
        async move { kv.put(put(&format!("k{i}"), "v")).await }
    });
    let answers = futures::stream::iter(puts).buffer_unordered(64).collect::<Vec<_>>().await;
    assert!(answers.iter().all(Result::is_ok));
    within("it stops", server.running.stop()).await;
}
