//! gRPC-web: calls as browsers make them, over HTTP/1.1.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use conclave_proto::etcdserverpb as etcd;
use http::{Method, Response, StatusCode, Version, header};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use prost::Message;

use crate::cluster::within;
use crate::limits::handled;
use crate::metrics::{samples, total};
use crate::support::{put, range, server, servers};
use crate::web::Web;

const BINARY: &str = "application/grpc-web+proto";
const TEXT: &str = "application/grpc-web-text";
/// Marks the frame that holds what would be trailers.
const TRAILERS: u8 = 0x80;

/// A message in its frame.
fn framed(message: &impl Message) -> Vec<u8> {
    let bytes = message.encode_to_vec();
    let length = u32::try_from(bytes.len()).unwrap().to_be_bytes();
    [&[0], length.as_slice(), &bytes].concat()
}

/// Frames by their first byte.
fn frames(mut body: &[u8]) -> Vec<(u8, Bytes)> {
    let mut frames = Vec::new();
    while let [kind, a, b, c, d, rest @ ..] = body {
        let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
        frames.push((*kind, Bytes::copy_from_slice(&rest[..length])));
        body = &rest[length..];
    }
    assert!(body.is_empty());
    frames
}

async fn call(web: &Web, path: &str, content_type: &str, body: &[u8]) -> Response<Incoming> {
    let headers = [
        ("content-type", content_type),
        ("accept", content_type),
        ("x-grpc-web", "1"),
        ("origin", "http://a.example"),
    ];
    let answer = web.send(Method::POST, path, &headers, body).await;
    assert_eq!((answer.status(), answer.version()), (StatusCode::OK, Version::HTTP_11));
    answer
}

async fn whole(answer: Response<Incoming>) -> Bytes {
    within("the end of the answer", answer.into_body().collect()).await.unwrap().to_bytes()
}

