//! Counts the memory of large answers until they are sent.
//!
//! A connection accepts a whole answer at once, however slowly its client reads. These answers are
//! handed out in parts, as the connection has space for them. If a client accepts nothing for two
//! minutes, the rest is dropped and the call fails: otherwise a client that stops reading could
//! keep the memory that is meant for all long reads.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body::{Body as _, Frame};
use parking_lot::Mutex;
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;
use tonic::body::Body;

use crate::api::long_read::Held;

/// Largest part handed out at once.
const PART_BYTES_MAX: usize = 32 << 10;
/// How long a client may accept no part.
const STALL_TIMEOUT: Duration = Duration::from_secs(120);

/// Keeps the memory of this answer counted until its last byte is sent.
pub(super) fn hold(mut response: Response<Body>) -> Response<Body> {
    let Some(held) = response.extensions_mut().remove::<Arc<Held>>() else { return response };
    response.map(|body| Body::new(HeldBody::new(body, held, STALL_TIMEOUT)))
}

/// The part of an answer that is not handed out yet.
struct Rest {
    body: Body,
    bytes: Bytes,
    held: Arc<Held>,
}

/// A response body whose memory is counted.
struct HeldBody {
    /// `None` once no part was accepted for too long.
    rest: Arc<Mutex<Option<Rest>>>,
    has_moved: Arc<AtomicBool>,
    _watch: AbortOnDropHandle<()>,
}

impl HeldBody {
    fn new(body: Body, held: Arc<Held>, stall: Duration) -> Self {
        let rest = Arc::new(Mutex::new(Some(Rest { body, bytes: Bytes::new(), held })));
        let has_moved = Arc::new(AtomicBool::new(true));
        let watch = tokio::spawn(watch(Arc::clone(&rest), Arc::clone(&has_moved), stall));
        Self { rest, has_moved, _watch: AbortOnDropHandle::new(watch) }
    }
}

/// Drops the rest when no part of it was accepted for `stall`.
async fn watch(rest: Arc<Mutex<Option<Rest>>>, has_moved: Arc<AtomicBool>, stall: Duration) {
    while has_moved.swap(false, Ordering::Relaxed) {
        tokio::time::sleep(stall).await;
    }
    // The connection may keep one last part for as long as it is open; that is small.
    if let Some(rest) = rest.lock().take() {
        rest.held.release();
    }
}

impl Rest {
    fn poll_part(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        while self.bytes.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) => self.bytes = bytes,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                end => return Poll::Ready(end),
            }
        }
        let bytes = self.bytes.split_to(self.bytes.len().min(PART_BYTES_MAX));
        let part = Part { bytes, _held: Arc::clone(&self.held) };
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_owner(part)))))
    }
}

impl http_body::Body for HeldBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.has_moved.store(true, Ordering::Relaxed);
        match &mut *self.rest.lock() {
            Some(rest) => rest.poll_part(context),
            None => {
                let text = "conclave: the client took nothing of the answer for too long";
                Poll::Ready(Some(Err(Status::deadline_exceeded(text))))
            }
        }
    }
}

/// A part of an answer that waits to be sent.
struct Part {
    bytes: Bytes,
    _held: Arc<Held>,
}

impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use conclave_state_machine::response::KeyValue;
    use http_body_util::{BodyExt as _, Full};

    use super::*;
    use crate::api::long_read::LongReads;

    const BYTES: usize = 3 * PART_BYTES_MAX + 1;

    async fn body(reads: &LongReads, stall: Duration) -> HeldBody {
        let mut read = reads.begin().await.unwrap();
        let found = KeyValue { value: vec![7; BYTES].into(), ..KeyValue::default() };
        read.grow([&found]).unwrap();
        let held = Arc::new(read.end());
        let bytes = Bytes::from(vec![7; BYTES]);
        HeldBody::new(Body::new(Full::new(bytes)), held, stall)
    }

    #[tokio::test]
    async fn an_answer_goes_out_in_parts_and_whole() {
        let reads = LongReads::new(u64::MAX);
        let mut body = body(&reads, STALL_TIMEOUT).await;
        let mut parts = Vec::new();
        while let Some(frame) = body.frame().await {
            parts.push(frame.unwrap().into_data().unwrap());
        }
        let lengths: Vec<_> = parts.iter().map(Bytes::len).collect();
        assert_eq!(lengths, [PART_BYTES_MAX, PART_BYTES_MAX, PART_BYTES_MAX, 1]);
        assert!(parts.concat().iter().all(|byte| *byte == 7));
        let held = body.rest.lock().as_ref().map(|rest| Arc::clone(&rest.held)).unwrap();
        drop(body);
        // The watch task ends when the runtime gets to it; the waiting parts stay counted.
        while Arc::strong_count(&held) > 1 + parts.len() {
            tokio::task::yield_now().await;
        }
        assert_eq!(Arc::strong_count(&held), 1 + parts.len());
    }

    #[tokio::test]
    async fn what_nobody_takes_is_dropped() {
        let reads = LongReads::new(u64::MAX);
        let mut body = body(&reads, Duration::from_millis(20)).await;
        let part = body.frame().await.unwrap().unwrap();
        assert!(reads.bytes() > BYTES as u64);
        while body.rest.lock().is_some() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(reads.bytes(), 0, "though the connection has a part of it");
        drop(part);
        let end = body.frame().await.unwrap().unwrap_err();
        assert_eq!(end.code(), tonic::Code::DeadlineExceeded);
    }
}
