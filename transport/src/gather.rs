//! Combines what a connection writes in one go into one system call.
//!
//! When a batch is applied, the answers of all its callers become ready together, every watcher
//! gets its events, and callers that get their answers together send new requests together. Tokio
//! runs a connection right after the first task that woke it, and h2 writes and flushes every frame
//! separately: each answer and each 16 KiB of events would cost a system call and a TCP segment. A
//! [`Gather`] therefore holds back what is written, lets all ready tasks run once, and writes when
//! the connection is polled again. With nothing else to run this costs one more poll and no delay.
//!
//! HTTP/1.1 gathers by itself, has one answer at a time, and may hand over its connection once that
//! is written, so writes to its clients are not held back.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Most bytes held back; also the most memory that a peer which does not read costs here.
const HELD_BYTES_MAX: usize = 64 * 1024;
/// How an HTTP/2 connection begins.
const PREFACE: &[u8] = b"PRI * HTTP/2.0";
/// Buffer capacity that an idle connection keeps; there may be many connections.
const KEPT_BYTES_MAX: usize = 4 * 1024;

/// A byte stream below an HTTP/2 connection that gathers its writes.
#[derive(Debug)]
pub struct Gather<S> {
    stream: S,
    held: Vec<u8>,
    /// Number of held bytes that the stream has accepted.
    taken: usize,
    /// Whether bytes were added since the last flush.
    is_fresh: bool,
    /// Whether the connection has been polled again since the first byte was held.
    is_due: bool,
    mode: Mode,
}

/// Whether writes are held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Held back.
    Holds,
    /// Decided when the first bytes from the client show its protocol.
    Undecided,
    /// Passed through.
    Passes,
}

impl<S> Gather<S> {
    /// For a peer that is known to speak HTTP/2.
    pub fn new(stream: S) -> Self {
        let mode = Mode::Holds;
        Self { stream, held: Vec::new(), taken: 0, is_fresh: false, is_due: false, mode }
    }

    /// For a client that may speak HTTP/1.1 or HTTP/2.
    pub fn serving(stream: S) -> Self {
        Self { mode: Mode::Undecided, ..Self::new(stream) }
    }

    /// Decides by the client's first bytes.
    fn decide(&mut self, read: &[u8]) {
        if !read.is_empty() {
            let is_http2 = read.iter().zip(PREFACE).all(|(read, byte)| read == byte);
            self.mode = if is_http2 { Mode::Holds } else { Mode::Passes };
        }
    }

