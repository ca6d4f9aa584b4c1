//! One instance and what is known about it from earlier calls.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::breaker::{Breaker, BreakerOptions, State};
use super::outlier::{OutlierOptions, Tally};
use crate::moment::later;

/// Time constant with which a measured latency decays (to 1/e).
const LATENCY_DECAY: Duration = Duration::from_secs(10);
/// Least cost of a failed call: an instance that fails fast must not look like one that answers
/// fast.
const FAILURE_COST: Duration = Duration::from_millis(500);
/// Assumed latency of an instance that has not been called yet.
const LATENCY_UNKNOWN: Duration = Duration::from_millis(1);
/// Share of its weight with which an instance starts.
const SLOW_START_MIN: f64 = 0.1;

/// An instance of a service, as a registry lists it.
///
/// ```
/// use conclave_client::balance::Instance;
///
/// // A list that does not come from the registry, for example from a file.
/// let lines = ["a 10.0.0.1:80 eu-1", "b 10.0.0.2:80 eu-2"];
/// let instances = lines.map(|line| {
///     let mut words = line.split(' ');
///     let mut next = || words.next().unwrap_or_default();
///     let instance = Instance::new(next(), next());
///     Instance { zone: next().to_owned(), ..instance }
/// });
/// assert_eq!((instances[1].zone.as_str(), instances[1].weight), ("eu-2", 100));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// Identifies the instance; what is known about an instance is kept by its id and address.
    pub id: String,
    /// `host:port`, `http://host:port` or `https://host:port`; see
    /// [`ChannelBuilder::tls`](super::ChannelBuilder::tls).
    pub address: String,
    /// Further addresses by name, of which
    /// [`ChannelBuilder::endpoint`](super::ChannelBuilder::endpoint) may select one.
    pub endpoints: BTreeMap<String, String>,
    /// Load-balancing weight relative to other instances; 0 gets no calls.
    pub weight: u32,
    /// Zone of the instance; empty if unknown.
    pub zone: String,
    /// Whether it should get calls, as reported by itself or by the registry.
    pub is_healthy: bool,
}

impl Instance {
    /// A healthy instance with weight 100 and no zone.
    pub fn new(id: impl Into<String>, address: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            address: address.into(),
            endpoints: BTreeMap::new(),
            weight: 100,
            zone: String::new(),
            is_healthy: true,
        }
    }
}

/// The outcome of a call.
///
/// ```
/// use std::time::Duration;
/// use conclave_client::balance::Outcome;
///
/// /// How a custom policy may count the outcomes it gets in `Balancer::done`.
/// fn is_failure(outcome: Outcome) -> Option<bool> {
///     match outcome {
///         Outcome::Success { .. } => Some(false),
///         Outcome::Failure { .. } | Outcome::NotSent => Some(true),
///         Outcome::Canceled => None, // says nothing about the instance
///     }
/// }
/// assert_eq!(is_failure(Outcome::Failure { latency: Duration::from_secs(3) }), Some(true));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The instance answered, even if the answer is that the request was wrong.
    Success {
        /// Time until the answer began.
        latency: Duration,
    },
    /// The instance could not serve.
    Failure {
        /// Time until the failure was known.
        latency: Duration,
    },
    /// No connection could be made, so nothing was sent.
    NotSent,
    /// The caller canceled the call before there was an answer.
    Canceled,
}

/// An instance with the statistics of its calls. It survives changes of the list that do not
/// concern it.
///
/// ```
/// use std::time::{Duration, Instant};
/// use conclave_client::balance::{BreakerOptions, Instance, Node, Outcome};
///
/// let (now, options) = (Instant::now(), BreakerOptions::default());
/// let [quick, slow] = ["a", "b"].map(|id| Node::new(Instance::new(id, "10.0.0.1:80"), now));
/// quick.done(Outcome::Success { latency: Duration::from_millis(2) }, &options, now);
/// slow.done(Outcome::Success { latency: Duration::from_millis(80) }, &options, now);
/// let cost = |node: &Node| node.cost(Duration::ZERO, now);
/// assert!(cost(&quick) < cost(&slow));
/// assert!(slow.is_available(now));
/// ```
#[derive(Debug)]
pub struct Node {
    instance: Instance,
    in_flight: AtomicU32,
    record: Mutex<Record>,
}

