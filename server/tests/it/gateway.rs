//! JSON and pages on the client port: beside Debian's etcd, with users, over streams, to browsers and
//! probes.

use std::time::Duration;

use bytes::Bytes;
use conclave_proto::etcdserverpb as etcd;
use conclave_proto::etcdserverpb::auth_client::AuthClient;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};

use crate::cluster::within;
use crate::reference::{self, program};
use crate::support::{Server, server};

/// A browser, as it were.
pub(crate) struct Web {
    client: Client<HttpConnector, Full<Bytes>>,
    address: String,
}

impl Web {
    fn new(address: String) -> Self {
        Self { client: Client::builder(TokioExecutor::new()).build_http(), address }
    }

    pub(crate) fn of(server: &Server) -> Self {
        Self::new(server.running.client_addresses()[0].to_string())
    }

    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl AsRef<[u8]>,
    ) -> Response<Incoming> {
        let mut request = Request::builder().method(method).uri(self.url(path));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(Bytes::copy_from_slice(body.as_ref()))).unwrap();
        within("an answer", self.client.request(request)).await.unwrap()
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Posts and reads the whole answer.
    pub(crate) async fn post(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> (StatusCode, Value) {
        let answer = self.send(Method::POST, path, headers, body).await;
        let status = answer.status();
        let text = text(answer).await;
        let json = serde_json::from_str(&text).unwrap_or_else(|_| json!(text));
        (status, json)
    }

    async fn get(&self, path: &str) -> (StatusCode, String) {
        let answer = self.send(Method::GET, path, &[], "").await;
        (answer.status(), text(answer).await)
    }

    /// The first lines of an answer without an end.
    async fn lines(&self, path: &str, body: &str, count: usize) -> Vec<Value> {
        let mut lines = Lines::new(self.send(Method::POST, path, &[], body).await);
        let mut all = Vec::new();
        for _ in 0..count {
            all.push(lines.next().await);
        }
        all
    }
}

async fn text(answer: Response<Incoming>) -> String {
    let bytes = within("the answer's end", answer.into_body().collect()).await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// An answer, line by line.
struct Lines {
    body: Incoming,
    received: Vec<u8>,
}

impl Lines {
    fn new(answer: Response<Incoming>) -> Self {
        assert_eq!(answer.status(), StatusCode::OK);
        Self { body: answer.into_body(), received: Vec::new() }
    }

    async fn next(&mut self) -> Value {
        loop {
            if let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.received.drain(..=end).collect();
                return serde_json::from_slice(&line).unwrap();
            }
            let frame = within("a line", self.body.frame()).await.unwrap().unwrap();
            self.received.extend_from_slice(frame.data_ref().unwrap());
        }
    }
}

