//! Metrics of the service registry.

use conclave_raft_store::Reader;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::coordination::registry::counted;

/// Counters and gauges of the service registry.
#[derive(Default)]
pub(crate) struct RegistryCounts {
    /// Active checks that this member performed as leader.
    pub(crate) checks: Counter,
    /// Checks that changed the health of an instance.
    pub(crate) check_changes: Counter,
    /// Checks that are due but wait because too many are running.
    pub(crate) waiting_checks: Gauge,
    services: Gauge,
    instances: Gauge,
    stale: Gauge,
    damped: Gauge,
}

impl RegistryCounts {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let counts = Self::default();
        for (name, help, counter) in [
            (
                "conclave_registry_checks",
                "Active checks of instances that this member made as leader",
                &counts.checks,
            ),
            (
                "conclave_registry_check_changes",
                "Active checks that changed what is said about an instance",
                &counts.check_changes,
            ),
        ] {
            registry.register(name, help, counter.clone());
        }
        for (name, help, gauge) in [
            (
                "conclave_registry_waiting_checks",
                "Active checks that are due and wait because too many run",
                &counts.waiting_checks,
            ),
            ("conclave_registry_services", "Services with instances or switches", &counts.services),
            ("conclave_registry_instances", "Registered instances", &counts.instances),
            (
                "conclave_registry_stale_instances",
                "Instances that the guard keeps after their loss",
                &counts.stale,
            ),
            (
                "conclave_registry_damped_instances",
                "Instances that are damped because they come and go too often",
                &counts.damped,
            ),
        ] {
            registry.register(name, help, gauge.clone());
        }
        counts
    }

    pub(super) fn scrape(&self, reader: &Reader) {
        match counted(reader) {
            Ok(counted) => {
                let set = |gauge: &Gauge, count: u64| _ = gauge.set(super::signed(count));
                set(&self.services, counted.services);
                set(&self.instances, counted.live);
                set(&self.stale, counted.stale);
                set(&self.damped, counted.damped);
            }
            Err(error) => tracing::error!(%error, "cannot count instances"),
        }
    }
}