/// What changes with each call.
#[derive(Debug, Clone)]
struct Record {
    breaker: Breaker,
    /// How often the breaker has opened; counts only calls begun since then as unanswered.
    openings: u64,
    /// Calls begun since then whose answer has not begun.
    unanswered: u32,
    latency: Option<Latency>,
    /// Calls since the last comparison with other instances.
    tally: Tally,
    /// End of its ejection for doing worse than others.
    ejected_until: Option<Instant>,
    /// Ejections in a row.
    ejections: u32,
    /// Since when it takes calls without a break; its weight is ramped up from then on.
    since: Instant,
}

impl Record {
    fn is_ejected(&self, now: Instant) -> bool {
        self.ejected_until.is_some_and(|until| now < until)
    }
}

/// A moving average that follows peaks at once and decays slowly.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Latency {
    seconds: f64,
    at: Instant,
}

impl Latency {
    /// The average at `now` after a sample of `seconds`.
    fn observe(self, seconds: f64, now: Instant) -> Self {
        let current = self.at_time(now);
        if seconds > current {
            return Self { seconds, at: now };
        }
        let keep = self.keep(now);
        Self { seconds: self.seconds * keep + seconds * (1.0 - keep), at: now }
    }

    /// The average at `now`. Without calls it sinks, so that an instance that was slow once is
    /// tried again.
    fn at_time(self, now: Instant) -> f64 {
        self.seconds * self.keep(now)
    }

    fn keep(self, now: Instant) -> f64 {
        let elapsed = now.saturating_duration_since(self.at);
        (-elapsed.as_secs_f64() / LATENCY_DECAY.as_secs_f64()).exp()
    }
}

impl Node {
    /// A node whose weight is ramped up from `now` on.
    #[must_use]
    pub fn new(instance: Instance, now: Instant) -> Self {
        let record = Record {
            breaker: Breaker::default(),
            openings: 0,
            unanswered: 0,
            latency: None,
            tally: Tally::default(),
            ejected_until: None,
            ejections: 0,
            since: now,
        };
        Self { instance, in_flight: AtomicU32::new(0), record: Mutex::new(record) }
    }

    /// A node for a changed entry of the list that takes over this one's statistics; calls in
    /// flight stay with the old node.
    #[must_use]
    pub fn renewed(&self, instance: Instance) -> Self {
        let record = Record { unanswered: 0, ..self.record.lock().clone() };
        Self { instance, in_flight: AtomicU32::new(0), record: Mutex::new(record) }
    }

    /// The instance as listed.
    #[must_use]
    pub fn instance(&self) -> &Instance {
        &self.instance
    }

    /// Calls that have begun but not ended.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// The state of its breaker.
    #[must_use]
    pub fn state(&self, now: Instant) -> State {
        self.record.lock().breaker.state(now)
    }

    /// Whether it is ejected for doing worse than others; see
    /// [`OutlierOptions`](super::OutlierOptions).
    #[must_use]
    pub fn is_ejected(&self, now: Instant) -> bool {
        self.record.lock().is_ejected(now)
    }

    /// The calls counted since the last call of this method.
    pub(super) fn take_tally(&self) -> Tally {
        std::mem::take(&mut self.record.lock().tally)
    }

    /// Records that it did no worse than others; no effect during an ejection.
    pub(super) fn acquit(&self, now: Instant) {
        let mut record = self.record.lock();
        if !record.is_ejected(now) {
            record.ejections = record.ejections.saturating_sub(1);
        }
    }

    /// Ejects it for a while; longer with each ejection in a row.
    pub(super) fn eject(&self, options: &OutlierOptions, now: Instant) {
        let mut record = self.record.lock();
        let until = later(now, options.pause(record.ejections));
        record.ejections = record.ejections.saturating_add(1);
        (record.ejected_until, record.since) = (Some(until), until);
    }

