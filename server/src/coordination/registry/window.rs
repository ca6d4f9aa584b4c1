//! What one watcher takes from the steps of a feed: while a large service changes, those of some time together.
//!
//! Time is cut into windows, the same for all watchers of a feed with windows of this length. After a quiet
//! time a step is taken at once; while steps go on, those of one window are taken as one when it is over. So
//! one change is told without delay, many cost no more than a message for each window, and who
//! takes the same steps shares them as one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use conclave_state_machine::registry::coalesce::coalesce;
use parking_lot::Mutex;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::time::timeout_at;
use tonic::Status;

use super::feed::Step;
use super::ring::Told;

/// With so many instances a service is large: its watchers have a window if they do not say otherwise.
pub(super) const LARGE: usize = 50;
/// The window of a large service.
const WINDOW: Duration = Duration::from_millis(100);
/// The longest window that a watcher may ask for.
const WINDOW_MAX: Duration = Duration::from_secs(10);
/// Steps that are taken as one, also if the window is not over. Until then none of them is kept for this.
const GATHERED_MAX: usize = 256;
/// About bytes of steps that are taken as one, as above.
const GATHERED_BYTES_MAX: usize = 1 << 20;

/// How long a watcher lets steps gather.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window(Option<Duration>);

impl Window {
    /// What a request says in milliseconds: 0 for each step by itself, nothing for what fits the service.
    ///
    /// # Errors
    /// Longer than is allowed.
    pub(super) fn asked(ms: Option<u32>) -> Result<Self, Status> {
        let window = ms.map(|ms| Duration::from_millis(ms.into()));
        if window.is_some_and(|window| window > WINDOW_MAX) {
            return Err(Status::invalid_argument("conclave: changes gather for 10 s at most"));
        }
        Ok(Self(window))
    }

    fn length(self, first: &Told) -> Duration {
        self.0.unwrap_or(if first.is_large { WINDOW } else { Duration::ZERO })
    }
}

/// Why there is no next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Steps were missed.
    Behind,
    /// The feed is over.
    Closed,
}

/// The steps in a row that were taken as one last, by their first and last revision: for all others who take
/// the same. Of about the bytes that are gathered at most.
pub(super) type Merged = Mutex<Option<((i64, i64), Arc<Step>)>>;

/// Where one watcher takes steps from.
pub(super) struct Steps {
    pub(super) told: broadcast::Receiver<Arc<Told>>,
    merged: Arc<Merged>,
    /// From when on times are counted.
    begun: Instant,
    /// The first of the next window.
    ahead: Option<Arc<Told>>,
    /// When the last step that was taken was told.
    last: Option<Duration>,
}

impl Steps {
    pub(super) fn new(
        told: broadcast::Receiver<Arc<Told>>,
        merged: Arc<Merged>,
        begun: Instant,
    ) -> Self {
        Self { told, merged, begun, ahead: None, last: None }
    }

    /// Waits for what comes after revision `known`: a step, or several as one. Not cancel-safe.
    pub(super) async fn next(&mut self, known: i64, window: Window) -> Result<Arc<Step>, End> {
        loop {
            let first = match self.ahead.take() {
                Some(first) => first,
                None => self.told.recv().await.map_err(|error| match error {
                    RecvError::Lagged(_) => End::Behind,
                    RecvError::Closed => End::Closed,
                })?,
            };
            let step = first.step().ok_or(End::Behind)?;
            if step.revision <= known {
                continue;
            }
            let length = window.length(&first);
            let last = self.last.replace(first.at);
            if length.is_zero() || is_quiet(last, first.at, length) {
                return Ok(step);
            }
            drop(step);
            return self.gather(first, length).await;
        }
    }

