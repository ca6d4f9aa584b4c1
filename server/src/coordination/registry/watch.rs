//! Watching a service: a snapshot, then what each revision changes.
//!
//! Written on a codec of its own rather than on the generated trait, because the messages of a feed are
//! finished bytes that all watchers share.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::Poll;

use bytes::{BufMut as _, Bytes};
use conclave_proto::v1;
use conclave_state_machine::registry::check;
use conclave_state_machine::registry::view::View;
use tokio::sync::OwnedSemaphorePermit;
use tonic::codec::{BufferSettings, Codec, EncodeBuf, Encoder};
use tonic::server::{NamedService, ServerStreamingService};
use tonic::{Code, Request, Response, Status};
use tonic_prost::{ProstCodec, ProstDecoder};
use tower::Service;
use v1::instance_watch_response::Snapshot;

use super::discover::{self, may_see};
use super::encoded;
use super::feed::{Feeds, Slot, Step};
use super::history::Missed;
use super::show::Filter;
use super::window::{End, Steps, Window};
use crate::api::COMPRESSION;
use crate::api::context::{Context, must_have_leader};
use crate::api::stream_end;
use crate::auth::caller_of;
use crate::metrics::{Answers, Method};
use crate::status::{self, Fault};

const PATH: &str = "/conclave.v1.DiscoveryService/Watch";
/// Revisions that a resumed watch may have missed; beyond, it starts over with a snapshot.
const MISSED_MAX: i64 = 10_000;

/// The service `conclave.v1.DiscoveryService`.
#[derive(Clone)]
pub(super) struct DiscoveryServer {
    context: Context,
    feeds: Arc<Feeds>,
}

impl DiscoveryServer {
    pub(super) fn new(context: Context, feeds: Arc<Feeds>) -> Self {
        Self { context, feeds }
    }

    async fn open(
        self,
        request: Request<v1::InstanceWatchRequest>,
    ) -> Result<Answers<Bytes>, Status> {
        self.context.check_metadata(request.metadata())?;
        let must_have_leader = must_have_leader(request.metadata());
        let caller = caller_of(request.extensions());
        let request = request.into_inner();
        let may_see = may_see(request.service.as_bytes());
        self.context.auth.check(&caller, &may_see)?;
        let watcher = Watcher::begin(self.clone(), request).await?;
        let answers = futures::stream::try_unfold(watcher, async |mut watcher| {
            let next = watcher.next().await?;
            Ok(Some((next, watcher)))
        });
        let answers = self.context.auth.guard(caller, may_see, Box::pin(answers));
        Ok(stream_end::guard(&self.context, answers, must_have_leader))
    }
}

impl NamedService for DiscoveryServer {
    const NAME: &'static str = "conclave.v1.DiscoveryService";
}

impl<B> Service<http::Request<B>> for DiscoveryServer
where
    B: http_body::Body + Send + 'static,
    B::Error: Into<tonic::codegen::StdError> + Send + 'static,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        if request.uri().path() != PATH {
            let refusal = Status::new(Code::Unimplemented, "").into_http();
            return Box::pin(std::future::ready(Ok(refusal)));
        }
        let service = self.clone();
        Box::pin(async move {
            let limit = service.context.limits.receive_bytes_max();
            let mut grpc = tonic::server::Grpc::new(EncodedCodec)
                .max_decoding_message_size(limit)
                .accept_compressed(COMPRESSION);
            Ok(grpc.server_streaming(service, request).await)
        })
    }
}

impl ServerStreamingService<v1::InstanceWatchRequest> for DiscoveryServer {
    type Response = Bytes;
    type ResponseStream = Answers<Bytes>;
    type Future =
        Pin<Box<dyn Future<Output = Result<Response<Self::ResponseStream>, Status>> + Send>>;

    fn call(&mut self, request: Request<v1::InstanceWatchRequest>) -> Self::Future {
        let service = self.clone();
        let metrics = Arc::clone(&self.context.metrics);
        Box::pin(async move { metrics.stream(Method::DiscoveryWatch, service.open(request)).await })
    }
}

/// Requests are decoded, answers are bytes already.
#[derive(Clone, Copy, Debug, Default)]
struct EncodedCodec;

impl Codec for EncodedCodec {
    type Encode = Bytes;
    type Decode = v1::InstanceWatchRequest;
    type Encoder = Self;
    type Decoder = ProstDecoder<v1::InstanceWatchRequest>;

    fn encoder(&mut self) -> Self::Encoder {
        *self
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<v1::InstanceWatchRequest, v1::InstanceWatchRequest>::raw_decoder(
            BufferSettings::default(),
        )
    }
}

impl Encoder for EncodedCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

/// One client that watches. Whatever it is told is made when the connection takes it, so that a client
/// that takes nothing costs no more than what everybody shares.
struct Watcher {
    server: DiscoveryServer,
    service: Bytes,
    slot: Arc<Slot>,
    filter: Filter,
    window: Window,
    steps: Steps,
    /// What the client knows, or is due to hear.
    revision: i64,
    /// The rest of one revision, from a place in it on.
    due: Option<(Arc<Step>, usize)>,
    snapshot: Option<Rest>,
    missed: Option<Missed>,
    _permit: OwnedSemaphorePermit,
}

/// What is still to be told of a snapshot.
struct Rest {
    why: Snapshot,
    source: Source,
}

/// Where the rest of a snapshot comes from.
enum Source {
    /// The view that everybody shares, while it is as it was; the last instance that was told.
    View(Weak<View>, Option<String>),
    /// The rows of that revision, which has a successor; where to go on.
    Rows(Bytes),
}