    /// Holds the bytes of `slices` and wakes the connection to be polled once more.
    fn hold(&mut self, slices: &[IoSlice<'_>], task: &Context<'_>) {
        if self.held.is_empty() {
            self.is_due = false;
            task.waker().wake_by_ref();
        }
        self.is_fresh = true;
        let needed = self.held.len() + slices.iter().map(|slice| slice.len()).sum::<usize>();
        if needed > self.held.capacity() {
            // Growing step by step would copy the held bytes repeatedly.
            let room = if needed > KEPT_BYTES_MAX { HELD_BYTES_MAX } else { KEPT_BYTES_MAX };
            self.held.reserve_exact(room - self.held.len());
        }
        for slice in slices {
            self.held.extend_from_slice(slice);
        }
    }
}

impl<S: AsyncWrite + Unpin> Gather<S> {
    /// Writes all held bytes.
    fn poll_drain(&mut self, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.taken < self.held.len() {
            let rest = &self.held[self.taken..];
            match ready!(Pin::new(&mut self.stream).poll_write(task, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                taken => self.taken += taken,
            }
        }
        self.taken = 0;
        self.held.clear();
        if self.held.capacity() > KEPT_BYTES_MAX {
            self.held = Vec::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Gather<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // A connection reads first whenever it is polled.
        self.is_due = true;
        if let Poll::Ready(Err(error)) = self.poll_drain(task) {
            return Poll::Ready(Err(error));
        }
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(task, buffer);
        if self.mode == Mode::Undecided {
            self.decide(&buffer.filled()[before..]);
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gather<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        task: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(task, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.mode == Mode::Passes {
            return Pin::new(&mut self.stream).poll_write_vectored(task, slices);
        }
        let bytes = slices.iter().map(|slice| slice.len()).sum();
        if self.held.len().saturating_add(bytes) > HELD_BYTES_MAX {
            ready!(self.poll_drain(task))?;
            if bytes > HELD_BYTES_MAX {
                return Pin::new(&mut self.stream).poll_write_vectored(task, slices);
            }
        }
        self.hold(slices, task);
        Poll::Ready(Ok(bytes))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Not after every frame: only when a flush follows without new bytes, or when the
        // connection is polled again, as it was woken to be.
        if std::mem::take(&mut self.is_fresh) && !self.is_due && !self.held.is_empty() {
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_drain(task))?;
        Pin::new(&mut self.stream).poll_flush(task)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(task))?;
        Pin::new(&mut self.stream).poll_shutdown(task)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    use super::*;

    /// Polls once like a connection: reads first, then writes, each write with a flush.
    async fn turn(near: &mut Gather<DuplexStream>, writes: &[&[u8]]) {
        poll_fn(|task| {
            let mut room = [0; 16];
            let mut input = ReadBuf::new(&mut room);
            assert!(Pin::new(&mut *near).poll_read(task, &mut input).is_pending());
            for bytes in writes {
                let written = Pin::new(&mut *near).poll_write(task, bytes);
                assert!(matches!(written, Poll::Ready(Ok(n)) if n == bytes.len()));
                assert!(Pin::new(&mut *near).poll_flush(task).is_ready());
            }
            Poll::Ready(())
        })
        .await;
    }

    async fn arrived(far: &mut DuplexStream) -> usize {
        let mut room = vec![0; 2 * HELD_BYTES_MAX];
        let read = poll_fn(|task| {
            let mut bytes = ReadBuf::new(&mut room);
            let read = Pin::new(&mut *far).poll_read(task, &mut bytes);
            assert!(!matches!(read, Poll::Ready(Err(_))));
            Poll::Ready(bytes.filled().len())
        });
        read.await
    }

    #[tokio::test]
    async fn writes_of_one_turn_leave_together_in_the_next() {
        let (near, mut far) = duplex(4 * HELD_BYTES_MAX);
        let mut near = Gather::new(near);
        turn(&mut near, &[b"one", b"two"]).await;
        assert_eq!(arrived(&mut far).await, 0);
        turn(&mut near, &[]).await;
        assert_eq!(arrived(&mut far).await, 6);
    }

    #[tokio::test]
    async fn what_a_client_of_http_1_is_sent_leaves_at_once() {
        for (first, is_held) in
            [(&b"GET / HTTP/1.1"[..], false), (b"POST", false), (b"PRI * ", true)]
        {
            let (near, mut far) = duplex(4 * HELD_BYTES_MAX);
            let mut near = Gather::serving(near);
            far.write_all(first).await.unwrap();
            near.read_exact(&mut vec![0; first.len()]).await.unwrap();
            near.write_all(b"one").await.unwrap();
            assert_eq!(arrived(&mut far).await, if is_held { 0 } else { 3 });
        }
    }

    #[tokio::test]
    async fn a_flush_with_nothing_new_writes_at_once() {
        let (near, mut far) = duplex(4 * HELD_BYTES_MAX);
        let mut near = Gather::new(near);
        turn(&mut near, &[b"one"]).await;
        near.flush().await.unwrap();
        assert_eq!(arrived(&mut far).await, 3);
    }

    #[tokio::test]
    async fn no_more_is_held_than_the_bound() {
        let (near, mut far) = duplex(4 * HELD_BYTES_MAX);
        let mut near = Gather::new(near);
        let half = [7; HELD_BYTES_MAX / 2 + 1];
        turn(&mut near, &[&half, &half]).await;
        assert_eq!(arrived(&mut far).await, half.len(), "the second did not fit beside the first");
        let large = [7; HELD_BYTES_MAX + 1];
        turn(&mut near, &[&large]).await;
        assert_eq!(arrived(&mut far).await, half.len() + large.len());
        assert!(near.held.is_empty() && near.held.capacity() <= KEPT_BYTES_MAX);
    }

    #[tokio::test]
    async fn a_peer_that_does_not_read_stops_the_writer() {
        let (near, mut far) = duplex(1024);
        let mut near = Gather::new(near);
        let bytes = [7; HELD_BYTES_MAX];
        turn(&mut near, &[&bytes]).await;
        let blocked =
            poll_fn(|task| Poll::Ready(Pin::new(&mut near).poll_write(task, b"more").is_pending()));
        assert!(blocked.await);
        let reader = tokio::spawn(async move {
            let mut all = Vec::new();
            far.read_to_end(&mut all).await.map(|_| all.len())
        });
        near.write_all(b"more").await.unwrap();
        near.shutdown().await.unwrap();
        drop(near);
        assert_eq!(reader.await.unwrap().unwrap(), HELD_BYTES_MAX + 4);
    }
}
