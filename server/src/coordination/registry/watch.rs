//! Watching a service: a snapshot, then what each revision changes.
//!
//! Written on a codec of its own rather than on the generated trait, because the messages of a feed are
//! finished bytes that all watchers share.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use bytes::{BufMut as _, Bytes};
use conclave_proto::v1;
use conclave_raft_store::Reader;
use conclave_raft_store::reader::EventSpan;
use conclave_raft_store::store::ReadError;
use conclave_state_machine::registry::view::{KeyChange, View};
use conclave_state_machine::registry::{check, span};
use conclave_state_machine::response::{Event, EventKind, Rejection};
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::broadcast::{self, error::RecvError};
use tonic::codec::{BufferSettings, Codec, EncodeBuf, Encoder};
use tonic::server::{NamedService, ServerStreamingService};
use tonic::{Code, Request, Response, Status};
use tonic_prost::{ProstCodec, ProstDecoder};
use tower::Service;
use v1::instance_watch_response::Snapshot;

use super::discover::may_see;
use super::feed::{Feeds, Slot, Step, causes, step, view_at};
use super::show::Filter;
use crate::api::COMPRESSION;
use crate::api::context::{Context, must_have_leader};
use crate::api::kv::off_thread;
use crate::api::stream_end;
use crate::auth::caller_of;
use crate::metrics::{Answers, Method};
use crate::status::{self, Fault};

