//! Counts the bytes of one client connection, and repairs invalid ones.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::authority::Filter;
use crate::metrics::Metrics;

/// Bytes read at once while received bytes are inspected.
const PIECE_BYTES: usize = 4_096;

/// A connection of a client.
pub(super) struct ClientStream<S> {
    stream: S,
    metrics: Arc<Metrics>,
    /// `None` once the filter has nothing more to do, usually after the first request.
    filtered: Option<Box<Filtered>>,
}

/// Received bytes on their way through the filter.
struct Filtered {
    filter: Filter,
    /// Bytes ready to be read.
    passed: BytesMut,
}

impl<S: AsyncRead + AsyncWrite + Unpin> ClientStream<S> {
    /// For header blocks up to this size.
    pub(super) fn new(stream: S, metrics: Arc<Metrics>, headers_bytes_max: usize) -> Self {
        let filter = Filter::new(headers_bytes_max);
        let filtered = Some(Box::new(Filtered { filter, passed: BytesMut::new() }));
        Self { stream, metrics, filtered }
    }

    fn read_counted(
        &mut self,
        task: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(task, buffer);
        let received = buffer.filled().len() - before;
        if received > 0 {
            self.metrics.client_received_bytes.inc_by(received as u64);
        }
        result
    }

    fn read_filtered(
        &mut self,
        mut filtered: Box<Filtered>,
        task: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut bytes = [0; PIECE_BYTES];
        let result = loop {
            if !filtered.passed.is_empty() {
                let passed = filtered.passed.len().min(buffer.remaining());
                buffer.put_slice(&filtered.passed[..passed]);
                filtered.passed.advance(passed);
                break Poll::Ready(Ok(()));
            }
            let mut piece = ReadBuf::new(&mut bytes);
            match self.read_counted(task, &mut piece) {
                Poll::Ready(Ok(())) if !piece.filled().is_empty() => {
                    filtered.filter.take(piece.filled(), &mut filtered.passed);
                }
                // The end, a failure, or nothing yet.
                other => break other,
            }
        };
        if !filtered.filter.is_done() || !filtered.passed.is_empty() {
            self.filtered = Some(filtered);
        }
        result
    }

    fn write_counted(&self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        let bytes = ready!(result)?;
        self.metrics.client_sent_bytes.inc_by(bytes as u64);
        Poll::Ready(Ok(bytes))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for ClientStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.filtered.take() {
            None => self.read_counted(task, buffer),
            Some(filtered) => self.read_filtered(filtered, task, buffer),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for ClientStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(task, bytes);
        self.write_counted(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(task, slices);
        self.write_counted(result)
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
