//! Outliers: instances that do clearly worse than the others of their service.
//!
//! A breaker looks at a single instance and opens when it keeps failing. An instance that fails
//! every third call, or answers ten times slower than its peers, stays below that threshold. So
//! once in an interval all instances are compared, each with the median of the others. With few
//! instances, a mean would be moved by one bad instance.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::node::Outcome;
use super::snapshot::Snapshot;
use crate::moment::later;

/// When an instance is ejected because it does worse than the others, and for how long.
///
/// ```
/// use std::time::Duration;
/// use conclave_client::balance::{BalancedChannel, OutlierOptions};
///
/// // A service with calls that take seconds, and of which a third may be unavailable.
/// let slow = OutlierOptions {
///     interval: Duration::from_secs(60),
///     latency_floor: Duration::from_secs(2),
///     max_percent: 33,
///     ..OutlierOptions::default()
/// };
/// let channel = BalancedChannel::builder().outliers(slow);
/// let unwatched = BalancedChannel::builder()
///     .outliers(OutlierOptions { max_percent: 0, ..OutlierOptions::default() });
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OutlierOptions {
    /// How often instances are compared, by the calls since the last comparison.
    pub interval: Duration,
    /// Only instances with at least this many calls in the interval are compared ...
    pub requests_min: u32,
    /// ... and only if there are at least this many such instances.
    pub instances_min: usize,
    /// An instance is ejected if its success rate, in percent, is this far or further below the
    /// median of the others.
    pub success_gap_percent: u32,
    /// An instance is ejected if its successful calls took, on average, more than this many times
    /// the median of the others ...
    pub latency_factor: u32,
    /// ... where this is the least median used, however fast the others are.
    pub latency_floor: Duration,
    /// Duration of the first ejection; doubled by each further one in a row.
    pub ejection_min: Duration,
    /// Longest duration of an ejection.
    pub ejection_max: Duration,
    /// Largest share of all instances, in percent, that may be unavailable, for whatever reason,
    /// after an ejection; one always may be. 0 disables ejection.
    pub max_percent: u32,
}

impl Default for OutlierOptions {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(10),
            requests_min: 20,
            instances_min: 3,
            success_gap_percent: 20,
            latency_factor: 5,
            latency_floor: Duration::from_millis(20),
            ejection_min: Duration::from_secs(10),
            ejection_max: Duration::from_secs(300),
            max_percent: 34,
        }
    }
}

impl OutlierOptions {
    /// The duration of an ejection after this many in a row.
    pub(super) fn pause(&self, times: u32) -> Duration {
        crate::backoff::exponential(self.ejection_min, self.ejection_max, times)
    }

    /// How many more of `total` instances may be ejected if `out` are already unavailable.
    fn room(&self, total: usize, out: usize) -> usize {
        if self.max_percent == 0 {
            return 0;
        }
        let most = (total * self.max_percent as usize / 100).max(1);
        most.saturating_sub(out)
    }
}

/// Counts the outcomes of the calls to an instance.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Tally {
    successes: u32,
    failures: u32,
    /// Total latency of the successes, in seconds.
    seconds: f64,
}

impl Tally {
    /// Counts a call. A call that was not sent is left out: the breaker reacts to it at once.
    pub(super) fn count(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Success { latency } => {
                self.successes = self.successes.saturating_add(1);
                self.seconds += latency.as_secs_f64();
            }
            Outcome::Failure { .. } => self.failures = self.failures.saturating_add(1),
            Outcome::NotSent | Outcome::Canceled => {}
        }
    }

    fn requests(&self) -> u32 {
        self.successes.saturating_add(self.failures)
    }

    fn success_percent(&self) -> f64 {
        f64::from(self.successes) * 100.0 / f64::from(self.requests().max(1))
    }

    /// Mean latency of the successful calls, in seconds.
    fn latency(&self) -> Option<f64> {
        (self.successes > 0).then(|| self.seconds / f64::from(self.successes))
    }
}

/// The median: the middle value, or the mean of the two middle values.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    Some(if values.len() % 2 == 1 { upper } else { f64::midpoint(values[middle - 1], upper) })
}

