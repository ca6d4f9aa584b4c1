//! Runs work to its end even if the caller that awaits it goes.
//!
//! It runs inside the caller's future, and becomes a task only if that is dropped early.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// A future that is not cancelled when it is dropped: it then continues as a task, and its result
/// is discarded.
pub(super) struct Carried<T: 'static> {
    /// `None` once it is done.
    work: Option<Pin<Box<dyn Future<Output = T> + Send>>>,
    tasks: TaskTracker,
    /// Makes those who wait for the task tracker wait for this work, too.
    _under_way: TaskTrackerToken,
}

impl<T> Carried<T> {
    pub(super) fn new(work: impl Future<Output = T> + Send + 'static, tasks: &TaskTracker) -> Self {
        let (tasks, under_way) = (tasks.clone(), tasks.token());
        Self { work: Some(Box::pin(work)), tasks, _under_way: under_way }
    }
}

impl<T> Future for Carried<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<T> {
        let work = self.work.as_mut().expect("nothing is polled after its end");
        let outcome = ready!(work.as_mut().poll(task));
        self.work = None;
        Poll::Ready(outcome)
    }
}

impl<T> Drop for Carried<T> {
    fn drop(&mut self) {
        if let Some(work) = self.work.take() {
            self.tasks.spawn(async move { drop(work.await) });
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn work_is_a_task_only_if_nobody_waits_for_its_end() {
        let tasks = TaskTracker::new();
        assert_eq!(Carried::new(async { 7 }, &tasks).await, 7);
        assert!(tasks.is_empty());

        let (go, gone) = oneshot::channel::<()>();
        let (done, mut outcome) = oneshot::channel();
        let work = async move {
            gone.await.unwrap();
            done.send(8).unwrap();
        };
        let mut carried = Carried::new(work, &tasks);
        assert!((&mut carried).now_or_never().is_none(), "it waits");
        drop(carried);
        assert_eq!(tasks.len(), 1);
        go.send(()).unwrap();
        tasks.close();
        tasks.wait().await;
        assert_eq!(outcome.try_recv(), Ok(8));
    }
}
