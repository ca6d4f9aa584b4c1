//! etcd's Watch service: a [`WatchStream`] behind gRPC.
//!
//! Written by hand instead of with the generated trait, because answers leave the stream as encoded
//! bytes, many in one frame: the generated service would encode each event once per watcher. The
//! response body *is* the stream: the connection polls it when it can take more bytes, so a client
//! that does not read stops only its own stream.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use conclave_proto::etcdserverpb::WatchRequest;
use conclave_state_machine::auth::AuthHead;
use futures::future::{BoxFuture, Ready, ready};
use futures::stream::Stream;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body::Frame;
use prometheus_client::metrics::counter::Counter;
use tokio::time::Sleep;
use tonic::codec::{BufferSettings, CompressionEncoding, Streaming};
use tonic::server::NamedService;
use tonic::{Code, Status};
use tonic_prost::ProstCodec;
use tower::Service;

use super::COMPRESSION;
use crate::auth::{Auth, WatchGuard};
use crate::metrics::{Calls, OpenCall, is_failure};
use crate::status::{self, Fault, too_large_as_in_go};
use crate::watch::{Connection, Hub, Output, WatchStream};

/// Most requests handled before answers and events get their turn.
const REQUESTS_MAX: usize = 64;
/// Initial buffer for decoding requests, kept as long as the stream lives; larger requests make it
/// grow.
const REQUEST_BUFFER: usize = 256;
/// Share of the progress interval by which streams vary it, so that they do not all report at once.
const JITTER: f64 = 0.1;
const PATH: &str = "/etcdserverpb.Watch/Watch";

/// Settings of the service.
#[derive(Clone, Copy, Debug)]
pub struct WatchSettings {
    /// Largest request in bytes, including gRPC's overhead.
    pub receive_bytes_max: usize,
    /// About how often idle watchers that asked for progress notifications get one.
    pub progress_interval: Duration,
}

/// The service `etcdserverpb.Watch`.
#[derive(Clone, Debug)]
pub struct WatchService {
    hub: Arc<Hub>,
    settings: WatchSettings,
    counts: WatchCounts,
    auth: Option<Arc<Auth>>,
}

/// Metrics of the service.
#[derive(Clone, Debug, Default)]
pub(crate) struct WatchCounts {
    pub(crate) calls: Arc<Calls>,
    /// Events sent.
    pub(crate) events: Counter,
    /// Streams whose requests could not be read.
    pub(crate) broken: Counter,
}

impl WatchService {
    /// Serves streams of `hub`.
    #[must_use]
    pub fn new(hub: Arc<Hub>, settings: WatchSettings) -> Self {
        WatchService { hub, settings, counts: WatchCounts::default(), auth: None }
    }

    /// Uses `counts` from now on.
    pub(crate) fn counted(self, counts: WatchCounts) -> Self {
        WatchService { counts, ..self }
    }

    /// Checks the rights of clients with `auth` from now on.
    pub(crate) fn guarded(self, auth: Arc<Auth>) -> Self {
        WatchService { auth: Some(auth), ..self }
    }

    fn open<B>(&self, request: Request<B>) -> Response<tonic::body::Body>
    where
        B: http_body::Body + Send + 'static,
        B::Error: Into<tonic::codegen::StdError>,
    {
        if request.uri().path() != PATH {
            return Status::new(Code::Unimplemented, "").into_http();
        }
        let encoding = match encoding(request.headers()) {
            Ok(encoding) => encoding,
            Err(status) => return status.into_http(),
        };
        let must_have_leader = request.headers().get("hasleader").is_some_and(|v| v == "true");
        if must_have_leader && !self.hub.source().has_leader() {
            return Status::from(Fault::NoLeader).into_http();
        }
        let buffers = BufferSettings::new(REQUEST_BUFFER, REQUEST_BUFFER);
        let decoder = ProstCodec::<WatchRequest, WatchRequest>::raw_decoder(buffers);
        let limit = Some(self.settings.receive_bytes_max);
        let mut stream = self.hub.open();
        if let Some(connection) = request.extensions().get::<Connection>() {
            stream.belong_to(connection.clone());
        }
        let mut rights_changes = None;
        if let Some(auth) = &self.auth {
            let guard = WatchGuard::new(Arc::clone(auth), request.headers(), request.extensions());
            rights_changes = Some(guard.changes());
            stream.guard(Box::new(guard));
        }
        let body = WatchBody {
            stream,
            rights_changes,
            requests: Some(Streaming::new_request(decoder, request.into_body(), encoding, limit)),
            output: Output::default(),
            interval: self.settings.progress_interval,
            tick: None,
            leader_lost: must_have_leader.then(|| leader_lost(&self.hub)),
            call: OpenCall::begin(Arc::clone(&self.counts.calls)),
            events: self.counts.events.clone(),
            broken: self.counts.broken.clone(),
            is_over: false,
        };
        let mut response = Response::new(tonic::body::Body::new(body));
        let content_type = HeaderValue::from_static("application/grpc");
        response.headers_mut().insert(header::CONTENT_TYPE, content_type);
        response
    }
}

