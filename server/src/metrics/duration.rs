//! Histograms of durations for paths that every request takes: recording is two relaxed additions.
//! The library's histogram takes a lock each time.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::{MetricType, TypedMetric};

use super::Labels;

/// Number of bucket bounds, each twice the previous one; as in etcd for requests.
const BOUNDS: usize = 20;
/// The lowest bound.
const SHORTEST: Duration = Duration::from_micros(100);

/// Durations in doubling buckets from 100 us to 52 s; clones share the values.
#[derive(Clone, Debug, Default)]
pub(crate) struct Durations(Arc<Values>);

#[derive(Debug, Default)]
struct Values {
    sum_ns: AtomicU64,
    /// Count of each bucket; the last is for durations beyond all bounds.
    buckets: [AtomicU64; BOUNDS + 1],
}

impl Durations {
    /// Records a duration.
    pub(crate) fn observe(&self, took: Duration) {
        self.observe_many(took, 1);
    }

    /// Records `count` times the same duration.
    pub(crate) fn observe_many(&self, took: Duration, count: u64) {
        let took_ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.0.buckets[bucket(took_ns)].fetch_add(count, Ordering::Relaxed);
        self.0.sum_ns.fetch_add(took_ns.saturating_mul(count), Ordering::Relaxed);
    }
}

/// Durations of an operation, by success.
#[derive(Clone)]
pub(crate) struct BySuccess {
    pub(super) family: Family<Labels<1>, Durations>,
    /// Failed and successful; the same values as in `family`.
    durations: [Durations; 2],
}

impl Default for BySuccess {
    fn default() -> Self {
        let family = Family::<Labels<1>, Durations>::default();
        let of = |success| family.get_or_create(&[("success", success)]).clone();
        let durations = [of("false"), of("true")];
        Self { durations, family }
    }
}

impl BySuccess {
    /// Records a duration.
    pub(crate) fn observe(&self, took: Duration, is_success: bool) {
        self.durations[usize::from(is_success)].observe(took);
    }
}

/// Index of the first bucket whose bound is not below `took_ns`.
fn bucket(took_ns: u64) -> usize {
    let shortest_ns = SHORTEST.as_nanos() as u64;
    let doublings = took_ns.div_ceil(shortest_ns).max(1).next_power_of_two().trailing_zeros();
    (doublings as usize).min(BOUNDS)
}

impl TypedMetric for Durations {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Durations {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        let bound = |i: usize| match i {
            BOUNDS => f64::INFINITY,
            i => SHORTEST.as_secs_f64() * f64::from(1_u32 << i),
        };
        let counts = self.0.buckets.iter().map(|count| count.load(Ordering::Relaxed));
        let buckets: Vec<(f64, u64)> =
            counts.enumerate().map(|(i, count)| (bound(i), count)).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = Duration::from_nanos(self.0.sum_ns.load(Ordering::Relaxed)).as_secs_f64();
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text;
    use prometheus_client::registry::Registry;

    use super::*;

    #[test]
    fn a_duration_falls_into_the_first_bucket_that_holds_it() {
        let at = |micros: u64| bucket(Duration::from_micros(micros).as_nanos() as u64);
        assert_eq!([at(0), at(1), at(100), at(101), at(200), at(201)], [0, 0, 0, 1, 1, 2]);
        assert_eq!(at(100 << 19), 19);
        assert_eq!([at((100 << 19) + 1), bucket(1 << 62)], [20, 20]);
    }

    #[test]
    fn buckets_are_written_as_the_library_writes_them() {
        let durations = Durations::default();
        durations.observe(Duration::from_micros(150));
        durations.observe_many(Duration::from_secs(60), 2);
        let mut registry = Registry::default();
        registry.register("x_seconds", "Help", durations);
        let mut page = String::new();
        text::encode(&mut page, &registry).unwrap();
        for line in [
            "x_seconds_sum 120.00015",
            "x_seconds_count 3",
            "x_seconds_bucket{le=\"0.0001\"} 0",
            "x_seconds_bucket{le=\"0.0002\"} 1",
            "x_seconds_bucket{le=\"52.4288\"} 1",
            "x_seconds_bucket{le=\"+Inf\"} 3",
        ] {
            assert!(page.lines().any(|found| found == line), "{line}\n{page}");
        }
    }
}
