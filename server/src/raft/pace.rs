//! Limits the rate at which a snapshot is sent, because others need the disk and the network too.

use std::time::{Duration, Instant};

/// Bytes a second. 5 GiB take 80 seconds.
const BYTES_PER_SECOND: u64 = 64 * 1024 * 1024;

/// Spaces out the pieces of one transfer. Unused time is not made up for.
#[derive(Debug)]
pub(super) struct Pace {
    /// Earliest time for the next piece.
    next: Instant,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self { next: now }
    }

    /// How long to wait before a piece of `bytes`; reserves the time it takes.
    fn delay(&mut self, now: Instant, bytes: u64) -> Duration {
        let begin = self.next.max(now);
        let takes_ns = bytes.saturating_mul(1_000_000_000) / BYTES_PER_SECOND;
        self.next = begin + Duration::from_nanos(takes_ns);
        begin - now
    }

    /// Waits until a piece of `bytes` may be sent.
    pub(super) async fn wait(&mut self, bytes: u64) {
        let delay = self.delay(Instant::now(), bytes);
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_waits_for_the_time_of_those_before_it() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let second = Duration::from_secs(1);
        assert_eq!(pace.delay(start, BYTES_PER_SECOND), Duration::ZERO, "the first goes at once");
        assert_eq!(pace.delay(start, BYTES_PER_SECOND / 2), second);
        assert_eq!(pace.delay(start + second, BYTES_PER_SECOND), second / 2);
        let late = start + 60 * second;
        assert_eq!(pace.delay(late, BYTES_PER_SECOND), Duration::ZERO);
        assert_eq!(pace.delay(late, 1), second, "a pause earns no burst");
    }
}
