//! The same JSON to Debian's etcd and to us.

use std::time::Duration;

use http::{HeaderMap, Method, StatusCode};
use serde_json::{Value, json};

use crate::cluster::within;
use crate::reference::{self, program};
use crate::support::server;
use crate::web::Web;

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
    // Of etcd from 3.5.2 on, and of ours.
    if let Some(failure) = answer.as_object_mut().filter(|answer| answer.contains_key("error")) {
        failure.remove("details");
    }
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