    /// Takes the rest of a window. What is gathered meanwhile stays the ring's, which bounds it.
    async fn gather(&mut self, first: Arc<Told>, length: Duration) -> Result<Arc<Step>, End> {
        let end = end_of(first.at, length);
        let over = (self.begun + end).into();
        let mut bytes = first.bytes;
        let mut gathered = vec![first];
        while gathered.len() < GATHERED_MAX && bytes < GATHERED_BYTES_MAX {
            match timeout_at(over, self.told.recv()).await {
                Ok(Ok(next)) if next.at >= end => {
                    self.ahead = Some(next);
                    break;
                }
                Ok(Ok(next)) => {
                    bytes += next.bytes;
                    self.last = Some(next.at);
                    gathered.push(next);
                }
                Ok(Err(RecvError::Lagged(_))) => return Err(End::Behind),
                // Who asks for the next step hears of the end.
                Ok(Err(RecvError::Closed)) | Err(_) => break,
            }
        }
        let steps: Option<Vec<_>> = gathered.iter().map(|told| told.step()).collect();
        Ok(self.merge(&steps.ok_or(End::Behind)?))
    }

    /// Steps in a row as one.
    fn merge(&self, steps: &[Arc<Step>]) -> Arc<Step> {
        let [first, .., last] = steps else { return Arc::clone(&steps[0]) };
        let span = (first.revision, last.revision);
        // Whoever comes meanwhile waits for what is the same for all.
        let mut merged = self.merged.lock();
        if let Some((known, step)) = &*merged
            && *known == span
        {
            return Arc::clone(step);
        }
        let changes = coalesce(steps.iter().map(|step| step.changes.as_slice()));
        let step = Arc::new(Step::new(last.revision, changes));
        *merged = Some((span, Arc::clone(&step)));
        step
    }
}

/// The end of the window that `at` is in.
fn end_of(at: Duration, length: Duration) -> Duration {
    let length_ms = length.as_millis();
    let end_ms = (at.as_millis() / length_ms + 1) * length_ms;
    Duration::from_millis(u64::try_from(end_ms).unwrap_or(u64::MAX))
}

/// Whether a whole window has passed without a step.
fn is_quiet(last: Option<Duration>, at: Duration, length: Duration) -> bool {
    last.is_none_or(|last| end_of(last, length).saturating_add(length) <= at)
}

#[cfg(test)]
mod tests {
    use conclave_state_machine::registry::coalesce::Change;
    use conclave_state_machine::registry::record::Record;
    use conclave_state_machine::registry::view::{Delta, Shown};
    use conclave_state_machine::response::Cause;
    use futures::FutureExt as _;
    use tokio::time::timeout;

    use super::super::ring::Ring;
    use super::*;

    const SECOND: Window = Window(Some(Duration::from_secs(1)));

    fn shown(revision: i64) -> Option<Arc<Shown>> {
        let (record, fence, session) = (Record::new("h:1"), revision, 1);
        let value = record.encode().into();
        Some(Arc::new(Shown { record, value, fence, mod_revision: revision, session }))
    }

    /// The instance as of the revision before, and this one; it goes with a cause.
    fn step(revision: i64, cause: Option<Cause>) -> Arc<Step> {
        let after = if cause.is_some() { None } else { shown(revision) };
        let delta = Delta { id: "a".to_owned(), before: shown(revision - 1), after };
        Arc::new(Step::new(revision, vec![Change { delta, cause }]))
    }

    /// A ring that began long ago, so that no window is still open.
    fn ring() -> Ring {
        Ring::new(Instant::now() - Duration::from_secs(60))
    }

    fn send(ring: &mut Ring, at_ms: u64, revision: i64) {
        ring.send_at(Duration::from_millis(at_ms), step(revision, None), true);
    }

    async fn revisions(steps: &mut Steps, window: Window, until: i64) -> Vec<i64> {
        let mut found = Vec::new();
        while found.last() != Some(&until) {
            found.push(steps.next(0, window).await.unwrap().revision);
        }
        found
    }

