//! What browsers are told, and which hosts a request may name: etcd's `--cors` and `--host-whitelist`.
//! gRPC is not concerned: no browser can be made to speak it.

use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use tonic::body::Body;

use super::pages;
use crate::config::WebSettings;

const METHODS: &str = "POST, GET, OPTIONS, PUT, DELETE";
const HEADERS: &str = "accept, content-type, authorization";
const ANY: &str = "*";

/// Answers a request for a host that this member does not go by: a page of somebody else may have made a
/// browser send it, by a name that leads here (DNS rebinding).
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

/// Tells a browser whether the page that asks may see the answer.
pub(super) fn share(settings: &WebSettings, origin: Option<&HeaderValue>, answer: &mut HeaderMap) {
    let shared = match &settings.origins {
        None => HeaderValue::from_static(ANY),
        Some(origins) => {
            let is_known = |origin: &&HeaderValue| origins.iter().any(|known| *origin == known);
            let Some(origin) = origin.filter(is_known) else { return };
            origin.clone()
        }
    };
    answer.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(METHODS));
    answer.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(HEADERS));
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
    fn known_origins_may_see_answers() {
        let shared = |settings: &WebSettings, origin: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            share(settings, origin.map(HeaderValue::from_static).as_ref(), &mut headers);
            let origin = headers.get(header::ACCESS_CONTROL_ALLOW_ORIGIN)?;
            Some(origin.to_str().unwrap().to_owned())
        };
        let some = settings(&["http://a.example"]);
        assert_eq!(shared(&some, Some("http://a.example")).as_deref(), Some("http://a.example"));
        assert_eq!(shared(&some, Some("http://b.example")), None);
        assert_eq!(shared(&some, None), None);
        let all = WebSettings { origins: None, ..some };
        assert_eq!(shared(&all, Some("http://b.example")).as_deref(), Some("*"));
    }
}
