//! Decides what browsers may do: etcd's `--cors` and `--host-whitelist`. Applies to gRPC-web but
//! not to gRPC, which no browser can be made to speak.

use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version, header};
use tonic::body::Body;

use super::pages;
use crate::config::WebSettings;

const METHODS: &str = "POST, GET, OPTIONS, PUT, DELETE";
const HEADERS: &str = "accept, content-type, authorization";
/// Headers that gRPC-web callers also send.
const CALL_HEADERS: &str =
    "accept, content-type, authorization, token, x-grpc-web, x-user-agent, grpc-timeout, hasleader";
/// A header that every gRPC-web caller sends.
const CALLER: &str = "x-grpc-web";
/// Headers that tell how a gRPC-web call ended if it did before its first message.
const EXPOSED: &str = "grpc-status, grpc-message, grpc-status-details-bin";
const ANY: &str = "*";

/// Refuses a request for a host name that is not this member's: a foreign page may have made a
/// browser send it, by a name that resolves to this server (DNS rebinding).
pub(super) fn misdirected<B>(
    settings: &WebSettings,
    request: &Request<B>,
) -> Option<Response<Body>> {
    let hosts = settings.hosts.as_ref()?;
    let host = host(request);
    if hosts.contains(&host) {
        return None;
    }
    let text = format!(
        "the host {host:?} is none of --host-whitelist; add it there, or use TLS, where \
         certificates say who is who\n"
    );
    Some(pages::text(StatusCode::MISDIRECTED_REQUEST, text))
}

/// Refuses an HTTP/1.1 request that does not name exactly one host (RFC 9112, section 3.2), as Go's
/// server does.
pub(super) fn nameless<B>(request: &Request<B>) -> Option<Response<Body>> {
    let count = request.headers().get_all(header::HOST).iter().count();
    let wrong = match count {
        _ if request.version() != Version::HTTP_11 => return None,
        0 => "missing required Host header",
        1 => return None,
        _ => "too many Host headers",
    };
    let mut refusal = pages::text(StatusCode::BAD_REQUEST, format!("400 Bad Request: {wrong}"));
    refusal.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    Some(refusal)
}

/// The host that a request names, without its port.
fn host<B>(request: &Request<B>) -> String {
    let header = || request.headers().get(header::HOST)?.to_str().ok();
    let named = request.uri().authority().map(http::uri::Authority::as_str).or_else(header);
    let named = named.unwrap_or_default();
    let host = match named.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => named,
    };
    host.trim_start_matches('[').trim_end_matches(']').to_owned()
}

/// Refuses a page whose origin may not see answers. Browsers let any page open a web socket and
/// read from it, so here the server decides.
pub(super) fn foreign(settings: &WebSettings, headers: &HeaderMap) -> Option<Response<Body>> {
    let (origins, origin) = (settings.origins.as_ref()?, headers.get(header::ORIGIN)?);
    if origins.iter().any(|known| origin == known) {
        return None;
    }
    let text = format!("the origin {origin:?} is none of --cors\n");
    Some(pages::text(StatusCode::FORBIDDEN, text))
}

/// The page that sends a request, as its browser tells.
#[derive(Debug, Default)]
pub(super) struct Asker {
    origin: Option<HeaderValue>,
    /// Whether it calls, or asks permission to call, by gRPC-web.
    is_caller: bool,
}

impl Asker {
    /// Reads it from the headers of a request.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let wanted = headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS);
        let mut wanted = wanted.and_then(|v| v.to_str().ok()).unwrap_or_default().split(',');
        let is_caller = headers.contains_key(CALLER)
            || wanted.any(|name| name.trim().eq_ignore_ascii_case(CALLER));
        Self { origin: headers.get(header::ORIGIN).cloned(), is_caller }
    }
}

/// Tells the browser whether the calling page may see the answer.
pub(super) fn share(settings: &WebSettings, asker: &Asker, answer: &mut HeaderMap) {
    let shared = match &settings.origins {
        None => HeaderValue::from_static(ANY),
        Some(origins) => {
            let is_known = |origin: &&HeaderValue| origins.iter().any(|known| *origin == known);
            let Some(origin) = asker.origin.as_ref().filter(is_known) else { return };
            origin.clone()
        }
    };
    answer.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(METHODS));
    // Other callers get etcd's list.
    let headers = if asker.is_caller { CALL_HEADERS } else { HEADERS };
    answer.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(headers));
    if asker.is_caller {
        answer.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED));
    }
    answer.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, shared);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(names: &[&str]) -> WebSettings {
        let names = || Some(names.iter().map(|&name| name.to_owned()).collect());
        WebSettings { origins: names(), hosts: names(), has_gateway: true }
    }

    #[test]
    fn hosts_are_compared_without_their_ports() {
        let settings = settings(&["a.example", "::1"]);
        for (host, is_known) in [
            ("a.example", true),
            ("a.example:2379", true),
            ("[::1]:2379", true),
            ("[::1]", true),
            ("b.example:2379", false),
            ("a.example.b", false),
            ("", false),
        ] {
            let request = Request::builder().header(header::HOST, host).body(()).unwrap();
            assert_eq!(misdirected(&settings, &request).is_none(), is_known, "{host}");
            let everybody = WebSettings { hosts: None, ..settings.clone() };
            assert!(misdirected(&everybody, &request).is_none());
        }
    }

    #[test]
    fn requests_by_http_1_1_name_one_host() {
        for (version, hosts, status) in [
            (Version::HTTP_11, 0, Some(400)),
            (Version::HTTP_11, 1, None),
            (Version::HTTP_11, 2, Some(400)),
            (Version::HTTP_10, 0, None),
            (Version::HTTP_2, 0, None),
        ] {
            let mut request = Request::builder().version(version);
            for _ in 0..hosts {
                request = request.header(header::HOST, "a");
            }
            let refusal = nameless(&request.body(()).unwrap());
            let refused = refusal.map(|answer| answer.status().as_u16());
            assert_eq!(refused, status, "{version:?} {hosts}");
        }
    }

    #[test]
    fn known_origins_may_see_answers() {
        let shared = |settings: &WebSettings, origin: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            let origin = origin.map(HeaderValue::from_static);
            share(settings, &Asker { origin, is_caller: false }, &mut headers);
            let origin = headers.get(header::ACCESS_CONTROL_ALLOW_ORIGIN)?;
            Some(origin.to_str().unwrap().to_owned())
        };
        let some = settings(&["http://a.example"]);
        assert_eq!(shared(&some, Some("http://a.example")).as_deref(), Some("http://a.example"));
        assert_eq!(shared(&some, Some("http://b.example")), None);
        assert_eq!(shared(&some, None), None);
        let all = WebSettings { origins: None, ..some.clone() };
        assert_eq!(shared(&all, Some("http://b.example")).as_deref(), Some("*"));
        let refused = |settings: &WebSettings, origin: &str| {
            let headers = HeaderMap::from_iter([(header::ORIGIN, origin.parse().unwrap())]);
            foreign(settings, &headers).is_some()
        };
        assert!(!refused(&some, "http://a.example") && !refused(&all, "http://b.example"));
        assert!(refused(&some, "http://b.example"));
        assert!(foreign(&some, &HeaderMap::new()).is_none(), "no browser");
    }
}
