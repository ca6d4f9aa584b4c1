//! The pages besides gRPC: `/health`, `/livez`, `/readyz`, `/version` and `/metrics` as in etcd,
//! and service discovery for Prometheus.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::time::Duration;

use bytes::Bytes;
use conclave_state_machine::command::{AlarmKind, Range};
use flate2::Compression;
use flate2::write::GzEncoder;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use tonic::Status;
use tonic::body::Body;

use super::probes;
use crate::api::context::Context;
use crate::api::convert::alarm_type;
use crate::api::kv::off_thread;
use crate::coordination::registry;
use crate::status::{self, Fault};
use crate::version;

const METRICS: &str = "/metrics";
/// Lists scrape targets for Prometheus' `http_sd`.
const PROMETHEUS: &str = "/v1/discovery/prometheus";
/// The gRPC call with the same content; its permissions apply.
const DISCOVER: &str = "/conclave.v1.RegistryService/Discover";
const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";
/// Prometheus' text format.
const EXPOSITION: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Answers a request without a gRPC content type.
pub(super) async fn answer<B>(context: &Context, request: Request<B>) -> Response<Body> {
    let path = request.uri().path();
    let is_probe = path.starts_with("/livez") || path.starts_with("/readyz");
    if !is_probe && !matches!(path, "/health" | "/version" | METRICS | PROMETHEUS) {
        return nowhere();
    }
    // As in etcd, where Prometheus' library serves the metrics for any method.
    if path != METRICS && request.method() != Method::GET {
        let mut response = wrong_method();
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET"));
        return response;
    }
    match path {
        "/health" => health(context, request.uri().query().unwrap_or_default()).await,
        "/version" => version_page(),
        METRICS => metrics(context, request.headers()).await,
        PROMETHEUS => targets(context, request).await,
        probe => {
            let query = request.uri().query().unwrap_or_default();
            probes::answer(context, probe, query).await.unwrap_or_else(nowhere)
        }
    }
}

fn nowhere() -> Response<Body> {
    text(StatusCode::NOT_FOUND, "404 page not found\n".to_owned())
}

/// The answer to a request with the wrong method.
pub(super) fn wrong_method() -> Response<Body> {
    text(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n".to_owned())
}

/// A page of plain text.
pub(super) fn text(status: StatusCode, text: String) -> Response<Body> {
    let mut response = page(status, TEXT, text);
    let plain = HeaderValue::from_static("nosniff");
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, plain);
    response
}

