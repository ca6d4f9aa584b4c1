//! The task behind a watch: opens the server's stream, and reopens it where it broke off.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use conclave_proto::{
    etcdserverpb::{
        RangeRequest, ResponseHeader, WatchCreateRequest, WatchProgressRequest, WatchRequest,
        WatchResponse, watch_client::WatchClient, watch_request::RequestUnion,
    },
    mvccpb::Event,
};
use tokio::{
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status, Streaming, metadata::MetadataValue};

use super::{OnCompaction, Response, Trouble, Watch};
use crate::{
    backoff::Backoff, client::Client, endpoint::Endpoint, error::Error, key::ALL,
    known_cluster::KnownCluster, login::is_stale,
};

/// Requests waiting to be sent on the server's stream.
const REQUESTS_MAX: usize = 8;
/// Most time for one endpoint to set up the watch before another one is tried.
const CREATE_TIMEOUT_MAX: Duration = Duration::from_secs(5);

/// How one server stream ended.
enum End {
    /// The watcher was dropped.
    Dropped,
    /// Retrying cannot help.
    Failed(Error),
    /// The stream broke or ended. `Some` if the server gave a reason.
    Broken(Option<Status>),
}

/// The channels between the task and its [`super::Watcher`].
pub(super) struct Channels {
    pub(super) output: mpsc::Sender<Result<Response, Error>>,
    pub(super) progress: mpsc::Receiver<()>,
    pub(super) cancel_header: Arc<OnceLock<ResponseHeader>>,
    pub(super) connection: watch::Sender<bool>,
    /// Set before `connection` is set to false.
    pub(super) trouble: Trouble,
}

pub(super) struct Task {
    client: Client,
    request: WatchCreateRequest,
    created_notify: bool,
    on_compaction: OnCompaction,
    /// The first revision not yet delivered; 0 until the server has reported the current one.
    next: i64,
    /// Highest revision that the store is known to have reached.
    known: i64,
    /// Refuses answers of a different cluster.
    cluster: KnownCluster,
    /// The fragments of an incomplete response.
    parts: Vec<Event>,
    channels: Channels,
    backoff: Backoff,
}

impl Task {
    pub(super) fn new(watch: Watch, channels: Channels) -> Self {
        Self {
            client: watch.client,
            next: watch.request.start_revision,
            known: watch.known,
            cluster: watch.cluster,
            request: watch.request,
            created_notify: watch.created_notify,
            on_compaction: watch.on_compaction,
            parts: Vec::new(),
            channels,
            backoff: Backoff::default(),
        }
    }

    pub(super) async fn run(mut self) {
        loop {
            let endpoint = self.client.endpoint();
            self.parts.clear();
            match self.session(&endpoint).await {
                End::Dropped => return,
                End::Failed(error) => {
                    self.channels.trouble.set(Some(error.to_string().into()));
                    self.channels.connection.send_replace(false);
                    if let Some(error) = self.resync(error).await {
                        // If the reader is gone, nobody needs the error.
                        drop(self.channels.output.send(Err(error)).await);
                        return;
                    }
                }
                End::Broken(status) => {
                    endpoint.failed();
                    let endpoint = endpoint.address();
                    let reason =
                        status.as_ref().map_or("no answer, or its stream ended", |s| s.message());
                    self.channels.trouble.set(Some(format!("{endpoint}: {reason}").into()));
                    self.channels.connection.send_replace(false);
                    tracing::debug!(endpoint, ?status, next = self.next, "resuming watch");
                    sleep(self.backoff.next()).await;
                }
            }
        }
    }

    /// After a compaction, continues with a snapshot if that is wanted; otherwise returns the error
    /// that ends the watch.
    async fn resync(&mut self, error: Error) -> Option<Error> {
        if self.on_compaction != OnCompaction::Resync || !matches!(error, Error::Compacted { .. }) {
            return Some(error);
        }
        let WatchCreateRequest { key, range_end, .. } = self.request.clone();
        let range = RangeRequest { key, range_end, ..RangeRequest::default() };
        let now = loop {
            match self.client.send_range(range.clone()).await {
                Ok(now) => break now.into_inner(),
                Err(error) if error.is_passing() => sleep(self.backoff.next()).await,
                Err(error) => return Some(error),
            }
        };
        let header = now.header.unwrap_or_default();
        if let Err(error) = self.cluster.meet(header.cluster_id) {
            return Some(error);
        }
        self.known = self.known.max(header.revision);
        self.next = header.revision + 1;
        let snapshot = Some(now.kvs);
        let response = Response { snapshot, ..Response::of(now.header, false, Vec::new()) };
        // If the reader is gone this fails, and the next message notices it.
        self.deliver(response).await;
        None
    }

    /// One server stream, from its creation to its end.
    async fn session(&mut self, endpoint: &Endpoint) -> End {
        let limit = self.client.timeout().min(CREATE_TIMEOUT_MAX);
        // The sender must live as long as the session: dropping it would half-close the stream.
        let (requests, mut stream) = match timeout(limit, self.open(endpoint)).await {
            Ok(Ok(opened)) => opened,
            Ok(Err(status)) => return ended_by(status, endpoint),
            Err(_elapsed) => return End::Broken(None),
        };
        let mut is_created = false;
        loop {
            let message = tokio::select! {
                message = stream.message() => message,
                () = sleep(limit), if !is_created => return End::Broken(None),
                Some(()) = self.channels.progress.recv() => {
                    let union = RequestUnion::ProgressRequest(WatchProgressRequest {});
                    drop(requests.try_send(WatchRequest { request_union: Some(union) }));
                    continue;
                }
            };
            match message {
                Ok(Some(message)) => {
                    is_created |= message.created;
                    endpoint.succeeded();
                    if let Some(end) = self.receive(message, endpoint).await {
                        return end;
                    }
                }
                Ok(None) => return End::Broken(None),
                Err(status) => return ended_by(status, endpoint),
            }
        }
    }

