//! Growing, jittered pauses between attempts.

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

    /// The next pause, between half and all of its nominal length so that clients spread out.
    pub(crate) fn next(&mut self) -> Duration {
        let pause = exponential(Self::MIN, Self::MAX, self.times);
        self.times = self.times.saturating_add(1);
        pause.mul_f64(rand::random_range(0.5..1.0))
    }

    pub(crate) fn reset(&mut self) {
        self.times = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit() {
        let mut backoff = Backoff::default();
        let pauses: Vec<Duration> = (0..40).map(|_| backoff.next()).collect();
        assert!(pauses[0] <= Backoff::MIN);
        assert!(pauses.iter().all(|pause| *pause <= Backoff::MAX));
        assert!(pauses[39] >= Backoff::MAX / 2);
    }
}
