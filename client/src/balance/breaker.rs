//! Circuit breakers: an instance that keeps failing gets no calls for a while.

use std::time::{Duration, Instant};

use crate::moment::later;

/// When a breaker opens, and for how long.
///
/// ```
/// use std::time::{Duration, Instant};
/// use conclave_client::balance::{BalancedChannel, Breaker, BreakerOptions};
///
/// let open_min = Duration::from_secs(1);
/// let strict = BreakerOptions { consecutive: 2, open_min, ..BreakerOptions::default() };
/// let (mut breaker, now) = (Breaker::default(), Instant::now());
/// assert!(!breaker.failed(&strict, now));
/// assert!(breaker.failed(&strict, now), "the second failure in a row opens it");
/// let channel = BalancedChannel::builder().breaker(strict); // for every instance of a service
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BreakerOptions {
    /// Failures in a row that open it.
    pub consecutive: u32,
    /// Share of failures, in percent, that opens it ...
    pub failure_percent: u32,
    /// ... if there were at least this many calls in the window.
    pub requests_min: u32,
    /// Length of the window in which calls are counted.
    pub window: Duration,
    /// How long it stays open the first time; doubled each time it opens again without a success in
    /// between.
    pub open_min: Duration,
    /// Longest time it stays open.
    pub open_max: Duration,
}

impl Default for BreakerOptions {
    fn default() -> Self {
        Self {
            consecutive: 5,
            failure_percent: 60,
            requests_min: 10,
            window: Duration::from_secs(10),
            open_min: Duration::from_secs(1),
            open_max: Duration::from_secs(30),
        }
    }
}

/// Which calls a breaker lets through.
///
/// ```
/// use std::time::Instant;
/// use conclave_client::balance::{BreakerOptions, Instance, Node, Outcome, State};
///
/// let now = Instant::now();
/// let node = Node::new(Instance::new("a", "10.0.0.1:80"), now);
/// node.done(Outcome::NotSent, &BreakerOptions::default(), now);
/// let shown = match node.state(now) {
///     State::Closed => "serves",
///     State::HalfOpen => "is being tried",
///     State::Open => "is left alone",
/// };
/// assert_eq!(shown, "is left alone", "nothing listens at its address");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// All calls.
    Closed,
    /// No calls.
    Open,
    /// One call at a time, to see whether the instance works again.
    HalfOpen,
}

/// Counts the failures of one instance.
///
/// ```
/// use std::time::Instant;
/// use conclave_client::balance::{Breaker, BreakerOptions, State};
///
/// let options = BreakerOptions::default();
/// let (mut breaker, now) = (Breaker::default(), Instant::now());
/// for _ in 0..options.consecutive {
///     breaker.failed(&options, now);
/// }
/// assert_eq!(breaker.state(now), State::Open);
/// let later = now + options.open_min;
/// assert_eq!(breaker.state(later), State::HalfOpen);
/// breaker.succeeded(&options, later);
/// assert_eq!(breaker.state(later), State::Closed);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Breaker {
    /// Until when no call is let through; kept until a call succeeds afterwards.
    open_until: Option<Instant>,
    /// How often it opened without a success in between.
    trips: u32,
    /// Failures since the last success.
    consecutive: u32,
    window_start: Option<Instant>,
    requests: u32,
    failures: u32,
}

impl Breaker {
    /// Its state at this time.
    #[must_use]
    pub fn state(&self, now: Instant) -> State {
        match self.open_until {
            None => State::Closed,
            Some(until) if now < until => State::Open,
            Some(_) => State::HalfOpen,
        }
    }

    /// Records a successful call; true if it closed the breaker.
    pub fn succeeded(&mut self, options: &BreakerOptions, now: Instant) -> bool {
        match self.state(now) {
            // The answer to a call from before it opened.
            State::Open => false,
            State::HalfOpen => {
                *self = Self::default();
                true
            }
            State::Closed => {
                self.count(options, now);
                self.consecutive = 0;
                self.trips = 0;
                false
            }
        }
    }

