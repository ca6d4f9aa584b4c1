//! Limits the number of leases and the rate at which they are granted.
//!
//! Checked where a lease is requested, like the quota, and not in apply: members may be configured
//! with different limits, and apply must have the same result everywhere. Grants that other members
//! make at the same moment may exceed the limit.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use tonic::Status;

use crate::config::Limits;
use crate::lessor::Lessor;
use crate::metrics::Counts;
use crate::status::Fault;

/// The rate is averaged over this time, because a client may request all of its leases at once.
const PERIOD: Duration = Duration::from_secs(1);

/// Decides whether one more lease may be granted; clones share the rate limit.
#[derive(Clone)]
pub(crate) struct Grants {
    leases_max: usize,
    pace: Option<Arc<Pace>>,
    too_many: Counter,
    too_fast: Counter,
}

impl Grants {
    /// Enforces `limits` and counts refusals in `counts`.
    pub(crate) fn new(limits: &Limits, counts: &Counts) -> Self {
        let pace = limits.lease_grants_per_second_max;
        Self {
            leases_max: limits.leases_max,
            pace: pace.map(|rate| Arc::new(Pace::new(rate, Instant::now()))),
            too_many: counts.refused_grants("count"),
            too_fast: counts.refused_grants("rate"),
        }
    }

    /// Refuses a lease beyond the limits. The lease limit does not apply to an id that exists
    /// already: that request does not grant another lease.
    pub(crate) fn check(&self, lessor: &Lessor, id: i64) -> Result<(), Status> {
        if lessor.count() >= self.leases_max && !lessor.knows(id) {
            self.too_many.inc();
            return Err(Status::resource_exhausted(format!(
                "conclave: too many leases (limit {}, --max-leases)",
                self.leases_max
            )));
        }
        if self.pace.as_ref().is_some_and(|pace| !pace.take(Instant::now())) {
            self.too_fast.inc();
            return Err(Fault::TooManyRequests.into());
        }
        Ok(())
    }
}

/// Limits grants to a number per [`PERIOD`], however they are spread within it.
struct Pace {
    /// The share of the period that one grant uses up.
    each: Duration,
    /// When the time used up by all grants so far will have passed.
    settled: Mutex<Instant>,
}

impl Pace {
    fn new(rate: u32, now: Instant) -> Self {
        Self { each: PERIOD / rate, settled: Mutex::new(now) }
    }

    fn take(&self, now: Instant) -> bool {
        let mut settled = self.settled.lock();
        let next = now.max(*settled) + self.each;
        let is_in_time = next.duration_since(now) <= PERIOD;
        if is_in_time {
            *settled = next;
        }
        is_in_time
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_leases_are_granted_in_a_second_and_no_more() {
        let begin = Instant::now();
        let pace = Pace::new(10, begin);
        let taken = |at_ms, wanted: u32| {
            let now = begin + Duration::from_millis(at_ms);
            (0..wanted).filter(|_| pace.take(now)).count()
        };
        assert_eq!(taken(0, 100), 10, "all at once");
        assert_eq!(taken(99, 100), 0);
        assert_eq!(taken(250, 100), 2, "as time goes by");
        assert_eq!(taken(60_000, 100), 10, "and none is saved up for later");
    }
}