fn page(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let body = http_body_util::Full::new(body.into());
    let mut response = Response::new(Body::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

async fn metrics(context: &Context, headers: &HeaderMap) -> Response<Body> {
    let there = context.clone();
    let is_packed = takes_gzip(headers);
    // Some figures are computed from the state.
    let text = off_thread(move || {
        let text = there.metrics.exposition(&there);
        if is_packed { gzip(&text) } else { Bytes::from(text) }
    });
    match text.await {
        Ok(body) => {
            let mut response = page(StatusCode::OK, EXPOSITION, body);
            if is_packed {
                let gzip = HeaderValue::from_static("gzip");
                response.headers_mut().insert(header::CONTENT_ENCODING, gzip);
            }
            response
        }
        Err(status) => page(code_of(&status), TEXT, format!("{}\n", status.message())),
    }
}

/// Whether the client accepts gzip, as every Prometheus does.
fn takes_gzip(headers: &HeaderMap) -> bool {
    let offers = headers.get_all(header::ACCEPT_ENCODING).into_iter();
    let mut offers = offers.filter_map(|value| value.to_str().ok()).flat_map(|v| v.split(','));
    offers.any(|offer| {
        let (name, weight) = offer.split_once(';').unwrap_or((offer, ""));
        let is_refused = ["q=0", "q=0.0", "q=0.00", "q=0.000"].contains(&weight.trim());
        name.trim().eq_ignore_ascii_case("gzip") && !is_refused
    })
}

fn gzip(text: &str) -> Bytes {
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    let written = packed.write_all(text.as_bytes()).and_then(|()| packed.finish());
    written.expect("invariant: writing to memory cannot fail").into()
}

/// The instances of the services named by `service=` (repeatable; without it, of all services);
/// with `healthy=true` only the healthy ones.
async fn targets<B>(context: &Context, request: Request<B>) -> Response<Body> {
    let query = request.uri().query().unwrap_or_default();
    let mut services = BTreeSet::new();
    let mut is_healthy = false;
    for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
        match name.as_ref() {
            "service" => _ = services.insert(value.into_owned()),
            "healthy" => is_healthy = value == "true",
            _ => {}
        }
    }
    let found = async {
        // The permissions of the equivalent call apply here.
        let auth = &context.auth;
        let head = auth.head_for(request.headers()).await;
        let caller = auth.admit(head, DISCOVER, request.headers(), request.extensions()).await?;
        registry::targets(context, &caller, services, is_healthy).await
    };
    match found.await {
        Ok(body) => page(StatusCode::OK, JSON, body),
        // On an error Prometheus keeps its previous targets.
        Err(status) => page(code_of(&status), TEXT, format!("{}\n", status.message())),
    }
}

fn code_of(status: &Status) -> StatusCode {
    let is = |fault: Fault| status.message() == fault.text();
    if is(Fault::UserEmpty) || is(Fault::InvalidAuthToken) || is(Fault::AuthOldRevision) {
        StatusCode::UNAUTHORIZED
    } else if is(Fault::PermissionDenied) {
        StatusCode::FORBIDDEN
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    }
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
    // Plain text, as in etcd, where an error ends with a newline.
    let body = serde_json::json!({ "health": health, "reason": reason.unwrap_or_default() });
    match status {
        StatusCode::OK => page(status, TEXT, body.to_string()),
        _ => text(status, format!("{body}\n")),
    }
}

/// Why this member is unhealthy: an alarm that is not excluded, no leader, or a failed read.
async fn unhealthy(context: &Context, query: &str) -> Option<String> {
    let pairs: Vec<(&str, &str)> =
        query.split('&').filter_map(|pair| pair.split_once('=')).collect();
    let head = context.node.reader().head();
    let alarm = head.alarms.iter().map(|&(_, kind)| kind).find(|&kind| !is_excluded(&pairs, kind));
    if let Some(kind) = alarm {
        return Some(format!("ALARM {}", alarm_type(kind).as_str_name()));
    }
    let is_serializable = pairs.contains(&("serializable", "true"));
    // A serializable check asks about this member alone: otherwise kubelets would kill all
    // survivors of a lost quorum.
    if !is_serializable && !context.node.has_leader() {
        return Some("RAFT NO LEADER".to_owned());
    }
    read(context, is_serializable).await.err().map(|text| format!("RANGE ERROR:{text}"))
}

fn is_excluded(pairs: &[(&str, &str)], kind: AlarmKind) -> bool {
    pairs.iter().any(|&(name, value)| name == "exclude" && value == alarm_type(kind).as_str_name())
}

/// Does a read as a client would.
///
/// # Errors
/// The reason why it failed.
pub(super) async fn read(context: &Context, is_serializable: bool) -> Result<(), String> {
    let settings = context.node.settings();
    // As in etcd: the timeout of a request.
    let timeout = Duration::from_secs(5) + settings.raft.election_timeout * 2;
    if !is_serializable {
        // The node's own read: as in etcd, the health of a learner is not a client's request.
        match tokio::time::timeout(timeout, context.node.read_barrier()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(status::from_read_index(&error).message().to_owned()),
            Err(_elapsed) => return Err("context deadline exceeded".to_owned()),
        }
    }
    let range = Range { key: Bytes::from_static(b"health"), ..Range::default() };
    context.node.reader().range(&range).map(drop).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_packed_for_whoever_says_so() {
        for (offered, is_taken) in [
            ("gzip", true),
            ("deflate, gzip;q=0.5", true),
            ("identity;q=1.0,GZIP ; q=0.2", true),
            ("gzip;q=0", false),
            ("gzip; q=0.0, *", false),
            ("x-gzip, zstd", false),
            ("", false),
        ] {
            let headers = [(header::ACCEPT_ENCODING, HeaderValue::from_static(offered))];
            assert_eq!(takes_gzip(&HeaderMap::from_iter(headers)), is_taken, "{offered:?}");
        }
        assert!(!takes_gzip(&HeaderMap::new()));
    }
}
