//! The checks of `/livez` and `/readyz`, and their results.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::Labels;

/// A list of checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Probe {
    /// Whether the process should keep running.
    Live,
    /// Whether it should be sent requests.
    Ready,
}

/// One check of this member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    /// No member has reported damage of this cluster's data.
    DataCorruption,
    /// The local data can be read.
    SerializableRead,
    /// The local data can be read and is up to date.
    LinearizableRead,
    /// This member is a voter.
    NonLearner,
}

impl Probe {
    pub(crate) const ALL: [Self; 2] = [Self::Live, Self::Ready];

    /// Name in the path.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Live => "livez",
            Self::Ready => "readyz",
        }
    }

    pub(crate) fn checks(self) -> &'static [Check] {
        match self {
            Self::Live => &[Check::SerializableRead],
            Self::Ready => &[
                Check::DataCorruption,
                Check::SerializableRead,
                Check::LinearizableRead,
                Check::NonLearner,
            ],
        }
    }
}

impl Check {
    /// Name in the path.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::DataCorruption => "data_corruption",
            Self::SerializableRead => "serializable_read",
            Self::LinearizableRead => "linearizable_read",
            Self::NonLearner => "non_learner",
        }
    }
}

/// Results of the checks.
pub(crate) struct Probes {
    last: Family<Labels<2>, Gauge>,
    all: Family<Labels<3>, Counter>,
}

impl Probes {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let probes = Self { last: Family::default(), all: Family::default() };
        let (last, all) = (probes.last.clone(), probes.all.clone());
        registry.register("etcd_server_healthcheck", "Whether a check last went well", last);
        registry.register("etcd_server_healthchecks", "Checks by how they ended", all);
        probes
    }

    pub(crate) fn count(&self, probe: Probe, check: Check, is_good: bool) {
        let (kind, name) = (("type", probe.name()), ("name", check.name()));
        self.last.get_or_create(&[kind, name]).set(is_good.into());
        let status = ("status", if is_good { "success" } else { "error" });
        self.all.get_or_create(&[kind, name, status]).inc();
    }
}