/// Compression of the requests, by the same rules as in the other services.
fn encoding(headers: &HeaderMap) -> Result<Option<CompressionEncoding>, Status> {
    match headers.get("grpc-encoding").map(HeaderValue::as_bytes) {
        None | Some(b"identity") => Ok(None),
        Some(b"gzip") => Ok(Some(COMPRESSION)),
        Some(other) => Err(Status::unimplemented(format!(
            "Content is compressed with `{}` which isn't supported",
            String::from_utf8_lossy(other)
        ))),
    }
}

/// Waits until the leader has been gone for too long.
fn leader_lost(hub: &Hub) -> BoxFuture<'static, ()> {
    let mut leaderless = hub.leaderless();
    Box::pin(async move {
        if leaderless.wait_for(|is_gone| *is_gone).await.is_err() {
            // The hub is gone; the stream learns that by itself.
            std::future::pending::<()>().await;
        }
    })
}

impl NamedService for WatchService {
    const NAME: &'static str = "etcdserverpb.Watch";
}

impl<B> Service<Request<B>> for WatchService
where
    B: http_body::Body + Send + 'static,
    B::Error: Into<tonic::codegen::StdError>,
{
    type Response = Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        ready(Ok(self.open(request)))
    }
}

/// The response body: polled by the connection whenever it can take more bytes.
struct WatchBody {
    stream: WatchStream,
    /// `None` once the client has closed its side of the stream; its watchers go on.
    requests: Option<Streaming<WatchRequest>>,
    output: Output,
    interval: Duration,
    /// Runs while a watcher wants progress notifications.
    tick: Option<Pin<Box<Sleep>>>,
    leader_lost: Option<BoxFuture<'static, ()>>,
    /// Signals that rights may have changed; the stream then checks its watchers.
    rights_changes: Option<tokio_stream::wrappers::WatchStream<AuthHead>>,
    call: OpenCall,
    events: Counter,
    broken: Counter,
    is_over: bool,
}

impl WatchBody {
    /// Handles pending requests; returns the reason if the stream has to end.
    fn poll_requests(&mut self, cx: &mut Context<'_>) -> Result<(), Status> {
        for _ in 0..REQUESTS_MAX {
            let Some(requests) = &mut self.requests else { return Ok(()) };
            match Pin::new(requests).poll_next(cx) {
                Poll::Pending => return Ok(()),
                Poll::Ready(None) => self.requests = None,
                Poll::Ready(Some(Ok(request))) => {
                    self.call.received(1);
                    self.stream.request(request, &mut self.output);
                }
                Poll::Ready(Some(Err(status))) => {
                    if is_failure(&status) {
                        self.broken.inc();
                    }
                    return Err(too_large_as_in_go(&status).unwrap_or(status));
                }
            }
        }
        // More requests may be ready already, and nothing else would wake this task.
        cx.waker().wake_by_ref();
        Ok(())
    }

    fn poll_tick(&mut self, cx: &mut Context<'_>) {
        if self.tick.is_none() && !self.stream.wants_ticks() {
            return;
        }
        let jitter = self.interval.mul_f64(rand::random::<f64>() * JITTER);
        let next = self.interval + jitter;
        let tick = self.tick.get_or_insert_with(|| Box::pin(tokio::time::sleep(next)));
        if tick.as_mut().poll(cx).is_ready() {
            self.stream.tick();
            self.tick = None;
            // Polls the new timer, or drops it if no watcher wants ticks any more.
            cx.waker().wake_by_ref();
        }
    }

    fn poll_leader(&mut self, cx: &mut Context<'_>) -> Result<(), Status> {
        let is_lost =
            self.leader_lost.as_mut().is_some_and(|lost| lost.as_mut().poll(cx).is_ready());
        if is_lost { Err(Fault::NoLeader.into()) } else { Ok(()) }
    }

    /// Registers to be woken when rights change.
    fn poll_rights(&mut self, cx: &mut Context<'_>) {
        let Some(changes) = &mut self.rights_changes else { return };
        while let Poll::Ready(Some(_)) = Pin::new(&mut *changes).poll_next(cx) {}
    }

    /// Fills the output; returns the reason if the stream has to end.
    fn poll_output(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        self.poll_leader(cx)?;
        self.poll_rights(cx);
        self.poll_requests(cx)?;
        self.poll_tick(cx);
        self.stream.poll_output(cx, &mut self.output).map_err(status::from_watch_end)
    }

    fn finish(&mut self, status: &Status) -> Frame<Bytes> {
        self.is_over = true;
        self.call.end(status.code());
        let mut trailers = HeaderMap::new();
        if status.add_header(&mut trailers).is_err() {
            // The text cannot be a header value; the code always can.
            trailers.insert("grpc-status", HeaderValue::from(status.code() as i32));
        }
        Frame::trailers(trailers)
    }
}

impl http_body::Body for WatchBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let body = &mut *self;
        if body.is_over {
            return Poll::Ready(None);
        }
        if body.output.is_empty()
            && let Err(status) = ready!(body.poll_output(cx))
        {
            // As in etcd, pending answers to earlier requests are lost with the stream.
            return Poll::Ready(Some(Ok(body.finish(&status))));
        }
        let written = body.output.take_written();
        if written.messages > 0 {
            body.call.sent(written.messages);
            body.events.inc_by(written.events);
        }
        match body.output.next_frame() {
            Some(frame) => Poll::Ready(Some(Ok(Frame::data(frame)))),
            None => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.is_over
    }
}
