//! Runs clients for a warm-up and a measured window, in a closed or open loop, and records their
//! latencies.
//!
//! The open loop avoids coordinated omission: the latency of a request that finds every client busy
//! counts from its planned time, not from when a client got to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tonic::Status;

/// Latencies are recorded with three significant digits.
const SIGNIFICANT_DIGITS: u8 = 3;
/// Most error texts to keep.
const ERROR_TEXTS_MAX: usize = 5;

/// Start and end of the measured part of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    pub(crate) start: Instant,
    pub(crate) end: Instant,
}

impl Window {
    pub(crate) fn after(warm: Duration, measured: Duration) -> Self {
        let start = Instant::now() + warm;
        Self { start, end: start + measured }
    }
}

/// What one or more clients measured inside the window.
#[derive(Debug)]
pub(crate) struct Tally {
    pub(crate) ops: u64,
    pub(crate) errors: u64,
    pub(crate) error_texts: Vec<String>,
    pub(crate) latency_ns: Histogram<u64>,
}

impl Tally {
    pub(crate) fn new() -> Self {
        let latency_ns =
            Histogram::new(SIGNIFICANT_DIGITS).expect("invariant: three digits are allowed");
        Self { ops: 0, errors: 0, error_texts: Vec::new(), latency_ns }
    }

    pub(crate) fn success(&mut self, latency: Duration) {
        self.ops += 1;
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.latency_ns.record(nanos.max(1)).expect("invariant: the histogram resizes itself");
    }

    /// Counts a request that did `count` operations.
    fn batch(&mut self, latency: Duration, count: u64) {
        self.success(latency);
        self.ops += count.saturating_sub(1);
    }

    pub(crate) fn failure(&mut self, error: &Status) {
        self.errors += 1;
        if self.error_texts.len() < ERROR_TEXTS_MAX {
            self.error_texts.push(format!("{:?}: {}", error.code(), error.message()));
        }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.ops += other.ops;
        self.errors += other.errors;
        self.latency_ns.add(&other.latency_ns).expect("invariant: the histogram resizes itself");
        let room = ERROR_TEXTS_MAX.saturating_sub(self.error_texts.len());
        self.error_texts.extend(other.error_texts.iter().take(room).cloned());
    }
}

/// Decides when each request starts.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    window: Window,
    begin: Instant,
    open: Option<Arc<Plan>>,
}

#[derive(Debug)]
struct Plan {
    interval_ns: f64,
    next: AtomicU64,
}

impl Pace {
    /// `rate` requests per second over all clones; 0: as fast as answers arrive.
    pub(crate) fn new(window: Window, rate: f64) -> Self {
        let plan = |rate: f64| Arc::new(Plan { interval_ns: 1e9 / rate, next: AtomicU64::new(0) });
        Self { window, begin: Instant::now(), open: (rate > 0.0).then(|| plan(rate)) }
    }

    /// Waits until the next request is due. Returns the time from which its latency counts; `None`
    /// when the run is over.
    pub(crate) async fn turn(&self) -> Option<Instant> {
        let now = Instant::now();
        if now >= self.window.end {
            return None;
        }
        let Some(plan) = &self.open else { return Some(now) };
        let slot = plan.next.fetch_add(1, Ordering::Relaxed);
        let planned = self.begin + Duration::from_nanos((slot as f64 * plan.interval_ns) as u64);
        if planned >= self.window.end {
            return None;
        }
        if planned <= now {
            return Some(planned);
        }
        tokio::time::sleep_until(planned.into()).await;
        // The timer ticks in milliseconds; its lateness is the generator's fault, not the server's.
        Some(Instant::now())
    }

    pub(crate) fn window(&self) -> Window {
        self.window
    }
}

/// A client that sends one request at a time.
pub(crate) trait Client: Send + 'static {
    /// Sends a request and waits for the answer.
    fn step(&mut self) -> impl Future<Output = Result<(), Status>> + Send;

    /// Number of operations in one step.
    fn operations(&self) -> u64 {
        1
    }
}

/// Runs one client until the window ends.
pub(crate) async fn run(mut client: impl Client, pace: Pace) -> Tally {
    let window = pace.window();
    let mut tally = Tally::new();
    while let Some(begin) = pace.turn().await {
        let result = client.step().await;
        let now = Instant::now();
        // Only whole requests count, in the window in which they end, so that rates do not depend
        // on the latency.
        let is_inside = now >= window.start && now < window.end;
        match result {
            Ok(()) if is_inside => tally.batch(now - begin, client.operations()),
            Ok(()) => {}
            Err(error) if is_inside => {
                tally.failure(&error);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
    tally
}

impl Client for crate::worker::Worker {
    fn step(&mut self) -> impl Future<Output = Result<(), Status>> + Send {
        Self::step(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Stall {
        first: bool,
    }

    impl Client for Stall {
        async fn step(&mut self) -> Result<(), Status> {
            if std::mem::take(&mut self.first) {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            Ok(())
        }
    }

    /// Much longer than the stall, even on a machine that is busy with other things.
    const WINDOW: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn open_loop_counts_a_stall_for_every_request_it_delayed() {
        let window = Window::after(Duration::ZERO, WINDOW);
        let tally = run(Stall { first: true }, Pace::new(window, 1000.0)).await;
        // 200 requests were planned during the stall; half of them waited for over 100 ms.
        let slow = tally.latency_ns.count_between(90_000_000, u64::MAX);
        assert!(slow >= 100, "{slow} slow requests of {}", tally.ops);
    }

    #[tokio::test]
    async fn closed_loop_sees_the_stall_once() {
        let window = Window::after(Duration::ZERO, WINDOW);
        struct Slow(Stall);
        impl Client for Slow {
            async fn step(&mut self) -> Result<(), Status> {
                self.0.step().await?;
                tokio::time::sleep(Duration::from_millis(1)).await;
                Ok(())
            }
        }
        let tally = run(Slow(Stall { first: true }), Pace::new(window, 0.0)).await;
        let slow = tally.latency_ns.count_between(150_000_000, u64::MAX);
        // The machine may stall, too, but not two requests at the same time.
        let slow_max = WINDOW.as_millis() / 150;
        assert!(slow >= 1 && u128::from(slow) <= slow_max, "{slow} slow requests");
    }
}
