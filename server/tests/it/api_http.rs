//! The pages beside gRPC, and what a broken client can do to the port.

use std::time::Duration;

use conclave_proto::etcdserverpb::{AlarmType, alarm_request::AlarmAction};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::api_maintenance::alarm;
use crate::cluster::within;
use crate::support::{Server, server};

/// Sends one HTTP/1.1 request and returns the whole answer.
pub(crate) async fn http(server: &Server, request: &str) -> String {
    http_with(server, request, "").await
}

/// As [`http`], with these headers, each with its end of line.
pub(crate) async fn http_with(server: &Server, request: &str, headers: &str) -> String {
    let mut stream = TcpStream::connect(server.running.client_addresses()[0]).await.unwrap();
    let headers = format!("{headers}Host: localhost\r\nConnection: close\r\n\r\n");
    let request = format!("{request} HTTP/1.1\r\n{headers}");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    within("an answer", stream.read_to_string(&mut answer)).await.unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paths_and_headers_are_taken_as_in_etcd() {
    let server = server(&[]).await;
    for (path, to) in [
        ("/v3?a=b", "/v3/?a=b"),
        ("//v3/kv/range", "/v3/kv/range"),
        ("/v3//kv/range?a=b", "/v3/kv/range?a=b"),
        ("/v3/kv/../kv/range", "/v3/kv/range"),
        ("//health", "/health"),
    ] {
        let moved = http(&server, &format!("POST {path}")).await;
        assert!(moved.starts_with("HTTP/1.1 301 "), "{path}: {moved}");
        assert!(moved.contains(&format!("\r\nlocation: {to}\r\n")), "{path}: {moved}");
    }
    let many: String = (0..400).map(|i| format!("x-{i}: a\r\n")).collect();
    for (request, headers, status) in [
        ("POST /v3/lease/le%61ses", "", 200),
        ("GET /he%61lth", "", 200),
        ("GET /he%6", "", 400),
        ("GET /health", many.as_str(), 200),
        ("GET /health", "host: a\r\n", 400),
    ] {
        let answer = http_with(&server, request, headers).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {answer}");
    }
    let mut stream = TcpStream::connect(server.running.client_addresses()[0]).await.unwrap();
    stream.write_all(b"GET /health HTTP/1.1\r\n\r\n").await.unwrap();
    let mut nameless = String::new();
    within("an answer", stream.read_to_string(&mut nameless)).await.unwrap();
    assert!(nameless.starts_with("HTTP/1.1 400 "), "{nameless}");
    assert!(nameless.ends_with("400 Bad Request: missing required Host header"), "{nameless}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_answer_as_in_etcd() {
    let server = server(&[]).await;
    for path in ["/health", "/health?serializable=true&exclude=NOSPACE"] {
        let answer = http(&server, &format!("GET {path}")).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.ends_with("\r\n\r\n{\"health\":\"true\",\"reason\":\"\"}"), "{answer}");
        assert!(answer.contains("\r\ncontent-type: text/plain; charset=utf-8\r\n"), "{answer}");
    }
    let answer = http(&server, "GET /version").await;
    let version = r#"{"etcdserver":"3.7.1","etcdcluster":"3.7.0","storage":"3.7.0"}"#;
    assert!(answer.ends_with(version), "{answer}");
    for request in ["POST /health", "HEAD /health", "HEAD /version", "HEAD /readyz"] {
        let answer = http(&server, request).await;
        assert!(answer.starts_with("HTTP/1.1 405 "), "{request}: {answer}");
        assert!(answer.contains("\r\nallow: GET\r\n"), "{request}: {answer}");
    }
    for request in ["HEAD /metrics", "POST /metrics"] {
        let answer = http(&server, request).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{request}: {answer}");
    }
    for (path, text) in [
        ("/", "404 page not found\n"),
        ("/nowhere", "404 page not found\n"),
        ("/v3beta", "404 page not found\n"),
        ("/v3/", "Not Found\n"),
        ("/v3/nowhere", "Not Found\n"),
        ("/v3/kv/range/", "Not Found\n"),
        ("/v3beta/nowhere", "Not Found\n"),
    ] {
        let answer = http(&server, &format!("GET {path}")).await;
        assert!(answer.starts_with("HTTP/1.1 404 "), "{path}: {answer}");
        assert!(answer.ends_with(&format!("\r\n\r\n{text}")), "{path}: {answer}");
    }
    let listed = http(&server, "POST /v3/lease/leases").await;
    assert!(listed.starts_with("HTTP/1.1 200 "), "{listed}");
    assert!(listed.contains("\r\ngrpc-metadata-content-type: application/grpc\r\n"), "{listed}");
    let request = alarm(AlarmAction::Activate, 0, AlarmType::Nospace);
    server.maintenance().alarm(request).await.unwrap();
    let ill = http(&server, "GET /health").await;
    assert!(ill.starts_with("HTTP/1.1 503 "), "{ill}");
    assert!(ill.contains("\r\ncontent-type: text/plain; charset=utf-8\r\n"), "{ill}");
    assert!(
        ill.ends_with("\r\n\r\n{\"health\":\"false\",\"reason\":\"ALARM NOSPACE\"}\n"),
        "{ill}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broken_clients_leave_the_port_serving() {
    let server = server(&[]).await;
    let address = server.running.client_addresses()[0];
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    // A frame header: 24 bits of length, type, flags, stream.
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let absurd = [0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1];
    let half = [0, 0, 20, 1, 4, 0, 0];
    let noise: Vec<u8> =
        (0..4096u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for bytes in [
        noise.clone(),
        b"GET / HTTP/1.1\r\n".to_vec(),
        preface[..10].to_vec(),
        [preface.as_slice(), &settings, &absurd].concat(),
        [preface.as_slice(), &settings, &half].concat(),
        [preface.as_slice(), &noise].concat(),
    ] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        // It may close before it has read everything.
        stream.write_all(&bytes).await.unwrap_or_default();
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        tokio::time::timeout(Duration::from_millis(300), read).await.map(drop).unwrap_or_default();
    }
    server.put("a", "1").await;
    assert!(http(&server, "GET /health").await.starts_with("HTTP/1.1 200 "));
}

/// As `etcdctl` 3.4 calls `endpoint status`; h2 alone refuses it before any code of ours.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_whose_authority_is_a_url_is_served() {
    let server = server(&[]).await;
    let mut stream = TcpStream::connect(server.running.client_addresses()[0]).await.unwrap();
    let literal = |first: u8, value: &str| {
        [&[first, u8::try_from(value.len()).unwrap()], value.as_bytes()].concat()
    };
    let block = [
        vec![0x83, 0x86],
        literal(0x44, "/etcdserverpb.Maintenance/Status"),
        literal(0x41, "http://127.0.0.1:2379"),
        literal(0x5f, "application/grpc"),
        [literal(0x40, "te"), literal(0, "trailers")[1..].to_vec()].concat(),
    ]
    .concat();
    let frame = |kind: u8, flags: u8, payload: &[u8]| {
        let stream = u8::from(kind < 2);
        let head = [0, 0, u8::try_from(payload.len()).unwrap(), kind, flags, 0, 0, 0, stream];
        [&head, payload].concat()
    };
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let message = frame(0, 1, &[0, 0, 0, 0, 0]);
    let bytes = [preface, frame(4, 0, &[]), frame(1, 4, &block), message].concat();
    stream.write_all(&bytes).await.unwrap();
    let mut answer = Vec::new();
    let read = async {
        // The version in the message of the answer.
        while !answer.windows(5).any(|window| window == b"3.7.1") {
            let mut piece = [0; 1024];
            let count = stream.read(&mut piece).await.unwrap();
            assert!(count > 0, "closed after {answer:?}");
            answer.extend_from_slice(&piece[..count]);
        }
    };
    within("an answer", read).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_health_service_and_unknown_services_answer_as_in_etcd() {
    use tonic_health::pb::health_client::HealthClient;
    use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};
    let server = server(&[]).await;
    let mut health = HealthClient::new(server.channel.clone());
    let check = |service: &str| HealthCheckRequest { service: service.to_owned() };
    let answer = health.check(check("")).await.unwrap().into_inner();
    assert_eq!(answer.status(), ServingStatus::Serving);
    let unknown = health.check(check("etcdserverpb.KV")).await.unwrap_err();
    assert_eq!(unknown.code(), tonic::Code::NotFound);
    let mut watch = health.watch(check("")).await.unwrap().into_inner();
    let first = within("a state", watch.message()).await.unwrap().unwrap();
    assert_eq!(first.status(), ServingStatus::Serving);
    let metrics = http(&server, "GET /metrics").await;
    for (name, count) in [
        ("started_total{|Check|}", 2),
        ("started_total{|Watch|}", 1),
        ("handled_total{|Check|,grpc_code=\"OK\"}", 1),
        ("handled_total{|Check|,grpc_code=\"NotFound\"}", 1),
        ("msg_received_total{|Watch|}", 1),
        ("msg_sent_total{|Watch|}", 1),
    ] {
        let labels = |kind: &str, method: &str| {
            let service = "grpc_service=\"grpc.health.v1.Health\"";
            format!("grpc_type=\"{kind}\",{service},grpc_method=\"{method}\"")
        };
        let name = name.replace("|Check|", &labels("unary", "Check"));
        let name = name.replace("|Watch|", &labels("server_stream", "Watch"));
        let line = format!("grpc_server_{name} {count}");
        assert!(metrics.contains(&line), "{line} in {metrics}");
    }
    let mut grpc = tonic::client::Grpc::new(server.channel.clone());
    grpc.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<HealthCheckRequest, HealthCheckRequest>::default();
    let path = http::uri::PathAndQuery::from_static("/no.Such/Call");
    let answer = grpc.unary(tonic::Request::new(check("")), path, codec).await;
    let (code, text) = crate::support::refused(answer);
    assert_eq!((code, text.as_str()), (tonic::Code::Unimplemented, "unknown service no.Such"));
}
