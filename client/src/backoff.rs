//! Growing, randomized pauses between attempts.

use std::time::Duration;

/// `min` doubled `times` times, at most `max`.
pub(crate) fn exponential(min: Duration, max: Duration, times: u32) -> Duration {
    let factor = 1_u32.checked_shl(times.min(16)).unwrap_or(u32::MAX);
    min.saturating_mul(factor).min(max)
}

/// The pauses of one retry loop.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    times: u32,
}

impl Backoff {
    const MIN: Duration = Duration::from_millis(20);
    const MAX: Duration = Duration::from_secs(1);

    /// The next pause: a random part of its nominal length, so that clients that failed together
    /// spread out.
    pub(crate) fn next(&mut self) -> Duration {
        let pause = exponential(Self::MIN, Self::MAX, self.times);
        self.times = self.times.saturating_add(1);
        pause.mul_f64(rand::random_range(0.0..1.0))
    }

    pub(crate) fn reset(&mut self) {
        self.times = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit_and_are_spread_below_it() {
        let mut backoff = Backoff::default();
        for times in 0..6 {
            assert!(backoff.next() <= Backoff::MIN * (1 << times));
        }
        // The probability that one of these fails by chance is below 1 in 10^100.
        let pauses: Vec<Duration> = (0..1_000).map(|_| backoff.next()).collect();
        assert!(pauses.iter().all(|pause| *pause <= Backoff::MAX));
        assert!(pauses.iter().any(|pause| *pause > Backoff::MAX / 4 * 3));
        assert!(pauses.iter().any(|pause| *pause < Backoff::MAX / 4));
    }
}