impl Watcher {
    async fn begin(
        server: DiscoveryServer,
        request: v1::InstanceWatchRequest,
    ) -> Result<Self, Status> {
        let context = &server.context;
        let service = Bytes::from(request.service);
        check::service(&service).map_err(|rejection| status::from_rejection(&rejection))?;
        let window = Window::asked(request.window_ms)?;
        let permit = server.feeds.enter()?;
        context.read_barrier().await?;
        let after = request.after_revision;
        if after < 0 {
            return Err(Status::invalid_argument("conclave: revisions are positive"));
        }
        if after > context.node.reader().head().revision {
            return Err(Fault::FutureRevision.into());
        }
        let slot = server.feeds.open(context, &service).await?;
        let subscription = slot.subscribe()?;
        let mut watcher = Self {
            server,
            service: Bytes::clone(&service),
            slot,
            filter: Filter::new(request.filter),
            window,
            steps: subscription.steps,
            revision: after.max(subscription.revision),
            due: None,
            snapshot: None,
            missed: None,
            _permit: permit,
        };
        let begin = |why| Some(Rest { why, source: Source::View(subscription.view, None) });
        let missed = subscription.revision - after;
        if after == 0 {
            watcher.snapshot = begin(Snapshot::Asked);
        } else if missed > MISSED_MAX {
            watcher.snapshot = begin(Snapshot::Behind);
        } else if missed > 0 {
            watcher.missed = Some(Missed::new(service, (after, subscription.revision)));
        }
        Ok(watcher)
    }

    async fn next(&mut self) -> Result<Bytes, Status> {
        loop {
            if let Some((step, at)) = self.due.take()
                && let Some((message, rest)) = encoded::next(&step, at, &self.filter)
            {
                self.due = rest.map(|rest| (step, rest));
                return Ok(message);
            }
            if let Some(rest) = self.snapshot.take() {
                if let Some(message) = self.show(rest).await? {
                    return Ok(message);
                }
                continue;
            }
            if self.missed.is_none() {
                self.follow().await?;
            } else if let Some(message) = self.catch_up().await? {
                return Ok(message);
            }
        }
    }

    /// The next message of a snapshot; `None` if there has to be another one.
    async fn show(&mut self, Rest { why, source }: Rest) -> Result<Option<Bytes>, Status> {
        let from = match source {
            Source::View(view, after) => match view.upgrade() {
                Some(view) => return Ok(Some(self.show_view((why, view), after.as_deref()))),
                None => after.map_or_else(Bytes::new, |last| Bytes::from(format!("{last}\0"))),
            },
            Source::Rows(from) => from,
        };
        let reader = self.server.context.node.reader().clone();
        let (service, filter) = (Bytes::clone(&self.service), self.filter.clone());
        let (begin, revision) = (Bytes::clone(&from), self.revision);
        let read = move || discover::as_of(&reader, &service, (begin, revision), &filter);
        match self.server.feeds.read(read).await {
            Ok((found, next)) => {
                let message = encoded::listed(found, (revision, why), !next.is_empty());
                let rest = |next| Rest { why, source: Source::Rows(next) };
                self.snapshot = Some(next).filter(|next| !next.is_empty()).map(rest);
                Ok(Some(message))
            }
            Err(status) if status.message() != Fault::Compacted.text() => Err(status),
            Err(_) if !from.is_empty() => Err(broken_off()),
            Err(_) => self.start_over(why).map(|()| None),
        }
    }

    fn show_view(&mut self, (why, view): (Snapshot, Arc<View>), after: Option<&str>) -> Bytes {
        let what = (self.revision, why);
        let (last, message) = encoded::snapshot(&view, after, what, &self.filter);
        let rest = |last| Rest { why, source: Source::View(Arc::downgrade(&view), Some(last)) };
        self.snapshot = last.map(rest);
        message
    }

    /// The next message of what was missed; `None` at its end, or if a snapshot is to tell it.
    async fn catch_up(&mut self) -> Result<Option<Bytes>, Status> {
        let Some(missed) = &mut self.missed else { return Ok(None) };
        let DiscoveryServer { context, feeds } = &self.server;
        match missed.next((feeds, context.node.reader()), &self.filter).await {
            Ok(Some(message)) => return Ok(Some(message)),
            Ok(None) => self.missed = None,
            Err(status) if status.message() != Fault::Compacted.text() => return Err(status),
            // Only who opens the stream anew forgets half a revision.
            Err(_) if missed.is_within() => return Err(broken_off()),
            Err(_) => self.start_over(Snapshot::Compacted)?,
        }
        Ok(None)
    }

    /// Waits for the next step.
    async fn follow(&mut self) -> Result<(), Status> {
        match self.steps.next(self.revision, self.window).await {
            Ok(step) => {
                self.revision = step.revision;
                self.due = Some((step, 0));
            }
            Err(End::Behind) => self.start_over(Snapshot::Behind)?,
            Err(End::Closed) => {
                return Err(Status::unavailable("conclave: the watch of the service ended"));
            }
        }
        Ok(())
    }

    fn start_over(&mut self, why: Snapshot) -> Result<(), Status> {
        let subscription = self.slot.subscribe()?;
        self.missed = None;
        self.snapshot = Some(Rest { why, source: Source::View(subscription.view, None) });
        self.revision = subscription.revision;
        self.steps = subscription.steps;
        Ok(())
    }
}

/// What was told by halves cannot be told to its end.
fn broken_off() -> Status {
    Status::unavailable("conclave: the rest is compacted, begin again")
}
