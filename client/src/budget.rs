//! The retry budget: a token bucket, filled over time and by successful calls.
//!
//! Retries must not keep a failing or overloaded cluster down. Back-off limits a single call; the
//! budget limits all calls of a client together.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Limits how often a client retries calls, whatever their errors; see
/// [`Builder::retry_budget`](crate::Builder::retry_budget).
///
/// A retry takes a token. If none is left, it waits for one; if none will come before the deadline
/// of its call, the call ends at once with the error that it had. First attempts need no token.
/// Streams that are opened again need none either: they make one attempt at a time, after growing
/// pauses.
///
/// In `s` seconds in which `n` calls succeed, a client makes at most `burst + s * per_second + n *
/// percent / 100` retries.
///
/// ```
/// # fn main() -> Result<(), conclave_client::Error> {
/// # let runtime = tokio::runtime::Runtime::new().expect("a runtime");
/// # let _in_runtime = runtime.enter();
/// use conclave_client::{Client, RetryBudget};
///
/// let careful = RetryBudget { per_second: 10, percent: 10, burst: 50 };
/// let client = Client::builder(["127.0.0.1:2379"]).retry_budget(careful).build()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryBudget {
    /// Tokens added each second.
    pub per_second: u32,
    /// Part of a token, in percent, added by each successful call.
    pub percent: u32,
    /// The most tokens that are kept; also the number at the start.
    pub burst: u32,
}

impl Default for RetryBudget {
    /// 1,000 at the start, then 100 a second and one for every five successful calls: enough for a
    /// hundred callers to get through an election.
    fn default() -> Self {
        Self { per_second: 100, percent: 20, burst: 1_000 }
    }
}

/// The tokens of a client.
#[derive(Debug)]
pub(crate) struct Budget {
    options: RetryBudget,
    tokens: Mutex<Tokens>,
}

#[derive(Debug)]
struct Tokens {
    /// Below zero when future tokens are already promised to waiting callers.
    left: f64,
    at: Instant,
}

impl Budget {
    pub(crate) fn new(options: RetryBudget, now: Instant) -> Self {
        let left = f64::from(options.burst);
        Self { options, tokens: Mutex::new(Tokens { left, at: now }) }
    }

    /// Adds the tokens for a successful call.
    pub(crate) fn earn(&self) {
        let mut tokens = self.tokens.lock();
        tokens.add(f64::from(self.options.percent) / 100.0, self.options.burst);
    }

    /// Takes a token for a retry and returns when the retry may be made, `now` at the earliest. If
    /// that would not be before `deadline`, takes none and returns `None`.
    pub(crate) fn take(&self, now: Instant, deadline: Instant) -> Option<Instant> {
        let per_second = f64::from(self.options.per_second);
        let mut tokens = self.tokens.lock();
        let elapsed = now.saturating_duration_since(tokens.at);
        tokens.at = tokens.at.max(now);
        tokens.add(elapsed.as_secs_f64() * per_second, self.options.burst);
        let missing = (1.0 - tokens.left).max(0.0);
        let wait = if missing > 0.0 {
            // `None` if no token will ever come.
            Duration::try_from_secs_f64(missing / per_second).ok()?
        } else {
            Duration::ZERO
        };
        let at = now.checked_add(wait).filter(|at| *at < deadline)?;
        tokens.left -= 1.0;
        Some(at)
    }
}

impl Tokens {
    fn add(&mut self, tokens: f64, burst: u32) {
        self.left = (self.left + tokens).min(f64::from(burst));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LONG: Duration = Duration::from_secs(1_000_000);

    #[test]
    fn after_a_burst_repetitions_come_at_a_rate() {
        let start = Instant::now();
        let options = RetryBudget { per_second: 10, percent: 0, burst: 2 };
        let budget = Budget::new(options, start);
        let taken: Vec<Option<Duration>> = (0..4)
            .map(|_| budget.take(start, start + LONG).map(|at| at.duration_since(start)))
            .collect();
        assert_eq!(taken, [0, 0, 100, 200].map(|ms| Some(Duration::from_millis(ms))));
        let soon = start + Duration::from_millis(300);
        assert_eq!(budget.take(start, soon), None, "its call would be over");
        assert_eq!(budget.take(start, start + LONG), Some(soon), "nothing was taken before");
        let later = start + LONG;
        for _ in 0..2 {
            assert_eq!(budget.take(later, later + LONG), Some(later));
        }
        assert!(budget.take(later, later + LONG) > Some(later), "no more than the burst is kept");
    }

    #[test]
    fn calls_that_go_well_pay_for_repetitions() {
        let now = Instant::now();
        let options = RetryBudget { per_second: 0, percent: 50, burst: 1 };
        let budget = Budget::new(options, now);
        assert_eq!(budget.take(now, now + LONG), Some(now));
        assert_eq!(budget.take(now, now + LONG), None, "none ever comes by itself");
        for earned in [None, Some(now), None, Some(now)] {
            budget.earn();
            assert_eq!(budget.take(now, now + LONG), earned);
        }
    }

    proptest! {
        #[test]
        fn repetitions_stay_within_the_budget(
            (per_second, percent, burst) in (0_u32..50, 0_u32..200, 0_u32..20),
            steps in proptest::collection::vec((0_u64..500, 0_u32..20, 0_u32..20, 1_u64..5_000), 1..50),
        ) {
            let start = Instant::now();
            let budget = Budget::new(RetryBudget { per_second, percent, burst }, start);
            let (mut now, mut earned, mut taken) = (start, 0_u32, Vec::new());
            for (pause_ms, successes, failures, limit_ms) in steps {
                now += Duration::from_millis(pause_ms);
                for _ in 0..successes {
                    budget.earn();
                    earned += 1;
                }
                let deadline = now + Duration::from_millis(limit_ms);
                for at in (0..failures).filter_map(|_| budget.take(now, deadline)) {
                    prop_assert!(now <= at && at < deadline);
                    taken.push(at);
                }
                let end = taken.iter().max().copied().unwrap_or(now).max(now);
                let most = f64::from(burst)
                    + end.duration_since(start).as_secs_f64() * f64::from(per_second)
                    + f64::from(earned) * f64::from(percent) / 100.0;
                let made = u32::try_from(taken.len()).unwrap();
                prop_assert!(f64::from(made) <= most + 1e-3, "{made} repetitions of {most}");
            }
        }
    }
}
