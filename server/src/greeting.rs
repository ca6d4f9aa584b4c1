//! How long a connection may take to say what it speaks.
//!
//! Calls have their own bounds, and so has the head of an HTTP/1.1 request. A connection on which nothing
//! comes, or half of how HTTP/2 begins, has neither yet: it would stay until its client goes. Whoever has begun
//! may be idle for as long as it answers pings.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;
use tonic::transport::server::Connected;

/// How long a connection may take until it has begun, from its handshake on if it has one; as long as that.
pub(crate) const GREETING_TIMEOUT: Duration = Duration::from_secs(10);
/// How HTTP/2 begins.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The head of the settings, which every client sends next.
const FRAME_HEAD_BYTES: usize = 9;

/// A connection that fails when its client does not begin in time.
#[derive(Debug)]
pub(crate) struct Greeting<S> {
    stream: S,
    /// Present until it has begun.
    awaited: Option<Box<Awaited>>,
}

#[derive(Debug)]
struct Awaited {
    until: Pin<Box<Sleep>>,
    /// How much of HTTP/2's beginning has come.
    seen: usize,
    silent: Counter,
}

impl Awaited {
    /// Looks at what came; returns whether the client has begun.
    fn see(&mut self, bytes: &[u8]) -> bool {
        let rest = PREFACE.get(self.seen..).unwrap_or_default();
        self.seen += bytes.len();
        // Anything else is HTTP/1.1, or nothing that anybody waits for.
        bytes.iter().zip(rest).any(|(byte, expected)| byte != expected)
            || self.seen >= PREFACE.len() + FRAME_HEAD_BYTES
    }
}

impl<S> Greeting<S> {
    /// Of a new connection; `silent` counts if it does not begin `within` this time.
    pub(crate) fn new(stream: S, within: Duration, silent: Counter) -> Self {
        let until = Box::pin(tokio::time::sleep(within));
        Self { stream, awaited: Some(Box::new(Awaited { until, seen: 0, silent })) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Greeting<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(task, buffer);
        let Some(awaited) = &mut self.awaited else { return result };
        match result {
            Poll::Pending => {
                ready!(awaited.until.as_mut().poll(task));
                awaited.silent.inc();
                let what = "the client did not begin to speak in time";
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, what)))
            }
            Poll::Ready(Ok(())) => {
                if awaited.see(&buffer.filled()[before..]) {
                    self.awaited = None;
                }
                result
            }
            Poll::Ready(Err(_)) => result,
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Greeting<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(task, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(task, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(task)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(task)
    }
}

impl<S> Connected for Greeting<S> {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

    use super::*;

    const WITHIN: Duration = Duration::from_millis(20);

    /// A connection on which `bytes` come, and nothing else.
    async fn after(bytes: &[u8]) -> (Greeting<DuplexStream>, DuplexStream, Counter) {
        let (mut client, stream) = tokio::io::duplex(1024);
        client.write_all(bytes).await.unwrap();
        let silent = Counter::default();
        let mut greeting = Greeting::new(stream, WITHIN, silent.clone());
        greeting.read_exact(&mut vec![0; bytes.len()]).await.unwrap();
        (greeting, client, silent)
    }

    #[tokio::test]
    async fn whoever_does_not_begin_is_hung_up_on() {
        for bytes in [&b""[..], b"P", &PREFACE[..12], PREFACE, &[PREFACE, &[0; 8]].concat()] {
            let (mut greeting, _client, silent) = after(bytes).await;
            let error = greeting.read_u8().await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{bytes:?}");
            assert_eq!(silent.get(), 1);
        }
    }

    #[tokio::test]
    async fn whoever_has_begun_may_be_idle() {
        for bytes in [&b"G"[..], b"PRI * HTTP/1.1\r\n", &[PREFACE, &[0; 9]].concat()] {
            let (mut greeting, mut client, silent) = after(bytes).await;
            let idle = tokio::time::timeout(WITHIN * 3, greeting.read_u8()).await;
            assert!(idle.is_err(), "{bytes:?}: {idle:?}");
            client.write_u8(7).await.unwrap();
            assert_eq!(greeting.read_u8().await.unwrap(), 7);
            assert_eq!(silent.get(), 0);
        }
    }
}
