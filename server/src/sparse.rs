//! Log lines that anybody can cause are written at most once a second, with the number of those that were not.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

const INTERVAL: Duration = Duration::from_secs(1);

/// When a kind of line was last written.
#[derive(Debug, Default)]
pub(crate) struct Sparse(Mutex<Lines>);

#[derive(Debug, Default)]
struct Lines {
    last: Option<Instant>,
    unsaid: u64,
}

impl Sparse {
    /// Whether a line may be written now, and how many were not since the last one.
    pub(crate) fn turn(&self) -> Option<u64> {
        let now = Instant::now();
        let mut lines = self.0.lock();
        if lines.last.is_some_and(|last| now - last < INTERVAL) {
            lines.unsaid += 1;
            return None;
        }
        lines.last = Some(now);
        Some(std::mem::take(&mut lines.unsaid))
    }
}
