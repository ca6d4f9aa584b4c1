//! Lets the tasks of a connection finish their answers before it writes, so that one write carries
//! them all.
//!
//! When a batch is applied, the answers of all its callers become ready at once. Tokio runs a
//! connection right after the first task that woke it, which would make one system call (and one TCP
//! segment) of every answer. A [`Gather`] therefore lets whatever is ready run first, once, before a
//! small write. With nothing else to run this is one more poll and no delay.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

/// Larger writes do not wait: there is little to gain for them.
const SMALL_BYTES: usize = 8 * 1024;

/// A byte stream that yields before small writes.
#[derive(Debug)]
pub(crate) struct Gather<S> {
    stream: S,
    /// Others had their turn since the last flush.
    has_yielded: bool,
}

impl<S> Gather<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, has_yielded: false }
    }

    /// Whether to come back later; the task is then already woken.
    fn yields(&mut self, bytes: usize, task: &Context<'_>) -> bool {
        if self.has_yielded || bytes >= SMALL_BYTES {
            return false;
        }
        self.has_yielded = true;
        task.waker().wake_by_ref();
        true
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gather<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(task, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gather<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.yields(bytes.len(), task) {
            return Poll::Pending;
        }
        Pin::new(&mut self.stream).poll_write(task, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.yields(slices.iter().map(|slice| slice.len()).sum(), task) {
            return Poll::Pending;
        }
        Pin::new(&mut self.stream).poll_write_vectored(task, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.has_yielded = false;
        Pin::new(&mut self.stream).poll_flush(task)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(task)
    }
}

impl<S: Connected> Connected for Gather<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn what_is_ready_runs_before_a_small_write() {
        let (near, mut far) = tokio::io::duplex(64 * 1024);
        let mut near = Gather::new(near);
        let ran = Arc::new(AtomicUsize::new(0));
        for _ in 0..3 {
            let ran = ran.clone();
            tokio::spawn(async move { ran.fetch_add(1, Ordering::Relaxed) });
        }
        near.write_all(b"answer").await.unwrap();
        assert_eq!(ran.load(Ordering::Relaxed), 3);
        near.flush().await.unwrap();
        let mut bytes = [0; 6];
        far.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"answer");
    }

    #[tokio::test]
    async fn a_large_write_does_not_wait() {
        let (near, _far) = tokio::io::duplex(64 * 1024);
        let mut near = Gather::new(near);
        let other = tokio::spawn(async {});
        near.write_all(&[0; SMALL_BYTES]).await.unwrap();
        assert!(!other.is_finished());
    }
}
