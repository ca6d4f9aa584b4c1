//! Messages that are being received: how much memory those that are not complete take, and how long one takes.
//!
//! A message is put together before anybody sees it, as large as it says it is; of a caller who sends part of it and stops, on as many
//! streams as there may be, that would be all memory there is. So the parts of large messages share a room, and each message has
//! its time. Small ones, and streams on which nothing is said, are free.

use std::future::Future as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use http_body::Frame;
use tokio::time::{Instant, Sleep};
use tonic::Status;
use tower::BoxError;

/// What a message may have sent without a room.
const FREE_BYTES: usize = 16 << 10;
/// From the first byte of a message to its last.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(60);
/// A flag and the length.
const PREFIX_BYTES: usize = 5;

/// The room that messages share.
pub(crate) struct Room {
    bytes: AtomicU64,
    bytes_max: u64,
    refused: AtomicU64,
    timeout: Duration,
}

impl Room {
    /// For so many bytes.
    pub(crate) fn new(bytes_max: u64) -> Self {
        let (bytes, refused) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { bytes, bytes_max, refused, timeout: MESSAGE_TIMEOUT }
    }

    /// Bytes of large messages that are not complete.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Messages that were given up.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    fn refuse(&self, status: Status) -> BoxError {
        self.refused.fetch_add(1, Ordering::Relaxed);
        status.into()
    }
}

/// Where in a message its sender is.
#[derive(Default)]
struct Progress {
    prefix: [u8; PREFIX_BYTES],
    /// Bytes of the message, prefix included, that are here.
    here: usize,
}

impl Progress {
    /// Takes what came, which may end messages and begin others.
    fn take(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if let Some(space) = self.prefix.get_mut(self.here..) {
                let taken = space.len().min(bytes.len());
                space[..taken].copy_from_slice(&bytes[..taken]);
                bytes.advance(taken);
                self.here += taken;
            }
            if self.here >= PREFIX_BYTES {
                let mut length = &self.prefix[1..];
                let whole = PREFIX_BYTES.saturating_add(length.get_u32() as usize);
                let taken = (whole - self.here).min(bytes.len());
                bytes.advance(taken);
                self.here += taken;
                if self.here == whole {
                    self.here = 0;
                }
            }
        }
    }
}

/// The body of a call.
pub(super) struct Received<B> {
    body: B,
    room: Arc<Room>,
    progress: Progress,
    /// Of the room.
    taken: u64,
    /// When the message that is under way must be here.
    over: Option<Pin<Box<Sleep>>>,
}

impl<B> Received<B> {
    pub(super) fn new(body: B, room: Arc<Room>) -> Self {
        Self { body, room, progress: Progress::default(), taken: 0, over: None }
    }

    /// Notes what came; fails if there is no room for it.
    fn note(&mut self, bytes: &Bytes) -> Result<(), BoxError> {
        self.progress.take(bytes);
        let here = self.progress.here;
        if here <= bytes.len() {
            // It is another message than before.
            self.over = None;
        }
        let wanted = if here > FREE_BYTES { here as u64 } else { 0 };
        if wanted == self.taken {
            return Ok(());
        }
        if wanted < self.taken {
            self.room.bytes.fetch_sub(self.taken - wanted, Ordering::Relaxed);
            self.taken = wanted;
            return Ok(());
        }
        let more = wanted - self.taken;
        let all = self.room.bytes.fetch_add(more, Ordering::Relaxed) + more;
        self.taken = wanted;
        if all <= self.room.bytes_max {
            return Ok(());
        }
        let text = "conclave: too many large messages are being received; send fewer at a time";
        Err(self.room.refuse(Status::resource_exhausted(text)))
    }

    /// Whether the message that is under way has taken too long.
    fn is_late(&mut self, context: &mut Context<'_>) -> bool {
        if self.progress.here == 0 {
            return false;
        }
        let timeout = self.room.timeout;
        let until = || Box::pin(tokio::time::sleep_until(Instant::now() + timeout));
        self.over.get_or_insert_with(until).as_mut().poll(context).is_ready()
    }
}

