//! Counts client requests by the API version that the client states, and broken request streams.

use http::HeaderMap;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tonic::{Code, Status};

use super::Labels;

/// Header in which etcd clients state their API version.
const VERSION_HEADER: &str = "client-api-version";
/// Versions that become labels: a client may send anything, but labels must be bounded.
const VERSIONS: [&str; 12] =
    ["unknown", "other", "3.0", "3.1", "3.2", "3.3", "3.4", "3.5", "3.6", "3.7", "3.8", "3.9"];

/// Counters of requests; clones share the values.
#[derive(Clone)]
pub(crate) struct Requests {
    unary: [Counter; VERSIONS.len()],
    streams: [Counter; VERSIONS.len()],
    broken_watches: Counter,
    broken_keep_alives: Counter,
}

impl Requests {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let requests = Family::<Labels<2>, Counter>::default();
        let of = |kind: &'static str| {
            VERSIONS.map(|version| {
                let labels = [("type", kind), ("client_api_version", version)];
                requests.get_or_create(&labels).clone()
            })
        };
        let broken = Family::<Labels<2>, Counter>::default();
        let receive = |api| broken.get_or_create(&[("API", api), ("Type", "receive")]).clone();
        let counts = Self {
            unary: of("unary"),
            streams: of("stream"),
            broken_watches: receive("watch"),
            broken_keep_alives: receive("lease-keepalive"),
        };
        registry.register(
            "etcd_server_client_requests",
            "Calls by the version that clients say they were made for",
            requests,
        );
        registry.register(
            "etcd_network_server_stream_failures",
            "Streams of which a message could not be read",
            broken,
        );
        counts
    }

    /// Counts a call.
    pub(crate) fn count(&self, headers: &HeaderMap, is_stream: bool) {
        let counters = if is_stream { &self.streams } else { &self.unary };
        counters[version(headers)].inc();
    }

    /// Counter of broken watch streams.
    pub(crate) fn broken_watches(&self) -> Counter {
        self.broken_watches.clone()
    }

    /// Counter of broken lease keep-alive streams.
    pub(crate) fn broken_keep_alives(&self) -> &Counter {
        &self.broken_keep_alives
    }
}

fn version(headers: &HeaderMap) -> usize {
    let Some(named) = headers.get(VERSION_HEADER) else { return 0 };
    VERSIONS.iter().position(|version| named.as_bytes() == version.as_bytes()).unwrap_or(1)
}

/// Whether the end of a request stream is a failure, and not just a client that disconnected.
pub(crate) fn is_failure(status: &Status) -> bool {
    status.code() != Code::Cancelled && std::error::Error::source(status).is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_a_closed_set() {
        let of = |value: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            value.map(|value| headers.insert(VERSION_HEADER, value.parse().unwrap()));
            VERSIONS[version(&headers)]
        };
        assert_eq!([of(None), of(Some("3.5")), of(Some("4.0"))], ["unknown", "3.5", "other"]);
        assert_eq!([of(Some("")), of(Some("3.55")), of(Some("3.0"))], ["other", "other", "3.0"]);
    }
}