    async fn open(
        &self,
        endpoint: &Endpoint,
    ) -> Result<(mpsc::Sender<WatchRequest>, Streaming<WatchResponse>), Status> {
        let (requests, outgoing) = mpsc::channel(REQUESTS_MAX);
        let mut create = WatchCreateRequest { start_revision: self.next, ..self.request.clone() };
        let namespace = self.client.namespace();
        if create.key.is_empty() {
            // The server treats an empty key as this one.
            create.key = Bytes::from_static(ALL);
        }
        let within = namespace.span(&mut create.key, &mut create.range_end);
        within.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let union = RequestUnion::CreateRequest(create);
        requests
            .try_send(WatchRequest { request_union: Some(union) })
            .expect("invariant: a new channel has room");
        let mut request = Request::new(ReceiverStream::new(outgoing));
        // A member cut off from the leader must end the stream instead of staying silent.
        request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
        let stream = WatchClient::new(endpoint.channel())
            .max_decoding_message_size(usize::MAX)
            .watch(request)
            .await?
            .into_inner();
        Ok((requests, stream))
    }

    /// Handles one message; `Some` if it ends the stream.
    async fn receive(&mut self, message: WatchResponse, endpoint: &Endpoint) -> Option<End> {
        if message.canceled {
            if let Some(header) = message.header {
                // Set already if the server canceled an earlier stream of this watch, which was
                // resumed.
                self.channels.cancel_header.set(header).ok();
            }
            if is_stale(&message.cancel_reason) && endpoint.has_login() && message.created {
                endpoint.forget_token();
                return Some(End::Broken(None));
            }
            return Some(canceled(&message, endpoint));
        }
        let header = message.header.unwrap_or_default();
        if let Err(error) = self.cluster.meet(header.cluster_id) {
            // The store was restored to an older state and has caught up since.
            return Some(End::Failed(error));
        }
        let revision = header.revision;
        if message.created
            && revision < self.known
            && let Some(end) = self.look_back().await
        {
            return Some(end);
        }
        self.known = self.known.max(revision);
        if message.created {
            self.backoff.reset();
            self.channels.trouble.set(None);
            self.channels.connection.send_replace(true);
            if self.next == 0 {
                self.next = revision + 1;
            }
            if !std::mem::take(&mut self.created_notify) {
                return None;
            }
            return self.deliver(Response::of(message.header, true, Vec::new())).await;
        }
        if message.events.is_empty() && !message.fragment && self.parts.is_empty() {
            // Everything up to this revision was sent, so the watch may resume after it. That holds
            // only for progress that the server reports by itself: etcd before 3.4.25 and 3.5.8
            // answers a progress request (without a watch id) while older events are still on their
            // way.
            if message.watch_id >= 0 {
                self.next = self.next.max(revision + 1);
            }
            return self.deliver(Response::of(message.header, false, Vec::new())).await;
        }
        self.parts.extend(message.events);
        if message.fragment {
            return None;
        }
        let mut events = std::mem::take(&mut self.parts);
        self.client.namespace().happened(&mut events);
        let next = self.next;
        // After a resume a server may send events again.
        events.retain(|event| mod_revision(event) >= next);
        let last = events.last().map(mod_revision)?;
        self.next = last + 1;
        self.deliver(Response::of(message.header, false, events)).await
    }

    /// Checks a member that is behind the known revision: either it lags, or the whole store was
    /// restored to an older state. In the latter case the delivered events no longer hold, and new
    /// events would be dropped as old.
    async fn look_back(&self) -> Option<End> {
        match self.client.get(&self.request.key[..]).count_only().await {
            Ok(answer) if answer.revision() < self.known => {
                let text = format!("conclave: {} is a future revision", self.known);
                Some(End::Failed(Error::FutureRevision(Status::out_of_range(text))))
            }
            Err(error) if error.is_passing() => Some(End::Broken(error.status().cloned())),
            Ok(_) | Err(_) => None,
        }
    }

    async fn deliver(&self, response: Response) -> Option<End> {
        self.channels.output.send(Ok(response)).await.err().map(|_closed| End::Dropped)
    }
}

pub(crate) fn mod_revision(event: &Event) -> i64 {
    event.kv.as_ref().map_or(0, |kv| kv.mod_revision)
}

/// Decides from the final status of a stream whether to retry.
fn ended_by(status: Status, endpoint: &Endpoint) -> End {
    match Error::from_status(status, endpoint.address()) {
        error @ (Error::Invalid(_)
        | Error::Refused(_)
        | Error::Denied(_)
        | Error::NotFound(_)
        | Error::Unimplemented(_)) => End::Failed(error),
        error => End::Broken(error.status().cloned()),
    }
}

/// Decides what to do after the server canceled the watch.
fn canceled(message: &WatchResponse, endpoint: &Endpoint) -> End {
    let reason = message.cancel_reason.as_str();
    if message.compact_revision > 0 || reason.ends_with("has been compacted") {
        return End::Failed(Error::Compacted { revision: message.compact_revision });
    }
    if reason.contains("PermissionDenied") || reason.contains("Unauthenticated") {
        return End::Failed(Error::Denied(Status::new(Code::PermissionDenied, reason)));
    }
    if message.created {
        let status = Status::invalid_argument(reason);
        return End::Failed(Error::from_status(status, endpoint.address()));
    }
    let status = Status::new(Code::Unavailable, reason);
    ended_by(status, endpoint)
}