const PATH: &str = "/conclave.v1.DiscoveryService/Watch";
/// Revisions, and about bytes, of history that one read of a resumed watch looks at.
const HISTORY_REVISIONS: usize = 1_000;
const HISTORY_BYTES: usize = 1 << 20;
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
        let watcher = Watcher::begin(&self, request).await?;
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

    /// A revision as the filter lets it through; nothing if it does not.
    pub(in super::super) fn step(step: &Step, filter: &Filter) -> Vec<Bytes> {
        let mut messages = Vec::new();
        let mut changes = step.changes.iter().filter_map(|change| filter.change(change)).peekable();
        while changes.peek().is_some() {
            let part = part(&mut changes);
            let more = changes.peek().is_some();
            messages.push(message(step.revision, Snapshot::None, more, part));
        }
        messages
    }

    /// The next message of a snapshot: instances with ids after one of them. The last id that it tells if
    /// there are more, and the message.
    pub(super) fn snapshot(
        view: &View,
        after: Option<&str>,
        (revision, why): (i64, Snapshot),
        filter: &Filter,
    ) -> (Option<String>, Bytes) {
        let added = |shown: &Arc<Shown>| v1::InstanceChange {
            kind: Kind::Added.into(),
            reason: Reason::Unspecified.into(),
            instance: Some(instance(shown)),
        };
        let mut found =
            view.after(after).filter(|shown| filter.admits(shown)).map(added).peekable();
        let part = part(&mut found);
        let last = part.last().and_then(|change| change.instance.as_ref());
        let last = last.filter(|_| found.peek().is_some()).map(|instance| instance.id.clone());
        let message = message(revision, why, last.is_some(), part);
        (last, message)
    }

    /// As many changes as one message holds.
    fn part(changes: &mut impl Iterator<Item = v1::InstanceChange>) -> Vec<v1::InstanceChange> {
        let (mut part, mut bytes) = (Vec::new(), 0);
        while bytes < MESSAGE_BYTES
            && let Some(change) = changes.next()
        {
            bytes += change.encoded_len();
            part.push(change);
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
    slot: Arc<Slot>,
    filter: Filter,
    steps: broadcast::Receiver<Arc<Step>>,
    /// What the client knows, or is due to hear.
    revision: i64,
    /// The rest of one revision, or of a piece of history.
    due: VecDeque<Bytes>,
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
        server: &DiscoveryServer,
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
        let reader = context.node.reader();
        if after > reader.head().revision {
            return Err(Fault::FutureRevision.into());
        }
        let slot = server.feeds.open(context, &service).await?;
        let subscription = slot.subscribe()?;
        let mut watcher = Self {
            slot,
            filter: Filter::new(request.filter),
            steps: subscription.steps,
            revision: after.max(subscription.revision),
            due: VecDeque::new(),
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
            match Missed::begin(reader, service, (after, subscription.revision)).await? {
                Some(missed) => watcher.missed = Some(missed),
                None => watcher.snapshot = begin(Snapshot::Compacted),
            }
        }
        Ok(watcher)
    }

    async fn next(&mut self) -> Result<Bytes, Status> {
        loop {
            if let Some(message) = self.due.pop_front() {
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
            match &mut self.missed {
                Some(missed) => match missed.next(&self.filter).await? {
                    Piece::Messages(messages) => self.due.extend(messages),
                    Piece::End => self.missed = None,
                    Piece::Compacted => self.start_over(Snapshot::Compacted)?,
                },
                None => self.follow().await?,
            }
        }
    }

    /// Waits for the next step.
    async fn follow(&mut self) -> Result<(), Status> {
        match self.steps.recv().await {
            // What the client knew before it asked.
            Ok(step) if step.revision <= self.revision => {}
            Ok(step) => {
                self.revision = step.revision;
                if self.filter.is_open() {
                    self.due.extend(step.messages().iter().cloned());
                } else {
                    self.due.extend(encoded::step(&step, &self.filter));
                }
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

/// What happened after one revision up to another, read piece by piece.
struct Missed {
    reader: Reader,
    service: Bytes,
    view: View,
    from: i64,
    upto: i64,
}

/// What there is to tell of history next.
enum Piece {
    Messages(Vec<Bytes>),
    End,
    Compacted,
}

impl Missed {
    /// Begins after a revision; `None` if it is compacted.
    async fn begin(
        reader: &Reader,
        service: Bytes,
        (after, upto): (i64, i64),
    ) -> Result<Option<Self>, Status> {
        match view_at(reader, &service, after).await {
            Ok((view, _)) => {
                let reader = reader.clone();
                Ok(Some(Self { reader, service, view, from: after + 1, upto }))
            }
            Err(status) if status.message() == Fault::Compacted.text() => Ok(None),
            Err(status) => Err(status),
        }
    }

    async fn next(&mut self, filter: &Filter) -> Result<Piece, Status> {
        if self.from > self.upto {
            return Ok(Piece::End);
        }
        let history = EventSpan {
            from: self.from,
            to: self.upto,
            revisions_max: HISTORY_REVISIONS,
            bytes_max: HISTORY_BYTES,
        };
        let reader = self.reader.clone();
        let events = match off_thread(move || reader.events(history)).await? {
            Ok(events) => events,
            Err(ReadError::Rejected(Rejection::Compacted)) => return Ok(Piece::Compacted),
            Err(error) => return Err(status::from_read(&error)),
        };
        let Some(last) = events.last() else { return Ok(Piece::End) };
        self.from = last.kv.mod_revision + 1;
        let (start, end) = span(&self.service);
        let events = events.into_iter().filter(|event| event.kv.key >= start && event.kv.key < end);
        let events: Vec<Event> = events.collect();
        let mut messages = Vec::new();
        for events in events.chunk_by(|a, b| a.kv.mod_revision == b.kv.mod_revision) {
            let revision = events[0].kv.mod_revision;
            let changes: Vec<KeyChange> = events.iter().map(key_change).collect();
            let causes = causes(&self.reader, &self.service, (revision, &changes)).await;
            let step = step(&mut self.view, (revision, &self.service), changes, &causes);
            messages.extend(encoded::step(&step, filter));
        }
        Ok(Piece::Messages(messages))
    }
}

fn key_change(event: &Event) -> KeyChange {
    match event.kind {
        EventKind::Put => KeyChange::Put(event.kv.clone()),
        EventKind::Delete => KeyChange::Delete(Bytes::clone(&event.kv.key)),
    }
}