/// The indices of the tallies whose instances are to be ejected, worst first; `out` further
/// instances are unavailable already.
fn judge(options: &OutlierOptions, tallies: &[Tally], out: usize) -> Vec<usize> {
    let is_compared = |place: &usize| tallies[*place].requests() >= options.requests_min.max(1);
    let compared: Vec<usize> = (0..tallies.len()).filter(is_compared).collect();
    if compared.len() < options.instances_min.max(2) {
        return Vec::new();
    }
    let others = |place: usize, value: fn(&Tally) -> Option<f64>| {
        let others = compared.iter().filter(|other| **other != place);
        median(others.filter_map(|other| value(&tallies[*other])).collect())
    };
    let badness = |place: usize| {
        let tally = &tallies[place];
        let usual = others(place, |tally| Some(tally.success_percent()))?;
        let gap = usual - tally.success_percent();
        let is_failing = gap > 0.0 && gap >= f64::from(options.success_gap_percent);
        let floor = options.latency_floor.as_secs_f64();
        let ratio = tally.latency().zip(others(place, Tally::latency));
        let ratio = ratio.map_or(0.0, |(own, usual)| own / usual.max(floor).max(f64::EPSILON));
        let is_slow = ratio > f64::from(options.latency_factor.max(1));
        // Failing ranks worse than being slow.
        (is_failing || is_slow).then_some((if is_failing { gap } else { 0.0 }, ratio))
    };
    let mut bad: Vec<(usize, (f64, f64))> =
        compared.iter().filter_map(|place| Some((*place, badness(*place)?))).collect();
    bad.sort_by(|(_, a), (_, b)| b.0.total_cmp(&a.0).then(b.1.total_cmp(&a.1)));
    bad.truncate(options.room(tallies.len() + out, out));
    bad.into_iter().map(|(place, _)| place).collect()
}

/// Compares the instances of a channel at intervals.
#[derive(Debug)]
pub(super) struct Outliers {
    options: OutlierOptions,
    next: Mutex<Instant>,
}

impl Outliers {
    pub(super) fn new(options: OutlierOptions, now: Instant) -> Self {
        Self { options, next: Mutex::new(later(now, options.interval)) }
    }

