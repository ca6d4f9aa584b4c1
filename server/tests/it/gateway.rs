//! JSON and pages on the client port: with users, over streams, to browsers and probes.

use std::time::Duration;

use conclave_proto::etcdserverpb as etcd;
use conclave_proto::etcdserverpb::auth_client::AuthClient;
use http::{Method, StatusCode, header};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::cluster::{free_ports, within};
use crate::support::{Server, server};
use crate::web::{Lines, Web};

#[tokio::test(flavor = "multi_thread")]
async fn a_call_by_json_waits_as_long_as_it_says() {
    let server = server(&[]).await;
    let web = Web::of(&server);
    // The lock of 1 is never given up, so that nothing but its own patience ends the call of another. Each has a lease
    // of its own, for who gives up leaves the place that a next call of the same lease would take.
    let lock = |lease: u8, patience: &'static str| {
        let body = format!(r#"{{"name":"YQ==","lease":"{lease}"}}"#);
        let web = &web;
        async move { web.post("/v3/lock/lock", &[("grpc-timeout", patience)], &body).await }
    };
    for lease in 1..=3 {
        let grant = format!(r#"{{"TTL":"600","ID":"{lease}"}}"#);
        let (status, json) = web.post("/v3/lease/grant", &[], &grant).await;
        assert_eq!(status, StatusCode::OK, "{json}");
    }
    let (status, json) = lock(1, "1H").await;
    assert_eq!(status, StatusCode::OK, "{json}");
    for (lease, patience) in [(2, "1n"), (3, "20m")] {
        let (status, json) = lock(lease, patience).await;
        assert_eq!((status, &json["code"]), (StatusCode::GATEWAY_TIMEOUT, &json!(4)), "{json}");
    }
    let (status, json) = lock(2, "x").await;
    assert_eq!(
        (status, &json["message"]),
        (StatusCode::BAD_REQUEST, &json!("invalid grpc-timeout: x"))
    );
    server.put("a", "1").await;
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
async fn nothing_is_read_of_a_caller_without_rights() {
    let server = server(&["--bcrypt-cost=4"]).await;
    let web = Web::of(&server);
    web.ask_for_users().await;
    for (token, text) in [("", "user name is empty"), ("token: wrong.1\r\n", "invalid auth token")]
    {
        until_answered(&server, &format!("POST /v3/kv/txn HTTP/1.1\r\n{token}"), "{\"a\":[", text)
            .await;
    }
    let much = "A".repeat(70 * 1024);
    let text = "grpc: received message larger than max (6000000 vs. 65536)";
    for (path, begin) in
        [("auth/authenticate", "{\"name\":\""), ("watch", "{\"createRequest\":{\"key\":\"")]
    {
        let head = format!("POST /v3/{path} HTTP/1.1\r\n");
        until_answered(&server, &head, &format!("{begin}{much}"), text).await;
    }
}

/// Waits for `text` in the answer to a request that has more to say, and waits for the answer before that.
async fn until_answered(server: &Server, head: &str, begin: &str, text: &str) {
    let request = format!("{head}host: a\r\ncontent-length: 6000000\r\n\r\n{begin}");
    let address = server.running.client_addresses()[0];
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    while !answer.contains(text) {
        let mut bytes = [0; 4096];
        let count = within("an answer", stream.read(&mut bytes)).await.unwrap();
        assert!(count > 0, "{text}: {answer}");
        answer.push_str(&String::from_utf8_lossy(&bytes[..count]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_by_json_have_the_rights_of_their_token() {
    let server = server(&["--bcrypt-cost=4"]).await;
    let web = Web::of(&server);
    web.set_up_users(&[
        ("user/add", r#"{"name":"root","password":"secret"}"#),
        ("user/add", r#"{"name":"ann","password":"hers"}"#),
        ("role/add", r#"{"name":"a"}"#),
        ("role/grant", r#"{"name":"a","perm":{"permType":"READWRITE","key":"YQ=="}}"#),
        ("user/grant", r#"{"user":"root","role":"root"}"#),
        ("user/grant", r#"{"user":"ann","role":"a"}"#),
        ("enable", "{}"),
    ])
    .await;
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

/// As many clients do that know nothing of answers before their time.
#[tokio::test(flavor = "multi_thread")]
async fn who_says_all_before_it_listens_hears_why_it_was_refused() {
    let server = server(&["--bcrypt-cost=4"]).await;
    let much = "A".repeat(40 << 20);
    let body = format!(r#"{{"key":"YQ==","value":"{much}"}}"#);
    let text = format!("grpc: received message larger than max ({} vs. 2097152)", body.len());
    let put = |headers: &str| format!("POST /v3/kv/put HTTP/1.1\r\nhost: a\r\n{headers}");
    let told = format!("content-length: {}\r\n\r\n{body}", body.len());
    let answer = said_and_heard(&server, &(put("connection: close\r\n") + &told)).await;
    assert!(answer.starts_with("HTTP/1.1 429 ") && answer.contains(&text), "{answer}");
    let chunks =
        format!("transfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    let next = "GET /version HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let answer = said_and_heard(&server, &(put("") + &chunks + next)).await;
    assert!(answer.starts_with("HTTP/1.1 429 "), "{answer}");
    assert!(answer.contains("etcdcluster"), "the connection goes on: {answer}");

    let web = Web::of(&server);
    web.ask_for_users().await;
    let stale = "token: stale.1\r\nconnection: close\r\n";
    let answer = said_and_heard(&server, &(put(stale) + &told)).await;
    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
}

/// The answer to a request, which is read when all is written.
async fn said_and_heard(server: &Server, request: &str) -> String {
    let address = server.running.client_addresses()[0];
    let mut stream = TcpStream::connect(address).await.unwrap();
    within("it is heard out", stream.write_all(request.as_bytes())).await.unwrap();
    let mut answer = String::new();
    within("an answer", stream.read_to_string(&mut answer)).await.unwrap();
    answer
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
    let ports = free_ports(2);
    let [http, pages] = [ports[0], ports[1]].map(|port| format!("127.0.0.1:{port}"));
    let [listen_http, listen_pages] = [
        format!("--listen-client-http-urls=http://{http}"),
        format!("--listen-metrics-urls=http://{pages}"),
    ];
    let flags = [
        "--cors=http://a.example",
        "--host-whitelist=127.0.0.1,a.example",
        &listen_http,
        &listen_pages,
    ];
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
    // Probes and Prometheus go by whatever address they have.
    for (address, status) in [(http, 421), (pages, 200)] {
        let web = Web::new(address);
        for path in ["/health", "/metrics", "/livez", "/readyz"] {
            let answer = web.send(Method::GET, path, &[("host", "10.1.2.3")], "").await;
            assert_eq!(answer.status().as_u16(), status, "{}", web.url(path));
        }
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
