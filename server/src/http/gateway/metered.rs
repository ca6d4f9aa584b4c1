//! Meters the bytes of a web socket, whose protocol library assembles messages unobserved: the
//! bytes of an incomplete message take permits, and it must be complete in time.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Sleep, sleep};

use super::room::Room;

/// Size of a client's ping besides its content: two bytes of header, four of mask.
const CONTROL_HEADER_BYTES: usize = 6;

/// A connection that fails with [`io::ErrorKind::QuotaExceeded`] if there are no permits for what
/// it receives, and with [`io::ErrorKind::TimedOut`] if a message takes too long.
pub(super) struct Metered<S> {
    stream: S,
    room: Room,
    /// Permits for what was received since the last message.
    held: Option<OwnedSemaphorePermit>,
    /// Set while permits are held.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl<S> Metered<S> {
    pub(super) fn new(stream: S, room: Room) -> Self {
        Self { stream, room, held: None, deadline: None }
    }

    /// Notes that a message is complete and returns its permits. Bytes already read of the next
    /// message are not counted; they are fewer than a buffer.
    pub(super) fn message(&mut self) -> Option<OwnedSemaphorePermit> {
        self.deadline = None;
        self.held.take()
    }

    /// Notes that a ping or pong was received, perhaps within a message, and returns its permits.
    pub(super) fn control(&mut self, content_bytes: usize) {
        let Some(held) = &mut self.held else { return };
        let bytes = (CONTROL_HEADER_BYTES + content_bytes).min(held.num_permits());
        drop(held.split(bytes));
        if held.num_permits() == 0 {
            self.message();
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.deadline.as_mut().is_some_and(|deadline| deadline.as_mut().poll(task).is_ready()) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(task, buffer))?;
        let received = buffer.filled().len() - before;
        if !this.room.take(received, &mut this.held) {
            return Poll::Ready(Err(io::ErrorKind::QuotaExceeded.into()));
        }
        if received > 0 && this.deadline.is_none() {
            this.deadline = Some(Box::pin(sleep(this.room.patience)));
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
    use tokio::sync::Semaphore;

    use super::*;

    /// A client, and its server with a budget of 100 bytes.
    fn pair(patience: Duration) -> (DuplexStream, Metered<DuplexStream>, Arc<Semaphore>) {
        let permits = Arc::new(Semaphore::new(100));
        let permits_of_all = Arc::clone(&permits);
        let room = Room { bytes_max: 60, message_bytes_max: 20, patience, permits: permits_of_all };
        let (client, server) = duplex(1_000);
        (client, Metered::new(server, room), permits)
    }

    #[tokio::test]
    async fn what_is_no_message_yet_takes_room() {
        let (mut client, mut server, permits) = pair(Duration::from_secs(60));
        let mut bytes = [0; 200];
        client.write_all(&[1; 40]).await.unwrap();
        server.read_exact(&mut bytes[..40]).await.unwrap();
        server.control(4);
        assert_eq!(permits.available_permits(), 70, "a ping has been dealt with");
        client.write_all(&[1; 20]).await.unwrap();
        server.read_exact(&mut bytes[..20]).await.unwrap();
        let message = server.message();
        assert_eq!(permits.available_permits(), 50, "it is there, and was not read yet");
        assert!(server.deadline.is_none());
        drop(message);
        client.write_all(&[1; 6]).await.unwrap();
        server.read_exact(&mut bytes[..6]).await.unwrap();
        server.control(0);
        assert!(server.deadline.is_none(), "nothing is under way");
        client.write_all(&[1; 101]).await.unwrap();
        let refused = server.read(&mut bytes).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::QuotaExceeded);
        drop(server);
        assert_eq!(permits.available_permits(), 100);
    }

    #[tokio::test]
    async fn a_message_is_not_waited_for_without_end() {
        let (mut client, mut server, _permits) = pair(Duration::from_millis(1));
        let mut bytes = [0; 7];
        client.write_all(&bytes).await.unwrap();
        server.read_exact(&mut bytes).await.unwrap();
        // One other byte came before this ping.
        server.control(0);
        let late = server.read(&mut bytes).await.unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
    }
}
