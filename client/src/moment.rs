//! The clock by which this process measures what it holds: it also runs while the machine is
//! suspended.
//!
//! [`Instant`] stands still while a laptop or a virtual machine is suspended; the cluster's clock
//! does not, and the cluster gives what a session held to others. The difference is known on Linux
//! only. A hypervisor that stops a machine without telling it stops all of its clocks: only fencing
//! tokens help against that.

use std::{ops::Add, time::Duration};

use tokio::time::{Instant, sleep};

/// How often a wait for a moment reads the clock: timers stand still, too, while the machine is
/// suspended.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// The longest duration that is added to a clock: 30 years.
pub(crate) const LONGEST: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);

/// `now` plus `pause`, which is capped at [`LONGEST`] so that the sum cannot overflow.
pub(crate) fn later<I: Add<Duration, Output = I>>(now: I, pause: Duration) -> I {
    now + pause.min(LONGEST)
}

/// A point in time of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(Instant);

impl Moment {
    /// The current moment. Never goes back: the result lies between the start and the end of this
    /// call.
    pub(crate) fn now() -> Self {
        // Suspend time is read first, so that what passes between the two readings counts.
        let slept = slept();
        Self(Instant::now() + slept)
    }

    /// The time left until then; zero if it is past.
    pub(crate) fn left(self) -> Duration {
        self.0.saturating_duration_since(Self::now().0)
    }

    /// Waits until then. Cancel-safe.
    pub(crate) async fn reached(self) {
        self.reached_but(Duration::ZERO).await;
    }

    /// Waits until no more than `rest` is left until then. Cancel-safe.
    pub(crate) async fn reached_but(self, rest: Duration) {
        loop {
            let left = self.left().saturating_sub(rest);
            if left.is_zero() {
                return;
            }
            sleep(left.min(LOOK_EVERY)).await;
        }
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0 + duration)
    }
}

/// How long the machine has been suspended since this was called first.
#[cfg(all(target_os = "linux", not(test)))]
fn slept() -> Duration {
    use std::sync::OnceLock;

    use rustix::time::{ClockId, clock_gettime};

    static FIRST: OnceLock<[Duration; 2]> = OnceLock::new();
    // Boottime is read first: what passes between the two readings must not count as suspend time.
    let now = [ClockId::Boottime, ClockId::Monotonic].map(|id| {
        Duration::try_from(clock_gettime(id)).expect("invariant: these clocks begin at 0")
    });
    let first = *FIRST.get_or_init(|| now);
    let [all, awake] = [0, 1].map(|clock| now[clock].saturating_sub(first[clock]));
    all.saturating_sub(awake)
}

#[cfg(not(any(target_os = "linux", test)))]
fn slept() -> Duration {
    Duration::ZERO
}

#[cfg(test)]
pub(crate) use tests::sleep_through;
#[cfg(test)]
use tests::slept;

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tokio::time::timeout;

    use super::*;

    thread_local! {
        static SLEPT: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    }

    pub(super) fn slept() -> Duration {
        SLEPT.get()
    }

    /// Acts as if the machine had been suspended for this long, for this thread.
    pub(crate) fn sleep_through(night: Duration) {
        SLEPT.set(SLEPT.get() + night);
    }

    #[tokio::test]
    async fn a_moment_comes_while_the_machine_sleeps() {
        let hour = Duration::from_secs(3_600);
        let next = Moment::now() + hour;
        let mut waiting = tokio::spawn(next.reached());
        let early = timeout(LOOK_EVERY, &mut waiting).await;
        assert!(early.is_err() && !next.left().is_zero(), "it is far away");
        next.reached_but(hour).await;
        sleep_through(hour);
        assert!(next.left().is_zero());
        timeout(Duration::from_secs(60), waiting).await.expect("the clock is looked at").unwrap();
    }
}