    /// Whether it may get a call: it is healthy, has a weight, is not ejected, and its breaker lets
    /// a call through.
    #[must_use]
    pub fn is_available(&self, now: Instant) -> bool {
        if !self.instance.is_healthy || self.instance.weight == 0 {
            return false;
        }
        let record = self.record.lock();
        if record.is_ejected(now) {
            return false;
        }
        match record.breaker.state(now) {
            State::Closed => true,
            State::Open => false,
            // Streams may be open for hours, so only calls whose answer has not begun block the
            // next trial call.
            State::HalfOpen => record.unanswered == 0,
        }
    }

    /// Counts a call as in flight until the returned guard is dropped.
    #[must_use = "the call ends when this is dropped"]
    pub fn enter(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        let mut record = self.record.lock();
        record.unanswered = record.unanswered.saturating_add(1);
        InFlight { node: Arc::clone(self), unanswered_since: Some(record.openings) }
    }

    /// Records the outcome of a call; true if it opened the breaker.
    pub fn done(&self, outcome: Outcome, options: &BreakerOptions, now: Instant) -> bool {
        let mut record = self.record.lock();
        record.tally.count(outcome);
        let (cost, is_opened) = match outcome {
            Outcome::Canceled => return false,
            Outcome::Success { latency } => {
                if record.breaker.succeeded(options, now) {
                    record.since = now;
                }
                (latency, false)
            }
            Outcome::Failure { latency } => {
                (latency.max(FAILURE_COST), record.breaker.failed(options, now))
            }
            Outcome::NotSent => {
                let is_new = record.breaker.state(now) != State::Open;
                if is_new {
                    record.breaker.open(options, now);
                }
                (FAILURE_COST, is_new)
            }
        };
        if is_opened {
            record.openings += 1;
            record.unanswered = 0;
        }
        let seconds = cost.as_secs_f64();
        record.latency = Some(match record.latency {
            Some(latency) => latency.observe(seconds, now),
            None => Latency { seconds, at: now },
        });
        is_opened
    }

    /// Expected duration of a new call, in seconds, multiplied by the calls in flight and divided
    /// by the weight.
    #[must_use]
    pub fn cost(&self, slow_start: Duration, now: Instant) -> f64 {
        let latency = self.record.lock().latency;
        let seconds = latency.map_or(LATENCY_UNKNOWN.as_secs_f64(), |latency| latency.at_time(now));
        // An instance without recent calls must not cost 0, or its calls in flight would not count.
        let seconds = seconds.max(LATENCY_UNKNOWN.as_secs_f64() / 1000.0);
        seconds * f64::from(self.in_flight().saturating_add(1)) / self.weight(slow_start, now)
    }

    /// Its current weight, which grows to the full weight during the ramp-up. Never 0.
    #[must_use]
    pub fn weight(&self, slow_start: Duration, now: Instant) -> f64 {
        f64::from(self.instance.weight.max(1)) * self.warmth(slow_start, now)
    }

    /// Progress of the ramp-up, from 0.1 to 1.
    #[must_use]
    pub fn warmth(&self, slow_start: Duration, now: Instant) -> f64 {
        let elapsed = now.saturating_duration_since(self.record.lock().since);
        if elapsed >= slow_start {
            return 1.0;
        }
        (elapsed.as_secs_f64() / slow_start.as_secs_f64()).max(SLOW_START_MIN)
    }
}

/// A call in flight; see [`Node::enter`].
///
/// ```
/// use std::{sync::Arc, time::Instant};
/// use conclave_client::balance::{Instance, Node};
///
/// let node = Arc::new(Node::new(Instance::new("a", "10.0.0.1:80"), Instant::now()));
/// let mut call = node.enter();
/// call.answered(); // the headers came, the stream goes on
/// assert_eq!(call.node().in_flight(), 1);
/// drop(call); // the stream has ended
/// assert_eq!(node.in_flight(), 0);
/// ```
#[derive(Debug)]
pub struct InFlight {
    node: Arc<Node>,
    /// The breaker's openings when the call began; `None` once its answer has begun.
    unanswered_since: Option<u64>,
}