fn status_of(frame: &(u8, Bytes)) -> String {
    assert_eq!(frame.0, TRAILERS);
    let text = String::from_utf8(frame.1.to_vec()).unwrap();
    let status = text.lines().find_map(|line| line.strip_prefix("grpc-status:"));
    status.unwrap().trim().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_has_its_trailers_behind_its_answer() {
    let server = server(&[]).await;
    let web = Web::of(&server);
    let answer = call(&web, "/etcdserverpb.KV/Put", BINARY, &framed(&put("a", "1"))).await;
    assert_eq!(answer.headers()[header::CONTENT_TYPE], BINARY);
    assert_eq!(answer.headers()[header::ACCESS_CONTROL_ALLOW_ORIGIN], "*");
    let found = frames(&whole(answer).await);
    let written = etcd::PutResponse::decode(found[0].1.clone()).unwrap();
    assert_eq!(written.header.unwrap().revision, 2);
    assert_eq!((found.len(), status_of(&found[1]).as_str()), (2, "0"));
    // As text, for browsers that cannot read bytes as they come.
    let request = BASE64.encode(framed(&range("a", "")));
    let answer = call(&web, "/etcdserverpb.KV/Range", TEXT, request.as_bytes()).await;
    let text = whole(answer).await;
    let pieces = String::from_utf8(text.to_vec()).unwrap();
    // Each piece is encoded by itself.
    let mut bytes = Vec::new();
    for piece in pieces.split_inclusive('=').filter(|piece| *piece != "=") {
        let padded = format!("{}{}", piece, "=".repeat((4 - piece.len() % 4) % 4));
        bytes.extend(BASE64.decode(padded).unwrap());
    }
    let found = frames(&bytes);
    let read = etcd::RangeResponse::decode(found[0].1.clone()).unwrap();
    assert_eq!((read.count, read.kvs[0].value.as_ref()), (1, b"1".as_slice()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_comes_message_by_message() {
    let server = server(&[]).await;
    let web = Web::of(&server);
    for i in 0..30 {
        server.put(&format!("k{i:02}"), "v").await;
    }
    let path = "/etcdserverpb.KV/RangeStream";
    let answer = call(&web, path, BINARY, &framed(&range("k", "l"))).await;
    let found = frames(&whole(answer).await);
    let (end, messages) = found.split_last().unwrap();
    assert_eq!(status_of(end), "0");
    let pieces = messages.iter().map(|(_, bytes)| {
        let message = etcd::RangeStreamResponse::decode(bytes.clone()).unwrap();
        message.range_response.unwrap().kvs.len()
    });
    assert_eq!(pieces.collect::<Vec<_>>(), [10, 20]);
    // One that does not end by itself: what happens is seen while it goes on.
    let create = etcd::WatchCreateRequest { key: "w".into(), ..Default::default() };
    let create = etcd::WatchRequest {
        request_union: Some(etcd::watch_request::RequestUnion::CreateRequest(create)),
    };
    let watch = call(&web, "/etcdserverpb.Watch/Watch", BINARY, &framed(&create)).await;
    let mut body = watch.into_body();
    let mut received = Vec::new();
    for (revision, key) in [(0, ""), (32, "w")] {
        if !key.is_empty() {
            server.put(key, "1").await;
        }
        let frame = within("a message", body.frame()).await.unwrap().unwrap();
        received.extend(frames(frame.data_ref().unwrap()));
        let (_, last) = received.last().unwrap();
        let message = etcd::WatchResponse::decode(last.clone()).unwrap();
        assert_eq!(message.created, key.is_empty());
        assert!(message.events.iter().all(|e| e.kv.as_ref().unwrap().mod_revision == revision));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_and_other_origins() {
    let server = server(&["--cors=http://a.example"]).await;
    let web = Web::of(&server);
    let answer = call(&web, "/etcdserverpb.KV/Put", BINARY, &framed(&put("", "1"))).await;
    let headers = answer.headers().clone();
    assert_eq!(headers[header::ACCESS_CONTROL_ALLOW_ORIGIN], "http://a.example");
    let exposed = headers[header::ACCESS_CONTROL_EXPOSE_HEADERS].to_str().unwrap().to_owned();
    assert!(exposed.contains("grpc-status"), "{exposed}");
    assert_eq!(headers["grpc-status"], "3", "{headers:?}");
    let preflight = [
        ("origin", "http://a.example"),
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "content-type,x-grpc-web"),
    ];
    let answer = web.send(Method::OPTIONS, "/etcdserverpb.KV/Put", &preflight, "").await;
    let allowed = answer.headers()[header::ACCESS_CONTROL_ALLOW_HEADERS].to_str().unwrap();
    assert!(allowed.contains("x-grpc-web") && allowed.contains("grpc-timeout"), "{allowed}");
    let foreign = [("origin", "http://b.example"), ("content-type", BINARY)];
    let body = framed(&put("a", "1"));
    let answer = web.send(Method::POST, "/etcdserverpb.KV/Put", &foreign, body).await;
    assert!(!answer.headers().contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN));
    let wrong = [("content-type", BINARY)];
    let answer = web.send(Method::GET, "/etcdserverpb.KV/Put", &wrong, "").await;
    assert_eq!(answer.status(), StatusCode::METHOD_NOT_ALLOWED);
}

/// Over a connection that stays, as that of a caller who was cut off: nothing else tells that it has given up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_takes_no_longer_than_its_caller_waits() {
    let mut servers = servers(3, &[]).await;
    let server = servers.remove(0);
    for other in servers {
        within("it stops", other.running.stop()).await;
    }
    let web = Web::of(&server);
    let headers = [("content-type", BINARY), ("grpc-timeout", "300m")];
    let body = framed(&put("a", "1"));
    let answer = web.send(Method::POST, "/etcdserverpb.KV/Put", &headers, body).await;
    let headers = answer.headers();
    assert_eq!(headers["grpc-status"], "4", "{headers:?}");
    assert_eq!(headers["grpc-message"], "context%20deadline%20exceeded");
    // As what its caller was told, and as a proposal that came to nothing.
    assert_eq!(handled(&server, "etcdserverpb.KV", "Put", "DeadlineExceeded").await, 1.0);
    assert_eq!(handled(&server, "etcdserverpb.KV", "Put", "Canceled").await, 0.0);
    assert_eq!(total(&samples(&server).await, "etcd_server_proposals_failed_total"), 1.0);
}
