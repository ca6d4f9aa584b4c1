//! TLS metrics of the ports.

use std::sync::Arc;

use conclave_transport::Reason;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::Labels;

/// Counters of all ports; clones share the values.
#[derive(Clone, Debug, Default)]
pub(crate) struct TlsCounts {
    failures: Family<Labels<2>, Counter>,
    reloads: Family<Labels<2>, Counter>,
    expiries: Family<Labels<1>, Gauge>,
}

impl TlsCounts {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "conclave_tls_handshake_failures",
            "TLS handshakes that failed, by port and reason",
            self.failures.clone(),
        );
        registry.register(
            "conclave_tls_reloads",
            "Times that changed TLS files were read, by port and result",
            self.reloads.clone(),
        );
        registry.register(
            "conclave_tls_certificate_expiry_seconds",
            "When a port's certificate expires, in seconds since 1970",
            self.expiries.clone(),
        );
    }

    /// The counters of one port, exported from now on.
    pub(crate) fn port(&self, port: &'static str) -> PortCounts {
        for reason in Reason::ALL {
            self.failures.get_or_create(&[("port", port), ("reason", reason.as_str())]).inc_by(0);
        }
        self.files(port)
    }

    /// Like [`TlsCounts::port`], for files that are only used to connect: without handshake
    /// failures.
    pub(crate) fn files(&self, port: &'static str) -> PortCounts {
        let counts = PortCounts { counts: Arc::new(self.clone()), port };
        for is_good in [true, false] {
            counts.reload(is_good).inc_by(0);
        }
        counts
    }
}

/// Counters of one port.
#[derive(Clone, Debug)]
pub(crate) struct PortCounts {
    counts: Arc<TlsCounts>,
    port: &'static str,
}

impl PortCounts {
    /// The port's name.
    pub(crate) fn port(&self) -> &'static str {
        self.port
    }

    /// Counts a failed handshake.
    pub(crate) fn failed(&self, reason: Reason) {
        let labels = [("port", self.port), ("reason", reason.as_str())];
        self.counts.failures.get_or_create(&labels).inc();
    }

    /// Counts a reload of changed files, by success.
    pub(crate) fn reloaded(&self, is_good: bool) {
        self.reload(is_good).inc();
    }

    fn reload(&self, is_good: bool) -> Counter {
        let result = if is_good { "success" } else { "failure" };
        self.counts.reloads.get_or_create(&[("port", self.port), ("result", result)]).clone()
    }

    /// Records the expiry of the current certificate, in seconds since 1970.
    pub(crate) fn expires(&self, at: i64) {
        self.counts.expiries.get_or_create(&[("port", self.port)]).set(at);
    }
}