impl InFlight {
    /// The node it was sent to.
    #[must_use]
    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// Records that its answer has begun: a half-open breaker lets the next call through.
    pub fn answered(&mut self) {
        let Some(openings) = self.unanswered_since.take() else { return };
        let mut record = self.node.record.lock();
        if record.openings == openings {
            record.unanswered = record.unanswered.saturating_sub(1);
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.answered();
        self.node.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn success(ms: u64) -> Outcome {
        Outcome::Success { latency: Duration::from_millis(ms) }
    }

    #[test]
    fn peaks_count_at_once_and_are_forgotten_slowly() {
        let start = Instant::now();
        let node = Node::new(Instance::new("a", "a:1"), start);
        let options = BreakerOptions::default();
        let cost = |now| (node.cost(Duration::ZERO, now) * 100.0 * 1000.0).round();
        node.done(success(10), &options, start);
        assert_eq!(cost(start), 10.0);
        node.done(success(1000), &options, start);
        assert_eq!(cost(start), 1000.0);
        let later = start + LATENCY_DECAY;
        node.done(success(10), &options, later);
        assert!((300.0..450.0).contains(&cost(later)), "{}", cost(later));
    }

    #[test]
    fn failing_fast_is_not_being_fast() {
        let now = Instant::now();
        let options = BreakerOptions::default();
        let [fast, broken] = ["a", "b"].map(|id| Node::new(Instance::new(id, "x:1"), now));
        fast.done(success(100), &options, now);
        broken.done(Outcome::Failure { latency: Duration::from_millis(1) }, &options, now);
        assert!(broken.cost(Duration::ZERO, now) > fast.cost(Duration::ZERO, now));
    }

    #[test]
    fn a_half_open_breaker_lets_one_call_through() {
        let now = Instant::now();
        let options = BreakerOptions::default();
        let node = Arc::new(Node::new(Instance::new("a", "a:1"), now));
        assert!(node.done(Outcome::NotSent, &options, now));
        assert!(!node.is_available(now));
        let later = now + options.open_min;
        assert!(node.is_available(later));
        let call = node.enter();
        assert!(!node.is_available(later));
        drop(call);
        node.done(success(1), &options, later);
        assert!(node.is_available(later));
        let slow_start = Duration::from_secs(10);
        assert_eq!(node.warmth(slow_start, later), SLOW_START_MIN, "it is eased in again");
        assert_eq!(node.warmth(slow_start, later + slow_start / 2), 0.5);
        assert_eq!(node.warmth(slow_start, later + slow_start), 1.0);
    }

    #[test]
    fn an_open_stream_does_not_hold_up_the_trial_call() {
        let now = Instant::now();
        let options = BreakerOptions::default();
        let node = Arc::new(Node::new(Instance::new("a", "a:1"), now));
        let failure = Outcome::Failure { latency: Duration::ZERO };
        let _stream = node.enter();
        for _ in 0..options.consecutive {
            node.done(failure, &options, now);
        }
        let later = now + options.open_min;
        assert!(node.is_available(later), "a stream from before it opened");
        let mut trial = node.enter();
        assert!(!node.is_available(later), "one call at a time");
        trial.answered();
        assert!(node.is_available(later), "a stream that was tried");
        let old = node.enter();
        assert!(node.done(failure, &options, later));
        let later = later + options.open_max;
        let next = node.enter();
        drop((trial, old));
        assert!(!node.is_available(later), "calls from before do not end the trial call");
        drop(next);
        assert!(node.is_available(later));
        assert_eq!(node.in_flight(), 1, "the stream");
    }

    proptest! {
        /// The average never exceeds the highest sample, and is never below the sample just taken.
        #[test]
        fn the_average_stays_within_the_samples(
            samples in proptest::collection::vec((1_u64..5000, 0_u64..20_000), 1..50),
        ) {
            let mut now = Instant::now();
            let mut latency: Option<Latency> = None;
            let mut highest = 0.0_f64;
            for (sample_ms, pause_ms) in samples {
                now += Duration::from_millis(pause_ms);
                let seconds = Duration::from_millis(sample_ms).as_secs_f64();
                highest = highest.max(seconds);
                let next = match latency {
                    Some(latency) => latency.observe(seconds, now),
                    None => Latency { seconds, at: now },
                };
                prop_assert!(next.seconds <= highest + 1e-9);
                prop_assert!(next.seconds >= seconds - 1e-9, "a sample is never underestimated");
                latency = Some(next);
            }
        }
    }
}
