//! Watching a service: a snapshot, then what each revision changes.
//!
//! Written on a codec of its own rather than on the generated trait, because the messages of a feed are
//! finished bytes that all watchers share.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use bytes::{BufMut as _, Bytes};
use conclave_proto::v1;
use conclave_state_machine::registry::check;
use conclave_state_machine::registry::view::View;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::broadcast::{self, error::RecvError};
use tonic::codec::{BufferSettings, Codec, EncodeBuf, Encoder};
use tonic::server::{NamedService, ServerStreamingService};
use tonic::{Code, Request, Response, Status};
use tonic_prost::{ProstCodec, ProstDecoder};
use tower::Service;
use v1::instance_watch_response::Snapshot;

use super::discover::may_see;
use super::feed::{Feeds, Slot, Step};
use super::history::Missed;
use super::show::Filter;
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

/// Messages as bytes.
pub(super) mod encoded {
    use std::sync::Arc;

    use bytes::Bytes;
    use conclave_proto::v1;
    use conclave_state_machine::registry::view::{Shown, View};
    use prost::Message as _;
    use v1::instance_change::{Kind, Reason};
    use v1::instance_watch_response::Snapshot;

    use crate::coordination::registry::feed::Step;
    use crate::coordination::registry::show::{Filter, instance};

    /// About how many bytes of changes one message holds: clients take 4 MiB by default.
    const MESSAGE_BYTES: usize = 1 << 20;

    /// All messages of a revision, for who watches without a filter.
    pub(in super::super) fn step(step: &Step) -> Vec<Bytes> {
        let (mut messages, mut at) = (Vec::new(), Some(0));
        while let Some((message, rest)) = at.and_then(|at| filtered(step, at, &Filter::default())) {
            messages.push(message);
            at = rest;
        }
        messages
    }

    /// The next message of a revision from a place in it on, as the filter lets it through, and the place of the
    /// one after it. `None` if there is nothing to tell.
    pub(in super::super) fn next(
        step: &Step,
        at: usize,
        filter: &Filter,
    ) -> Option<(Bytes, Option<usize>)> {
        if !filter.is_open() {
            return filtered(step, at, filter);
        }
        let messages = step.messages();
        let rest = Some(at + 1).filter(|next| *next < messages.len());
        messages.get(at).map(|message| (Bytes::clone(message), rest))
    }

    fn filtered(step: &Step, at: usize, filter: &Filter) -> Option<(Bytes, Option<usize>)> {
        let changes = step.changes.iter().enumerate().skip(at);
        let wanted = |(place, change)| Some((place, filter.change(change)?));
        let mut changes = changes.filter_map(wanted).peekable();
        changes.peek()?;
        let part = part(&mut changes);
        let rest = changes.peek().map(|(place, _)| *place);
        let part = part.into_iter().map(|(_, change)| change).collect();
        Some((message(step.revision, Snapshot::None, rest.is_some(), part), rest))
    }

    /// The next message of a snapshot: instances with ids after one of them. The last id that it tells if
    /// there are more, and the message.
    pub(super) fn snapshot(
        view: &View,
        after: Option<&str>,
        (revision, why): (i64, Snapshot),
        filter: &Filter,
    ) -> (Option<String>, Bytes) {
        let added = |shown: &Arc<Shown>| {
            let change = v1::InstanceChange {
                kind: Kind::Added.into(),
                reason: Reason::Unspecified.into(),
                instance: Some(instance(shown)),
            };
            (shown.record.id.clone(), change)
        };
        let mut found =
            view.after(after).filter(|shown| filter.admits(shown)).map(added).peekable();
        let (ids, part): (Vec<String>, Vec<_>) = part(&mut found).into_iter().unzip();
        let last = ids.into_iter().last().filter(|_| found.peek().is_some());
        let message = message(revision, why, last.is_some(), part);
        (last, message)
    }

    /// As many changes as one message holds, each with where it stands.
    fn part<P>(
        changes: &mut impl Iterator<Item = (P, v1::InstanceChange)>,
    ) -> Vec<(P, v1::InstanceChange)> {
        let (mut part, mut bytes) = (Vec::new(), 0);
        while bytes < MESSAGE_BYTES
            && let Some((place, change)) = changes.next()
        {
            bytes += change.encoded_len();
            part.push((place, change));
        }
        part
    }

    fn message(
        revision: i64,
        snapshot: Snapshot,
        more: bool,
        changes: Vec<v1::InstanceChange>,
    ) -> Bytes {
        let snapshot = snapshot.into();
        v1::InstanceWatchResponse { revision, snapshot, more, changes }.encode_to_vec().into()
    }
}

/// One client that watches. Whatever it is told is made when the connection takes it, so that a client
/// that takes nothing costs no more than what everybody shares.
struct Watcher {
    server: DiscoveryServer,
    slot: Arc<Slot>,
    filter: Filter,
    steps: broadcast::Receiver<Arc<Step>>,
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
    view: Arc<View>,
    why: Snapshot,
    /// The last instance that was told.
    after: Option<String>,
}

impl Watcher {
    async fn begin(
        server: DiscoveryServer,
        request: v1::InstanceWatchRequest,
    ) -> Result<Self, Status> {
        let context = &server.context;
        let service = Bytes::from(request.service);
        check::service(&service).map_err(|rejection| status::from_rejection(&rejection))?;
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
            slot,
            filter: Filter::new(request.filter),
            steps: subscription.steps,
            revision: after.max(subscription.revision),
            due: None,
            snapshot: None,
            missed: None,
            _permit: permit,
        };
        let begin = |why| Some(Rest { view: subscription.view, why, after: None });
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
            if let Some(Rest { view, why, after }) = &mut self.snapshot {
                let what = (self.revision, *why);
                let (last, message) = encoded::snapshot(view, after.as_deref(), what, &self.filter);
                match last {
                    Some(last) => *after = Some(last),
                    None => self.snapshot = None,
                }
                return Ok(message);
            }
            if self.missed.is_none() {
                self.follow().await?;
            } else if let Some(message) = self.catch_up().await? {
                return Ok(message);
            }
        }
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
        match self.steps.recv().await {
            // What the client knew before it asked.
            Ok(step) if step.revision <= self.revision => {}
            Ok(step) => {
                self.revision = step.revision;
                self.due = Some((step, 0));
            }
            Err(RecvError::Lagged(_)) => self.start_over(Snapshot::Behind)?,
            Err(RecvError::Closed) => {
                return Err(Status::unavailable("conclave: the watch of the service ended"));
            }
        }
        Ok(())
    }

    fn start_over(&mut self, why: Snapshot) -> Result<(), Status> {
        let subscription = self.slot.subscribe()?;
        self.missed = None;
        self.snapshot = Some(Rest { view: subscription.view, why, after: None });
        self.revision = subscription.revision;
        self.steps = subscription.steps;
        Ok(())
    }
}

/// What was told by halves cannot be told to its end.
fn broken_off() -> Status {
    Status::unavailable("conclave: the rest is compacted, begin again")
}
