//! The pages beside gRPC: `/health`, `/version`, `/metrics`, as etcd has them.

use std::time::Duration;

use conclave_state_machine::command::{AlarmKind, Range};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use tonic::body::Body;

use crate::api::context::Context;
use crate::api::convert::alarm_type;
use crate::status;
use crate::version;

const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";
/// The format that Prometheus knows by this name.
const EXPOSITION: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Answers a request without a gRPC content type.
pub(super) async fn answer<B>(context: &Context, request: Request<B>) -> Response<Body> {
    let path = request.uri().path();
    if !matches!(path, "/health" | "/version" | "/metrics") {
        return page(StatusCode::NOT_FOUND, TEXT, "404 page not found\n".to_owned());
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response =
            page(StatusCode::METHOD_NOT_ALLOWED, TEXT, "Method Not Allowed\n".to_owned());
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET"));
        return response;
    }
    match path {
        "/health" => health(context, request.uri().query().unwrap_or_default()).await,
        "/version" => version_page(),
        _ => page(StatusCode::OK, EXPOSITION, context.metrics.exposition(context)),
    }
}

fn page(status: StatusCode, content_type: &'static str, body: String) -> Response<Body> {
    let body = http_body_util::Full::new(bytes::Bytes::from(body));
    let mut response = Response::new(Body::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn version_page() -> Response<Body> {
    let text = format!(
        r#"{{"etcdserver":"{}","etcdcluster":"{}","storage":"{}"}}"#,
        version::ETCD,
        version::CLUSTER,
        version::STORAGE
    );
    page(StatusCode::OK, JSON, text)
}

async fn health(context: &Context, query: &str) -> Response<Body> {
    let reason = unhealthy(context, query).await;
    let (status, health) = match &reason {
        None => (StatusCode::OK, "true"),
        Some(_) => (StatusCode::SERVICE_UNAVAILABLE, "false"),
    };
    if let Some(reason) = &reason {
        context.metrics.health_failures.inc();
        tracing::warn!(reason, "serving /health false");
    } else {
        context.metrics.health_success.inc();
    }
    let body = serde_json::json!({ "health": health, "reason": reason.unwrap_or_default() });
    page(status, JSON, body.to_string())
}

/// Why this member is not healthy: an alarm that is not excluded, no leader, or a failed read.
async fn unhealthy(context: &Context, query: &str) -> Option<String> {
    let pairs: Vec<(&str, &str)> =
        query.split('&').filter_map(|pair| pair.split_once('=')).collect();
    let head = context.node.reader().head();
    let alarm = head.alarms.iter().map(|&(_, kind)| kind).find(|&kind| !is_excluded(&pairs, kind));
    if let Some(kind) = alarm {
        return Some(format!("ALARM {}", alarm_type(kind).as_str_name()));
    }
    if !context.node.has_leader() {
        return Some("RAFT NO LEADER".to_owned());
    }
    let is_serializable = pairs.contains(&("serializable", "true"));
    read(context, is_serializable).await.err().map(|text| format!("RANGE ERROR:{text}"))
}

fn is_excluded(pairs: &[(&str, &str)], kind: AlarmKind) -> bool {
    pairs.iter().any(|&(name, value)| name == "exclude" && value == alarm_type(kind).as_str_name())
}

async fn read(context: &Context, is_serializable: bool) -> Result<(), String> {
    let settings = context.node.settings();
    // As in etcd: as long as a request may take.
    let timeout = Duration::from_secs(5) + settings.raft.election_timeout * 2;
    if !is_serializable {
        // The node's own: as in etcd a learner's health is not a request of a client.
        match tokio::time::timeout(timeout, context.node.read_barrier()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(status::from_read_index(&error).message().to_owned()),
            Err(_elapsed) => return Err("context deadline exceeded".to_owned()),
        }
    }
    let range = Range { key: bytes::Bytes::from_static(b"health"), ..Range::default() };
    context.node.reader().range(&range).map(drop).map_err(|error| error.to_string())
}
