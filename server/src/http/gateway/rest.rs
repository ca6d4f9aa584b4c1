//! Reads and discards, within limits, what is left of a body when its request is answered. A client
//! that sends everything before it reads would otherwise only see that its connection broke.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

/// Most bytes discarded; a body with more ends the connection.
const BYTES_MAX: usize = 128 * 1024 * 1024;
/// Longest time spent on it.
const TIME_MAX: Duration = Duration::from_secs(30);

/// A body whose rest is read in the background when it is dropped.
pub(in crate::http) struct Rest {
    /// `None` once dropped.
    body: Option<Incoming>,
    background: TaskTracker,
}

impl Rest {
    /// Wraps a body; on drop, `background` reads what is left of it.
    pub(in crate::http) fn new(body: Incoming, background: TaskTracker) -> Self {
        Self { body: Some(body), background }
    }
}

impl Body for Rest {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(task),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(Body::size_hint).unwrap_or_default()
    }
}

impl Drop for Rest {
    fn drop(&mut self) {
        let Some(body) = self.body.take().filter(|body| !body.is_end_stream()) else { return };
        if let Ok(runtime) = Handle::try_current() {
            let rest = tokio::time::timeout(TIME_MAX, discard(body, BYTES_MAX));
            self.background.spawn_on(rest, &runtime);
        }
    }
}

/// Reads a body to its end, or up to `bytes_max` bytes.
async fn discard<B: Body<Data = Bytes> + Unpin>(mut body: B, bytes_max: usize) {
    let mut bytes = 0;
    while bytes < bytes_max
        && let Some(Ok(frame)) = body.frame().await
    {
        bytes += frame.data_ref().map_or(0, Bytes::len);
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::{FutureExt as _, StreamExt as _, stream};
    use http_body_util::StreamBody;

    use super::*;

    #[test]
    fn no_more_is_read_than_may_be() {
        for (pieces, expected) in [(3, 3), (100, 5)] {
            let read = AtomicUsize::new(0);
            let body = stream::iter(0..pieces).map(|_| {
                read.fetch_add(1, Ordering::Relaxed);
                Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"ten bytes.")))
            });
            discard(StreamBody::new(body), 41).now_or_never().unwrap();
            assert_eq!(read.load(Ordering::Relaxed), expected, "of {pieces}");
        }
    }
}