impl<B> http_body::Body for Received<B>
where
    B: http_body::Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match Pin::new(&mut self.body).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => {
                let noted = frame.data_ref().map_or(Ok(()), |bytes| self.note(bytes));
                Poll::Ready(Some(noted.map(|()| frame)))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(error.into()))),
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending if self.is_late(context) => {
                let text = "conclave: the rest of a message did not come in time";
                let status = Status::deadline_exceeded(text);
                Poll::Ready(Some(Err(self.room.refuse(status))))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

impl<B> Drop for Received<B> {
    fn drop(&mut self) {
        if self.taken > 0 {
            self.room.bytes.fetch_sub(self.taken, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt as _, StreamExt as _, stream};
    use http_body_util::{BodyExt as _, StreamBody};
    use proptest::prelude::*;

    use super::*;

    type Frames = Vec<Result<Frame<Bytes>, BoxError>>;

    fn message(length: usize) -> Vec<u8> {
        let prefix = u32::try_from(length).unwrap().to_be_bytes();
        [&[0], &prefix[..], &vec![7; length]].concat()
    }

    fn frames(bytes: &[u8], size: usize) -> Frames {
        let frame = |part: &[u8]| Ok(Frame::data(Bytes::copy_from_slice(part)));
        bytes.chunks(size).map(frame).collect()
    }

    proptest! {
        #[test]
        fn a_message_is_followed_however_it_is_cut(
            lengths in prop::collection::vec(0..50_usize, 0..8),
            size in 1..40_usize,
        ) {
            let bytes: Vec<u8> = lengths.iter().flat_map(|length| message(*length)).collect();
            let mut progress = Progress::default();
            let mut ends = lengths.iter().scan(0, |end, length| {
                *end += PREFIX_BYTES + length;
                Some(*end)
            }).peekable();
            let (mut came, mut begun) = (0, 0);
            for part in bytes.chunks(size) {
                progress.take(part);
                came += part.len();
                while let Some(end) = ends.next_if(|end| *end <= came) {
                    begun = end;
                }
                prop_assert_eq!(progress.here, came - begun);
            }
        }
    }

    #[tokio::test]
    async fn parts_of_large_messages_share_a_room_and_leave_it() {
        let room = Arc::new(Room::new(50_000));
        let received = |bytes: &[u8]| {
            let more = stream::iter(frames(bytes, 10_000)).chain(stream::pending());
            Received::new(StreamBody::new(more), Arc::clone(&room))
        };
        let mut first = received(&message(60_000)[..40_000]);
        for _ in 0..4 {
            first.frame().await.unwrap().unwrap();
        }
        assert!(first.frame().now_or_never().is_none(), "the rest may come");
        assert_eq!(room.bytes(), 40_000);
        let mut second = received(&message(60_000)[..30_000]);
        second.frame().await.unwrap().unwrap();
        assert_eq!(room.bytes(), 40_000, "so much is free");
        let refusal = second.frame().await.unwrap().unwrap_err();
        let status = refusal.downcast_ref::<Status>().unwrap();
        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
        drop((first, second));
        assert_eq!((room.bytes(), room.refused()), (0, 1));
        let mut whole = received(&message(29_995));
        for expected in [0, 20_000, 0] {
            whole.frame().await.unwrap().unwrap();
            assert_eq!(room.bytes(), expected, "what is complete is not counted");
        }
    }

    #[tokio::test]
    async fn a_message_has_its_time_and_a_silent_stream_has_all() {
        let timeout = Duration::from_millis(10);
        let room = Arc::new(Room { timeout, ..Room::new(1_000) });
        let received = |bytes: &[u8]| {
            let more = stream::iter(frames(bytes, 10)).chain(stream::pending());
            Received::new(StreamBody::new(more), Arc::clone(&room))
        };
        let mut silent = received(&message(5));
        silent.frame().await.unwrap().unwrap();
        let mut slow = received(&message(5)[..9]);
        slow.frame().await.unwrap().unwrap();
        let late = slow.frame().await.unwrap().unwrap_err();
        let status = late.downcast_ref::<Status>().unwrap();
        assert_eq!(status.code(), tonic::Code::DeadlineExceeded);
        assert!(silent.frame().now_or_never().is_none(), "nothing is under way there");
    }
}
