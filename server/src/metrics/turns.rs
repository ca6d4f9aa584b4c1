//! Requests that wait for a turn, and for how long: by etcd's Lock and Election services and by our
//! own.

use std::time::Instant;

use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// Metrics of queues; clones share the values.
#[derive(Clone)]
pub(crate) struct TurnCounts {
    waiting: Gauge,
    waits: Histogram,
}

/// A request that waits in a queue; counted until dropped.
pub(crate) struct Queued {
    counts: TurnCounts,
    since: Instant,
}

impl TurnCounts {
    pub(super) fn register(registry: &mut Registry) -> Self {
        // From a millisecond to over an hour.
        let waits = Histogram::new(exponential_buckets(0.001, 4.0, 12));
        let counts = Self { waiting: Gauge::default(), waits };
        registry.register(
            "conclave_lock_waiting",
            "Requests for locks and leadership that wait on this member",
            counts.waiting.clone(),
        );
        registry.register(
            "conclave_lock_wait_duration_seconds",
            "Time that requests which got their lock or leadership had stood in the queue",
            counts.waits.clone(),
        );
        counts
    }

    /// Counts a request that has entered a queue.
    pub(crate) fn enter(&self) -> Queued {
        self.waiting.inc();
        Queued { counts: self.clone(), since: Instant::now() }
    }
}

impl Queued {
    /// Records the wait of a request whose turn has come.
    pub(crate) fn granted(self) {
        self.counts.waits.observe(self.since.elapsed().as_secs_f64());
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.counts.waiting.dec();
    }
}
