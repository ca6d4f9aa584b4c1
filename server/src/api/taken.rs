//! Ends response streams that hold shared resources if their client stops reading.
//!
//! A response stream is polled only when the client has taken what was sent, so while the client
//! stands still the stream cannot even end itself. Here a task polls the source instead.

use std::pin::pin;
use std::time::Duration;

use futures::future::{Either, select};
use futures::stream::{Stream, StreamExt as _};
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio_util::task::TaskTracker;
use tonic::Status;

use crate::metrics::Answers;
use crate::status;

/// Answers buffered until the client takes them.
const WAITING_MAX: usize = 4;

/// An item on its way to the client; `None` is the end of the stream.
type Handed<T> = Option<Result<T, Status>>;

/// Yields the items of `source`, polled by a task. If the client takes nothing for `patience`,
/// `source` is dropped, and the client finds an error after the items that are buffered.
pub(crate) fn patiently<T: Send + 'static>(
    source: impl Stream<Item = Result<T, Status>> + Send + 'static,
    patience: Duration,
    background: &TaskTracker,
) -> Answers<T> {
    let (handing, handed) = mpsc::channel(WAITING_MAX);
    background.spawn(hand(source, patience, handing));
    Box::pin(futures::stream::unfold(Some(handed), receive))
}

async fn hand<T: Send + 'static>(
    source: impl Stream<Item = Result<T, Status>> + Send + 'static,
    patience: Duration,
    handing: Sender<Handed<T>>,
) {
    let mut source = pin!(source);
    loop {
        let place = match tokio::time::timeout(patience, handing.reserve()).await {
            Ok(Ok(place)) => place,
            Ok(Err(_client_is_gone)) => return,
            Err(_elapsed) => {
                tracing::warn!(?patience, "a client takes nothing of its answers: they end");
                return;
            }
        };
        let gone = pin!(handing.closed());
        let Either::Left((answer, _)) = select(source.next(), gone).await else { return };
        let is_over = !matches!(answer, Some(Ok(_)));
        place.send(answer);
        if is_over {
            return;
        }
    }
}

async fn receive<T>(
    handed: Option<Receiver<Handed<T>>>,
) -> Option<(Result<T, Status>, Option<Receiver<Handed<T>>>)> {
    let mut handed = handed?;
    match handed.recv().await {
        Some(Some(Ok(answer))) => Some((Ok(answer), Some(handed))),
        Some(Some(Err(status))) => Some((Err(status), None)),
        Some(None) => None,
        None => Some((Err(status::not_taken()), None)),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::stream;
    use tonic::Code;

    use super::*;

    /// Longer than any test runs.
    const PATIENT: Duration = Duration::from_secs(3600);
    const IMPATIENT: Duration = Duration::from_millis(20);

    /// Numbers from 0 on; keeps `held` alive as long as the stream.
    fn numbers(held: Arc<()>) -> impl Stream<Item = Result<u32, Status>> + Send {
        stream::iter(0..).map(move |n| {
            let _held = &held;
            Ok(n)
        })
    }

    #[tokio::test]
    async fn everything_is_handed_on_in_order_to_its_end() {
        let background = TaskTracker::new();
        let all = patiently(numbers(Arc::default()).take(100), PATIENT, &background);
        let taken: Vec<u32> = all.map(Result::unwrap).collect().await;
        assert_eq!(taken, (0..100).collect::<Vec<_>>());

        let source = numbers(Arc::default()).take(2).chain(stream::iter([Err(status::halted())]));
        let taken: Vec<_> = patiently(source, PATIENT, &background).collect().await;
        assert_eq!(taken.len(), 3);
        assert_eq!(taken[2].as_ref().unwrap_err().code(), status::halted().code());
    }

    #[tokio::test]
    async fn what_nobody_takes_is_let_go() {
        let (background, held) = (TaskTracker::new(), Arc::new(()));
        let answers = patiently(numbers(Arc::clone(&held)), IMPATIENT, &background);
        background.close();
        background.wait().await;
        assert_eq!(Arc::strong_count(&held), 1, "the source is gone");
        let taken: Vec<_> = answers.collect().await;
        let (last, before) = taken.split_last().unwrap();
        assert!(before.iter().all(Result::is_ok) && before.len() == WAITING_MAX);
        assert_eq!(last.as_ref().unwrap_err().code(), Code::DeadlineExceeded);
    }

    #[tokio::test]
    async fn a_client_that_goes_ends_its_source() {
        let (background, held) = (TaskTracker::new(), Arc::new(()));
        let mut answers = patiently(numbers(Arc::clone(&held)), PATIENT, &background);
        answers.next().await.unwrap().unwrap();
        drop(answers);
        let waiting = stream::pending::<Result<u32, Status>>();
        drop(patiently(waiting, PATIENT, &background));
        background.close();
        background.wait().await;
        assert_eq!(Arc::strong_count(&held), 1, "the source is gone");
    }
}
