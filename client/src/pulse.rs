//! Whether the session or lease of a guard is still alive: the one place that decides whether work
//! that needs it may go on.
//!
//! A process that was stopped (SIGSTOP, a stalled machine) may resume with any of its tasks, so the
//! work may run before the task that would report the loss. Therefore the clock is read before each
//! poll of the work.

use std::{
    fmt,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::{error::Error, moment::Moment, session::Heart};

/// Tells whether a session or lease is alive.
#[derive(Clone)]
pub(crate) struct Pulse {
    lost: CancellationToken,
    clock: Clock,
}

/// Where the time until which it is certainly alive is kept.
#[derive(Clone)]
enum Clock {
    Session(Arc<Heart>, i64),
    Lease(Arc<Mutex<Moment>>),
}

impl Pulse {
    pub(crate) fn of_session(lost: CancellationToken, heart: Arc<Heart>, id: i64) -> Self {
        Self { lost, clock: Clock::Session(heart, id) }
    }

    /// A pulse for a lease that ends at `deadline` at the earliest.
    pub(crate) fn of_lease(lost: CancellationToken, deadline: Arc<Mutex<Moment>>) -> Self {
        Self { lost, clock: Clock::Lease(deadline) }
    }

    /// A pulse for something that depends on this one but can also be lost by itself.
    pub(crate) fn child(&self) -> Self {
        Self { lost: self.lost.child_token(), clock: self.clock.clone() }
    }

    /// Cancelled when the loss is noticed.
    pub(crate) fn lost(&self) -> &CancellationToken {
        &self.lost
    }

    /// Whether it may have ended, by the clock at this moment.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.is_cancelled()
            || match &self.clock {
                Clock::Session(heart, id) => !heart.is_alive(*id),
                Clock::Lease(deadline) => Moment::now() >= *deadline.lock(),
            }
    }

    /// Runs `work` until it ends or this is lost. Takes it pinned, so that it is not stored twice.
    pub(crate) async fn run<T>(&self, work: Pin<&mut impl Future<Output = T>>) -> Result<T, Error> {
        run_while(&self.lost, || self.is_lost().then(Error::session_lost), work).await
    }
}

impl fmt::Debug for Pulse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pulse").field("is_lost", &self.is_lost()).finish_non_exhaustive()
    }
}

/// Runs `work` until it ends or `loss` returns a reason; `lost` only wakes it for that. `work` is
/// not polled after a loss.
pub(crate) async fn run_while<T>(
    lost: &CancellationToken,
    loss: impl Fn() -> Option<Error>,
    mut work: Pin<&mut impl Future<Output = T>>,
) -> Result<T, Error> {
    let mut cancelled = pin!(lost.cancelled());
    poll_fn(|context| {
        let is_cancelled = cancelled.as_mut().poll(context).is_ready();
        match loss().or_else(|| is_cancelled.then(Error::session_lost)) {
            Some(loss) => Poll::Ready(Err(loss)),
            None => work.as_mut().poll(context).map(Ok),
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, time::Duration};

    use futures::poll;

    use super::*;
    use crate::moment::sleep_through;

    const TTL: Duration = Duration::from_secs(600);

    fn lease() -> Pulse {
        Pulse::of_lease(CancellationToken::new(), Arc::new(Mutex::new(Moment::now() + TTL)))
    }

    #[tokio::test]
    async fn no_step_begins_after_a_stop_that_nobody_has_noticed_yet() {
        let (pulse, steps) = (lease(), Cell::new(0));
        let work = poll_fn(|_| {
            steps.set(steps.get() + 1);
            Poll::<()>::Pending
        });
        let work = pin!(work);
        let mut running = pin!(pulse.run(work));
        assert!(poll!(&mut running).is_pending());
        assert!(poll!(&mut running).is_pending());
        sleep_through(TTL);
        assert!(!pulse.lost().is_cancelled(), "nobody has noticed");
        let ended = poll!(&mut running);
        assert!(matches!(ended, Poll::Ready(Err(Error::Lost { .. }))), "{ended:?}");
        assert_eq!(steps.get(), 2);
    }

    #[tokio::test]
    async fn work_ends_with_its_result_or_with_the_loss_that_is_told() {
        let pulse = lease();
        assert_eq!(pulse.run(pin!(async { 7 })).await.unwrap(), 7);
        let lost = pulse.lost().clone();
        let loss = || lost.is_cancelled().then_some(Error::lost("a test"));
        let work = async {
            lost.cancel();
            std::future::pending::<()>().await;
        };
        let error = run_while(&lost, loss, pin!(work)).await.unwrap_err();
        assert_eq!(error.to_string(), "lost: a test");
        let unknown = run_while(&lost, || None, pin!(async {})).await.unwrap_err();
        assert!(matches!(unknown, Error::Lost { .. }), "{unknown}");
        let error = pulse.run(pin!(async { unreachable!("it is lost") })).await.unwrap_err();
        assert!(matches!(error, Error::Lost { .. }), "{error}");
    }
}