    /// Ejects the instances that do worse than the others, if a comparison is due.
    pub(super) fn sweep(&self, snapshot: &Snapshot, now: Instant) {
        {
            let mut next = self.next.lock();
            if now < *next {
                return;
            }
            *next = later(now, self.options.interval);
        }
        let weighty = snapshot.nodes().iter().filter(|node| node.instance().weight > 0);
        let (available, out): (Vec<_>, Vec<_>) = weighty.partition(|node| node.is_available(now));
        // Calls counted before an outage say nothing about the time after it.
        for node in &out {
            node.take_tally();
        }
        let tallies: Vec<_> = available.iter().map(|node| node.take_tally()).collect();
        let ejected = judge(&self.options, &tallies, out.len());
        for (place, node) in available.iter().enumerate() {
            if ejected.contains(&place) {
                let instance = &node.instance().id;
                tracing::warn!(
                    instance,
                    "does worse than the others and is left alone for a while"
                );
                node.eject(&self.options, now);
            } else if tallies[place].requests() >= self.options.requests_min {
                node.acquit(now);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::balance::BreakerOptions;
    use crate::balance::snapshot::tests::snapshot;

    const OPTIONS: OutlierOptions = OutlierOptions {
        interval: Duration::from_secs(10),
        requests_min: 10,
        instances_min: 3,
        success_gap_percent: 20,
        latency_factor: 3,
        latency_floor: Duration::from_millis(10),
        ejection_min: Duration::from_secs(5),
        ejection_max: Duration::from_secs(20),
        max_percent: 50,
    };

    fn tally(successes: u32, failures: u32, ms: u32) -> Tally {
        let seconds = f64::from(successes) * f64::from(ms) / 1000.0;
        Tally { successes, failures, seconds }
    }

    #[test]
    fn whoever_fails_or_is_slow_against_its_peers_is_an_outlier() {
        let well = tally(100, 1, 20);
        let judge = |tallies: &[Tally]| judge(&OPTIONS, tallies, 0);
        assert_eq!(judge(&[well, well, well]), [0; 0]);
        assert_eq!(judge(&[well, tally(70, 30, 20), well]), [1], "a third fails");
        assert_eq!(judge(&[well, tally(90, 10, 20), well]), [0; 0], "too few to matter");
        assert_eq!(judge(&[well, well, tally(100, 0, 61)]), [2], "three times as slow");
        assert_eq!(judge(&[well, well, tally(100, 0, 60)]), [0; 0]);
        let fast = tally(100, 0, 1);
        assert_eq!(judge(&[fast, fast, tally(100, 0, 30)]), [0; 0], "fast enough");
        assert_eq!(judge(&[tally(5, 4, 20), well, well]), [0; 0], "too few calls");
        assert_eq!(judge(&[tally(0, 50, 0), well]), [0; 0], "too few to compare with");
        assert_eq!(judge(&[tally(0, 50, 0), well, well]), [0], "none went well");
        let (slow, failing) = (tally(100, 0, 900), tally(50, 50, 20));
        assert_eq!(judge(&[well, slow, well, failing, well]), [3, 1], "the worst first");
    }

    #[test]
    fn not_too_many_are_ejected_and_one_always_may_be() {
        let (well, bad) = (tally(100, 0, 20), tally(10, 90, 20));
        let list = [well, well, well, bad, bad];
        assert_eq!(judge(&OPTIONS, &list, 0).len(), 2);
        assert_eq!(judge(&OPTIONS, &list, 2).len(), 1, "2 of 7 are out anyhow");
        let few = OutlierOptions { max_percent: 1, ..OPTIONS };
        assert_eq!(judge(&few, &list, 0).len(), 1);
        assert_eq!(judge(&few, &list, 1).len(), 0);
        let off = OutlierOptions { max_percent: 0, ..OPTIONS };
        assert_eq!(judge(&off, &list, 0).len(), 0);
    }

    #[test]
    fn an_outlier_is_left_alone_for_longer_each_time_in_a_row() {
        let mut now = Instant::now();
        let list = snapshot(&[100; 3], now);
        let outliers = Outliers::new(OPTIONS, now);
        let interval = |is_bad: bool, now: &mut Instant| {
            *now += OPTIONS.interval;
            for (place, node) in list.nodes().iter().enumerate() {
                for call in 0..30 {
                    let latency = Duration::from_millis(20);
                    let is_failing = is_bad && place == 0 && call % 3 == 0;
                    let outcome = if is_failing {
                        Outcome::Failure { latency }
                    } else {
                        Outcome::Success { latency }
                    };
                    node.done(outcome, &BreakerOptions::default(), *now);
                }
            }
            outliers.sweep(&list, *now);
        };
        interval(false, &mut now);
        assert!(!list.nodes()[0].is_ejected(now));
        for pause in [5, 10, 20, 20] {
            interval(true, &mut now);
            let node = &list.nodes()[0];
            assert!(node.is_ejected(now) && !node.is_available(now));
            assert_eq!(list.candidates(&crate::balance::Ctx::new(now, 0)).len(), 2);
            let over = now + Duration::from_secs(pause);
            assert!(node.is_ejected(over - Duration::from_nanos(1)));
            assert!(node.is_available(over), "{pause} s");
            assert!(node.warmth(OPTIONS.interval, over) < 0.2, "it is eased in again");
            now = over;
        }
        for _ in 0..4 {
            interval(false, &mut now);
            assert!(!list.nodes()[0].is_ejected(now));
        }
        interval(true, &mut now);
        assert!(list.nodes()[0].is_available(now + OPTIONS.ejection_min), "it was well meanwhile");
    }

    fn tallies() -> impl Strategy<Value = Vec<Tally>> {
        let one = (0_u32..200, 0_u32..200, 1_u32..2000);
        let one = one.prop_map(|(successes, failures, ms)| tally(successes, failures, ms));
        proptest::collection::vec(one, 0..12)
    }

    proptest! {
        #[test]
        fn most_of_the_instances_stay(list in tallies(), out in 0_usize..12, max in 0_u32..=100) {
            let options = OutlierOptions { max_percent: max, ..OPTIONS };
            let ejected = judge(&options, &list, out);
            let all_out = ejected.len() + out;
            let share = all_out * 100 <= (list.len() + out) * max as usize;
            prop_assert!(ejected.is_empty() || share || all_out == 1, "{ejected:?}");
            prop_assert!(max > 0 || ejected.is_empty());
        }

        #[test]
        fn nobody_is_an_outlier_among_its_like(one in tallies(), count in 0_usize..12) {
            for tally in one {
                prop_assert_eq!(judge(&OPTIONS, &vec![tally; count], 0), [0; 0]);
            }
        }

        #[test]
        fn whoever_does_best_is_never_ejected(list in tallies()) {
            for place in judge(&OPTIONS, &list, 0) {
                let tally = &list[place];
                prop_assert!(tally.requests() >= OPTIONS.requests_min);
                let better = list.iter().filter(|other| other.requests() >= OPTIONS.requests_min);
                let is_worse = better.clone().any(|other| {
                    other.success_percent() > tally.success_percent()
                        || other.latency().zip(tally.latency()).is_some_and(|(a, b)| a < b)
                });
                prop_assert!(is_worse, "{place} of {list:?}");
                prop_assert!(better.count() >= OPTIONS.instances_min);
            }
        }
    }
}
