//! Ends response streams that the client did not end: the node stops, or there is no leader and the
//! client asked (`hasleader: true`) to be told.

use std::pin::Pin;

use futures::stream::{Stream, StreamExt as _};
use tonic::Status;

use super::context::Context;
use crate::status::Fault;

/// A response stream.
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Ends `answers` with a status when the node stops, or when the leader has been gone for too long
/// and `must_have_leader` is set.
pub(crate) fn guard<T: Send + 'static>(
    context: &Context,
    answers: Answers<T>,
    must_have_leader: bool,
) -> Answers<T> {
    let end = reason_to_end(context.clone(), must_have_leader);
    let mut end = Box::pin(futures::stream::once(async move { Err(end.await.into()) }));
    let mut answers = answers;
    let mut is_over = false;
    Box::pin(futures::stream::poll_fn(move |task| {
        if is_over {
            return std::task::Poll::Ready(None);
        }
        if let std::task::Poll::Ready(reason) = end.poll_next_unpin(task) {
            is_over = true;
            return std::task::Poll::Ready(reason);
        }
        answers.poll_next_unpin(task)
    }))
}

/// Waits until a stream has to end. Cancel-safe.
pub(crate) async fn reason_to_end(context: Context, must_have_leader: bool) -> Fault {
    let stopping = context.node.stopping();
    if !must_have_leader {
        stopping.cancelled().await;
        return Fault::Stopped;
    }
    tokio::select! {
        () = stopping.cancelled() => Fault::Stopped,
        () = leader_is_gone(&context) => Fault::NoLeader,
    }
}

/// Waits until there has been no leader for too long. The hub watches for that once for all
/// streams.
async fn leader_is_gone(context: &Context) {
    let mut leaderless = context.node.watch().leaderless();
    if leaderless.wait_for(|is_gone| *is_gone).await.is_err() {
        // The hub was dropped with the node; the node reports that it stops by itself.
        std::future::pending::<()>().await;
    }
}
