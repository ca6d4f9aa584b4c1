//! How many leases there may be, and how many may be granted in a second.
//!
//! Looked at where a lease is asked for, like the quota: members may have other limits, so that apply, which has to come to the same
//! result everywhere, cannot know them. What others grant at the same moment may go beyond.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use tonic::Status;

use crate::config::Limits;
use crate::lessor::Lessor;
use crate::metrics::Counts;
use crate::status::Fault;

/// Grants are counted together over this time: those of a client that comes with all of its leases at once are many.
const PERIOD: Duration = Duration::from_secs(1);

/// Says whether one more lease may be granted; clones share the pace.
#[derive(Clone)]
pub(crate) struct Grants {
    leases_max: usize,
    pace: Option<Arc<Pace>>,
    too_many: Counter,
    too_fast: Counter,
}

impl Grants {
    /// By these limits.
    pub(crate) fn new(limits: &Limits, counts: &Counts) -> Self {
        let pace = limits.lease_grants_per_second_max;
        Self {
            leases_max: limits.leases_max,
            pace: pace.map(|rate| Arc::new(Pace::new(rate, Instant::now()))),
            too_many: counts.refused_grants("count"),
            too_fast: counts.refused_grants("rate"),
        }
    }

    /// Refuses a lease that would be one too many. One that there is already may be asked for again: it is not
    /// granted twice.
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

/// So many in each period, at whatever distance from each other.
struct Pace {
    /// What each of them takes of the period.
    each: Duration,
    /// When all that was taken will have had its time.
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