    /// Records a failed call; true if it opened the breaker.
    pub fn failed(&mut self, options: &BreakerOptions, now: Instant) -> bool {
        let is_tripped = match self.state(now) {
            State::Open => return false,
            State::HalfOpen => true,
            State::Closed => {
                self.count(options, now);
                self.consecutive = self.consecutive.saturating_add(1);
                self.failures = self.failures.saturating_add(1);
                let is_mostly = u64::from(self.failures) * 100
                    >= u64::from(self.requests) * u64::from(options.failure_percent);
                self.consecutive >= options.consecutive
                    || (self.requests >= options.requests_min && is_mostly)
            }
        };
        if is_tripped {
            self.open(options, now);
        }
        is_tripped
    }

    /// Opens it, e.g. because a connection could not be made.
    pub fn open(&mut self, options: &BreakerOptions, now: Instant) {
        let pause = crate::backoff::exponential(options.open_min, options.open_max, self.trips);
        let trips = self.trips.saturating_add(1);
        *self = Self { open_until: Some(later(now, pause)), trips, ..Self::default() };
    }

    fn count(&mut self, options: &BreakerOptions, now: Instant) {
        let start = *self.window_start.get_or_insert(now);
        if now.saturating_duration_since(start) >= options.window {
            (self.window_start, self.requests, self.failures) = (Some(now), 0, 0);
        }
        self.requests = self.requests.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OPTIONS: BreakerOptions = BreakerOptions {
        consecutive: 3,
        failure_percent: 50,
        requests_min: 10,
        window: Duration::from_secs(10),
        open_min: Duration::from_secs(1),
        open_max: Duration::from_secs(4),
    };

    #[test]
    fn each_trip_without_a_success_lasts_longer() {
        let mut now = Instant::now();
        let mut breaker = Breaker::default();
        for _ in 0..2 {
            assert!(!breaker.failed(&OPTIONS, now));
        }
        assert!(breaker.failed(&OPTIONS, now));
        for pause in [1, 2, 4, 4] {
            let pause = Duration::from_secs(pause);
            assert_eq!(breaker.state(now + pause - Duration::from_nanos(1)), State::Open);
            now += pause;
            assert_eq!(breaker.state(now), State::HalfOpen);
            assert!(breaker.failed(&OPTIONS, now), "one failure is enough when half open");
        }
        now += Duration::from_secs(4);
        assert!(breaker.succeeded(&OPTIONS, now));
        assert_eq!(breaker, Breaker::default());
    }

    #[test]
    fn many_failures_among_successes_trip_it_too() {
        let now = Instant::now();
        let mut breaker = Breaker::default();
        let calls = (0..10).map(|call| match call % 2 {
            0 => breaker.succeeded(&OPTIONS, now),
            _ => breaker.failed(&OPTIONS, now),
        });
        assert_eq!(calls.collect::<Vec<_>>().iter().position(|is_tripped| *is_tripped), Some(9));
        let mut breaker = Breaker::default();
        for window in 0..20_u32 {
            let now = now + OPTIONS.window * window;
            breaker.succeeded(&OPTIONS, now);
            assert!(!breaker.failed(&OPTIONS, now), "old calls are forgotten");
        }
    }

    proptest! {
        /// It is open only after enough failures, and never longer than the longest time.
        #[test]
        fn it_never_stays_open_for_ever(
            calls in proptest::collection::vec((any::<bool>(), 0_u64..3000), 1..200),
        ) {
            let mut now = Instant::now();
            let mut breaker = Breaker::default();
            let mut failures = 0;
            for (is_success, pause_ms) in calls {
                now += Duration::from_millis(pause_ms);
                if is_success {
                    breaker.succeeded(&OPTIONS, now);
                } else {
                    failures += 1;
                    breaker.failed(&OPTIONS, now);
                }
                prop_assert!(failures >= 3 || breaker.state(now) == State::Closed);
                prop_assert_ne!(breaker.state(now + OPTIONS.open_max), State::Open);
            }
        }
    }
}