/// Requests to one server after the other, in order.
const CALLS: &[(&str, &str)] = &[
    ("kv/put", r#"{"key":"Zm9v","value":"YmFy"}"#),
    ("kv/put", r#"{"key":"Zm9v","value":"YmF6","prev_kv":true}"#),
    ("kv/put", r#"{"key":"Zm9v","value":"YmF6","prevKv":true,"lease":"5"}"#),
    ("kv/put", r#"{"key":"YQ==","unknown":{"x":[1]}} and more"#),
    ("kv/put", ""),
    ("kv/put", "{"),
    ("kv/put", "[]"),
    ("kv/put", "x"),
    ("kv/put", r#"{"key":5}"#),
    ("kv/put", r#"{"key":"!!"}"#),
    ("kv/range", r#"{"key":"Zm9v"}"#),
    ("kv/range", r#"{"key":"AA==","range_end":"AA==","sort_order":"DESCEND","sort_target":"KEY"}"#),
    ("kv/range", r#"{"key":"AA==","rangeEnd":"AA==","limit":"1","keysOnly":true}"#),
    ("kv/range", r#"{"key":"AA==","rangeEnd":"AA==","count_only":true,"serializable":true}"#),
    ("kv/range", r#"{"key":"Zm9v","sort_order":2,"sort_target":1,"revision":2}"#),
    ("kv/range", r#"{"key":"Zm9v","revision":"99"}"#),
    ("kv/range", r#"{"key":"Zm9v","limit":"x"}"#),
    ("kv/range", r#"{"key":null,"limit":null}"#),
    (
        "kv/txn",
        r#"{"compare":[{"target":"VERSION","key":"Zm9v","result":"GREATER","version":"0"}],
            "success":[{"request_range":{"key":"Zm9v"}},{"requestDeleteRange":{"key":"YQ==","prevKv":true}}]}"#,
    ),
    ("kv/txn", r#"{"compare":[{"target":"VALUE","key":"YQ==","value":"YQ=="}],"failure":[]}"#),
    ("kv/deleterange", r#"{"key":"Zm9v","prev_kv":true}"#),
    ("kv/compaction", r#"{"revision":"3","physical":true}"#),
    ("kv/compaction", r#"{"revision":"3"}"#),
    ("kv/compaction", r#"{"revision":"300"}"#),
    ("lease/grant", r#"{"TTL":500,"ID":"7"}"#),
    ("lease/grant", r#"{"TTL":"500","ID":7}"#),
    ("lease/grant", r#"{"TTL":"99999999999"}"#),
    ("lease/keepalive", r#"{"ID":"7"}"#),
    ("lease/keepalive", r#"{"ID":"8"}{"ID":7} {"#),
    ("lease/keepalive", ""),
    ("lease/keepalive", r#"{"ID":77"#),
    ("lease/keepalive", r#"{"ID":"x"}"#),
    ("watch", "{x"),
    ("watch", r#"{"create_request":{"key":"a b"}}"#),
    ("lease/leases", "{}"),
    ("kv/lease/leases", "{}"),
    ("lease/revoke", r#"{"ID":"8"}"#),
    ("kv/lease/revoke", r#"{"ID":"7"}"#),
    ("lease/timetolive", r#"{"ID":"7","keys":true}"#),
    ("cluster/member/remove", r#"{"ID":"1"}"#),
    ("maintenance/alarm", r#"{"action":"GET"}"#),
    ("maintenance/alarm", r#"{"action":"ACTIVATE","alarm":"NOSPACE"}"#),
    ("maintenance/alarm", r#"{"action":"DEACTIVATE","alarm":"NOSPACE"}"#),
    ("maintenance/defragment", "{}"),
    ("maintenance/transfer-leadership", r#"{"targetID":"1"}"#),
    ("lock/unlock", r#"{"key":"bA=="}"#),
    ("election/leader", r#"{"name":"ZQ=="}"#),
    ("auth/authenticate", r#"{"name":"root","password":"x"}"#),
    ("auth/user/add", r#"{"name":"root","password":"x"}"#),
    ("auth/user/add", r#"{"name":"root","password":"x"}"#),
    ("auth/user/get", r#"{"name":"root"}"#),
    ("auth/user/list", ""),
    ("auth/role/add", r#"{"name":"root"}"#),
    ("auth/role/add", r#"{"name":"r"}"#),
    (
        "auth/role/grant",
        r#"{"name":"r","perm":{"permType":"READWRITE","key":"YQ==","range_end":"Yg=="}}"#,
    ),
    ("auth/role/get", r#"{"role":"r"}"#),
    ("auth/role/revoke", r#"{"role":"r","key":"YQ==","range_end":"Yg=="}"#),
    ("auth/role/delete", r#"{"role":"r"}"#),
    ("auth/user/grant", r#"{"user":"root","role":"root"}"#),
];

/// A watch, and something that ends its requests.
const CREATE: &str =
    r#"{"create_request":{"key":"AA==","range_end":"AA==","start_revision":"4"}} x"#;

/// Requests after that.
const LAST_CALLS: &[(&str, &str)] = &[
    ("auth/enable", "{}"),
    ("kv/put", r#"{"key":"Zm9v"}"#),
    ("kv/range", r#"{"key":"Zm9v"}"#),
    ("auth/disable", "{}"),
    ("nowhere", "{}"),
    ("", "{}"),
];

/// The answer without what differs between clusters.
fn comparable(status: StatusCode, mut answer: Value) -> (u16, Value) {
    hide(&mut answer);
    let code = answer.get("code").and_then(Value::as_i64);
    let text = answer.get("message").and_then(Value::as_str).unwrap_or_default();
    // What is wrong with JSON has the words of the library that read it; at the beginning of a stream etcd
    // takes it for a failure of its own.
    let (code, status) = match (code, status) {
        (Some(2), StatusCode::INTERNAL_SERVER_ERROR) => (Some(3), StatusCode::BAD_REQUEST),
        other => other,
    };
    if code == Some(3) && !text.contains("server: ") {
        answer = json!({ "code": 3 });
    } else if status == StatusCode::NOT_FOUND && answer.is_string() {
        answer = json!("no such page");
    }
    // Of etcd before 3.5; later ones and we answer 400 to what was 412.
    (if status == StatusCode::PRECONDITION_FAILED { 400 } else { status.as_u16() }, answer)
}

fn hide(answer: &mut Value) {
    match answer {
        Value::Object(fields) => {
            for (name, value) in fields {
                if matches!(name.as_str(), "cluster_id" | "member_id" | "memberID" | "raft_term") {
                    *value = json!("hidden");
                }
                hide(value);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(hide),
        Value::String(text) if text.lines().count() > 1 => {
            // Of a stream: each line is JSON.
            let lines = text.lines().map(|line| {
                let mut line = serde_json::from_str(line).unwrap_or_else(|_| json!(line));
                hide(&mut line);
                line
            });
            *answer = lines.collect();
        }
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn json_is_answered_as_by_etcd() {
    let Some(program) = program("json_is_answered_as_by_etcd") else { return };
    let their_server = reference::Server::single(program);
    let our_server = server(&["--bcrypt-cost=4"]).await;
    let (theirs, ours) = (Web::new(their_server.endpoint()), Web::of(&our_server));
    let up = async {
        while theirs.client.get(theirs.url("/health").parse().unwrap()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    within("etcd serves", up).await;
    let mut differences = Vec::new();
    let mut compare = |what: String, theirs, ours| {
        if theirs != ours {
            differences.push(format!("{what}\n  etcd: {theirs:?}\n  ours: {ours:?}"));
        }
    };
    for (i, (path, body)) in CALLS.iter().chain(LAST_CALLS).enumerate() {
        if i == CALLS.len() {
            let mut expected = json!(theirs.lines("/v3/watch", CREATE, 2).await);
            let mut found = json!(ours.lines("/v3/watch", CREATE, 2).await);
            hide(&mut expected);
            hide(&mut found);
            compare("a watch".to_owned(), (0, expected), (0, found));
        }
        let path = format!("/v3/{path}");
        let (status, mut json) = theirs.post(&path, &[], body).await;
        if let Some(answer) = json.as_object_mut().filter(|_| path.ends_with("/alarm")) {
            // etcd 3.4 forgets it.
            answer.insert(
                "header".to_owned(),
                json!({"revision": "6", "raft_term": "", "member_id": "", "cluster_id": ""}),
            );
        }
        let expected = comparable(status, json);
        let (status, json) = ours.post(&path, &[], body).await;
        compare(format!("{path} {body}"), expected, comparable(status, json));
    }
    for method in [Method::GET, Method::PUT, Method::OPTIONS] {
        let [theirs, ours] = [&theirs, &ours].map(async |web| {
            let answer =
                web.send(method.clone(), "/v3/kv/range", &[("origin", "http://a")], "").await;
            let shared: HeaderMap = answer
                .headers()
                .iter()
                .filter(|(name, _)| name.as_str().starts_with("access-control"))
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect();
            (answer.status().as_u16(), json!(format!("{shared:?}").len()))
        });
        compare(method.to_string(), theirs.await, ours.await);
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_by_json_waits_as_long_as_it_says() {
    let server = server(&[]).await;
    let web = Web::of(&server);
    let put = |patience: &'static str| {
        let (headers, body) = ([("grpc-timeout", patience)], r#"{"key":"YQ==","value":"YQ=="}"#);
        let web = &web;
        async move { web.post("/v3/kv/put", &headers, body).await }
    };
    let (status, json) = put("1n").await;
    assert_eq!((status, &json["code"]), (StatusCode::GATEWAY_TIMEOUT, &json!(4)), "{json}");
    let (status, json) = put("x").await;
    assert_eq!(
        (status, &json["message"]),
        (400.try_into().unwrap(), &json!("invalid grpc-timeout: x"))
    );
    let (status, json) = put("1H").await;
    assert_eq!(status, StatusCode::OK, "{json}");
    // gRPC itself needs HTTP/2.
    let headers = [("content-type", "application/grpc")];
    let (status, json) = web.post("/v3/kv/range", &headers, r#"{"key":"YQ=="}"#).await;
    assert_eq!((status, &json["count"]), (StatusCode::OK, &json!("1")), "{json}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_by_json_goes_on_after_its_request() {
    let server = server(&[]).await;
    let web = Web::of(&server);
    let create = r#"{"createRequest":{"key":"Zm9v","watch_id":"5"}}"#;
    for path in ["/v3/watch", "/v3beta/watch", "/etcdserverpb.Watch/Watch"] {
        let mut lines = Lines::new(web.send(Method::POST, path, &[], create).await);
        let created = lines.next().await;
        assert_eq!(created["result"]["created"], true, "{created}");
        for value in ["one", "two"] {
            server.put("foo", value).await;
            let event = lines.next().await;
            let kv = &event["result"]["events"][0]["kv"];
            assert_eq!(kv["key"], "Zm9v", "{event}");
            assert!(event["result"]["events"][0].get("type").is_none(), "a put is the default");
        }
    }
    let streams = async {
        while server.running.node().watch().stats().streams > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    within("who goes is not waited for", streams).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_by_json_have_the_rights_of_their_token() {
    let server = server(&["--bcrypt-cost=4"]).await;
    let web = Web::of(&server);
    for (path, body) in [
        ("user/add", r#"{"name":"root","password":"secret"}"#),
        ("user/add", r#"{"name":"ann","password":"hers"}"#),
        ("role/add", r#"{"name":"a"}"#),
        ("role/grant", r#"{"name":"a","perm":{"permType":"READWRITE","key":"YQ=="}}"#),
        ("user/grant", r#"{"user":"root","role":"root"}"#),
        ("user/grant", r#"{"user":"ann","role":"a"}"#),
        ("enable", "{}"),
    ] {
        let (status, answer) = web.post(&format!("/v3/auth/{path}"), &[], body).await;
        assert_eq!(status, StatusCode::OK, "{path}: {answer}");
    }
    let login = r#"{"name":"ann","password":"hers"}"#;
    let (_, answer) = web.post("/v3/auth/authenticate", &[], login).await;
    let token = answer["token"].as_str().unwrap().to_owned();
    let bearer = format!("Bearer {token}");
    let denied = "etcdserver: permission denied";
    for (token, path, body, expected) in [
        (token.as_str(), "kv/put", r#"{"key":"YQ=="}"#, (200, "")),
        (&bearer, "kv/range", r#"{"key":"YQ=="}"#, (200, "")),
        (&token, "kv/put", r#"{"key":"Yg=="}"#, (403, denied)),
        (&token, "auth/user/list", "", (403, denied)),
        (&token, "maintenance/snapshot", "", (403, denied)),
        ("stolen.1", "kv/range", r#"{"key":"YQ=="}"#, (401, "etcdserver: invalid auth token")),
    ] {
        let path = format!("/v3/{path}");
        let (status, answer) = web.post(&path, &[("authorization", token)], body).await;
        let error = &answer["error"];
        // That of a stream has a form of its own.
        let message = answer["message"].as_str().or(error["message"].as_str()).unwrap_or_default();
        assert_eq!((status.as_u16(), message), expected, "{path} {body}: {answer}");
    }
    let (status, answer) = web.post("/v3/kv/put", &[], r#"{"key":"YQ=="}"#).await;
    assert_eq!((status, &answer["code"]), (StatusCode::BAD_REQUEST, &json!(3)), "{answer}");
    let mut auth = AuthClient::new(server.channel.clone());
    let status = auth.auth_status(etcd::AuthStatusRequest {}).await.unwrap();
    assert!(status.get_ref().enabled);
}

#[tokio::test(flavor = "multi_thread")]
async fn native_calls_are_made_by_json_too() {
    let server = server(&[]).await;
    let web = Web::of(&server);
    let path = "/conclave.v1.CounterService/Get";
    let (status, answer) = web.post(path, &[], r#"{"name":"aGl0cw=="}"#).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    let large = format!(r#"{{"key":"YQ==","value":"{}"}}"#, "AAAA".repeat(1 << 20));
    let (status, answer) = web.post("/v3/kv/put", &[], &large).await;
    assert_eq!((status.as_u16(), &answer["code"]), (429, &json!(8)), "{answer}");
    let huge = format!(r#"{{"key":"YQ==","value":"{}"}}"#, "AAAA".repeat(1 << 21));
    let (status, answer) = web.post("/v3/kv/put", &[], &huge).await;
    assert_eq!((status.as_u16(), &answer["code"]), (429, &json!(8)), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_say_which_check_failed() {
    let server = server(&[]).await;
    let web = Web::of(&server);
    let good = |text: &str| (StatusCode::OK, text.to_owned());
    assert_eq!(web.get("/livez").await, good("ok\n"));
    assert_eq!(web.get("/readyz").await, good("ok\n"));
    assert_eq!(web.get("/livez?verbose").await, good("[+]serializable_read ok\nok\n"));
    assert_eq!(web.get("/readyz/linearizable_read").await, good("ok\n"));
    let all = "[+]data_corruption ok\n[+]serializable_read ok\n[+]linearizable_read ok\n\
               [+]non_learner ok\nok\n";
    assert_eq!(web.get("/readyz?verbose=1").await, good(all));
    let some = "/readyz?exclude=linearizable_read&exclude=non_learner&verbose";
    let text = "[+]data_corruption ok\n[+]serializable_read ok\nok\n";
    assert_eq!(web.get(some).await, good(text));
    for path in ["/livez/linearizable_read", "/livezy", "/readyz/", "/readyz/x"] {
        assert_eq!(web.get(path).await.0, StatusCode::NOT_FOUND, "{path}");
    }
    let answer = web.send(Method::POST, "/readyz", &[], "").await;
    assert_eq!(answer.status(), StatusCode::METHOD_NOT_ALLOWED);

    let corrupt = r#"{"action":"ACTIVATE","alarm":"CORRUPT"}"#;
    web.post("/v3/maintenance/alarm", &[], corrupt).await;
    let failed = "[-]data_corruption failed: alarm activated: CORRUPT\n";
    let (status, text) = web.get("/readyz").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(text.starts_with(failed), "{text}");
    assert_eq!(web.get("/readyz?exclude=data_corruption").await, good("ok\n"));
    assert_eq!(web.get("/livez").await, good("ok\n"), "the process has no damage");
    let (_, metrics) = web.get("/metrics").await;
    for line in [
        r#"etcd_server_healthcheck{type="readyz",name="data_corruption"} 0"#,
        r#"etcd_server_healthchecks_total{type="readyz",name="data_corruption",status="error"} 1"#,
        r#"etcd_server_healthcheck{type="livez",name="serializable_read"} 1"#,
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn browsers_are_told_whom_to_trust() {
    let flags = ["--cors=http://a.example", "--host-whitelist=127.0.0.1,a.example"];
    let server = server(&flags).await;
    let web = Web::of(&server);
    let origin = header::ACCESS_CONTROL_ALLOW_ORIGIN;
    let answer =
        web.send(Method::OPTIONS, "/v3/kv/put", &[("origin", "http://a.example")], "").await;
    assert_eq!(
        (answer.status(), &answer.headers()[&origin]),
        (StatusCode::OK, &"http://a.example".parse().unwrap())
    );
    let answer = web.send(Method::GET, "/version", &[("origin", "http://b.example")], "").await;
    assert!(answer.status().is_success() && !answer.headers().contains_key(&origin));
    for (host, status) in [("a.example:1", 200), ("b.example", 421)] {
        let answer = web.send(Method::GET, "/version", &[("host", host)], "").await;
        assert_eq!(answer.status().as_u16(), status, "{host}");
        let put =
            web.send(Method::POST, "/v3/kv/put", &[("host", host)], r#"{"key":"YQ=="}"#).await;
        assert_eq!(put.status().as_u16(), status, "{host}");
    }
    // gRPC is not for browsers, and etcdctl calls a host what it likes.
    server.put("a", "1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gateway_can_be_closed() {
    let server = server(&["--enable-grpc-gateway=false"]).await;
    let web = Web::of(&server);
    let (status, _) = web.post("/v3/kv/put", &[], r#"{"key":"YQ=="}"#).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert_eq!(web.get("/readyz").await.0, StatusCode::OK);
}