    #[tokio::test]
    async fn after_a_quiet_time_steps_are_taken_at_once_and_else_by_windows() {
        let mut ring = ring();
        let [mut each, mut seconds, mut default, mut small] =
            std::array::from_fn(|_| ring.subscribe());
        let told = [5_000, 5_010, 5_020, 5_900, 6_020, 6_990, 7_000, 9_100, 9_200];
        for (revision, at_ms) in (1..).zip(told) {
            send(&mut ring, at_ms, revision);
        }
        assert_eq!(revisions(&mut each, Window(Some(Duration::ZERO)), 9).await.len(), 9);
        assert_eq!(revisions(&mut seconds, SECOND, 9).await, [1, 4, 6, 7, 8, 9]);
        let tenths = revisions(&mut default, Window(None), 9).await;
        assert_eq!(tenths, [1, 3, 4, 5, 6, 7, 8, 9], "the service is large");
        for (revision, at_ms) in [(10, 20_000), (11, 20_001), (12, 20_002)] {
            ring.send_at(Duration::from_millis(at_ms), step(revision, None), false);
        }
        let rest = revisions(&mut small, Window(None), 12).await;
        assert_eq!(rest[rest.len() - 3..], [10, 11, 12], "it is not any more");
    }

    #[tokio::test]
    async fn steps_in_a_row_are_one_and_shared() {
        let mut ring = ring();
        let [mut one, mut other] = std::array::from_fn(|_| ring.subscribe());
        for (at_ms, revision) in [(1_000, 1), (1_100, 2), (1_200, 3)] {
            send(&mut ring, at_ms, revision);
        }
        ring.send_at(Duration::from_millis(1_300), step(4, Some(Cause::Admin)), true);
        let known = one.next(0, SECOND).await.unwrap();
        assert_eq!((known.revision, known.changes.len()), (1, 1));
        let merged = one.next(1, SECOND).await.unwrap();
        let [Change { delta, cause }] = merged.changes.as_slice() else { panic!("{merged:?}") };
        assert_eq!((merged.revision, *cause), (4, Some(Cause::Admin)));
        assert_eq!((&delta.before, &delta.after), (&shown(1), &None));
        other.next(0, SECOND).await.unwrap();
        assert!(Arc::ptr_eq(&merged, &other.next(1, SECOND).await.unwrap()));
    }

    #[tokio::test]
    async fn a_window_that_is_open_is_waited_for_unless_it_is_full() {
        let mut ring = Ring::new(Instant::now());
        let hours = Window(Some(Duration::from_secs(36_000)));
        let mut steps = ring.subscribe();
        ring.send(step(1, None), true);
        assert_eq!(steps.next(0, hours).await.unwrap().revision, 1);
        ring.send(step(2, None), true);
        assert!(Box::pin(steps.next(1, hours)).now_or_never().is_none(), "there may be more");
        let most = i64::try_from(GATHERED_MAX).unwrap();
        (3..=most + 2).for_each(|revision| ring.send(step(revision, None), true));
        let full = timeout(Duration::from_secs(60), steps.next(1, hours)).await;
        let full = full.expect("it is full").unwrap();
        assert_eq!(full.revision, most + 2);
    }

    #[tokio::test]
    async fn who_misses_steps_hears_so() {
        let mut ring = ring();
        let mut steps = ring.subscribe();
        (1..3_000).for_each(|revision| send(&mut ring, 1_000, revision));
        assert_eq!(steps.next(0, SECOND).await.unwrap_err(), End::Behind);
        drop(ring);
        while !matches!(steps.next(0, SECOND).await, Err(End::Closed)) {}
    }

    #[test]
    fn windows_have_a_length() {
        assert!(Window::asked(Some(10_000)).is_ok() && Window::asked(Some(10_001)).is_err());
        let ms = Duration::from_millis;
        assert_eq!(
            [0, 99, 100, 250].map(|at| end_of(ms(at), ms(100)).as_millis()),
            [100, 100, 200, 300]
        );
        assert!(
            !is_quiet(Some(ms(50)), ms(199), ms(100)) && is_quiet(Some(ms(50)), ms(200), ms(100))
        );
        assert!(is_quiet(None, ms(0), ms(100)));
    }
}
