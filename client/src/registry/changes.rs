//! A stream of all changes of a service's instances, from Conclave's registry.

use std::{sync::Arc, time::Duration};

use conclave_proto::v1::{
    InstanceFilter, InstanceWatchRequest, InstanceWatchResponse,
    discovery_service_client::DiscoveryServiceClient, instance_watch_response::Snapshot,
};
use futures::{Stream, stream};
use tokio::time::{sleep, timeout};
use tonic::{Code, Request, Status, Streaming, metadata::MetadataValue};

use super::Service;
use crate::{
    backoff::Backoff,
    client::Client,
    connection::{Connection, Reporter},
    endpoint::Endpoint,
    error::{Error, Outcome},
    login::Logins,
};

/// Most time for an endpoint to accept the watch.
const OPEN_TIMEOUT_MAX: Duration = Duration::from_secs(5);

impl Service {
    /// Watches the instances that match the filter: a snapshot first, then the changes of each
    /// revision with their reasons. For tools; to call instances, use [`Service::discover`].
    pub fn changes(&self, filter: InstanceFilter) -> Changes {
        Changes::new(self, filter)
    }
}

/// Changes of the instances of a service. It resumes where it stopped, on any endpoint, without a
/// gap. If that is not possible, it delivers a new snapshot.
///
/// ```no_run
/// # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
/// use conclave_client::v1::{InstanceFilter, instance_change::{Kind, Reason}};
///
/// let filter = InstanceFilter { zone: "eu-1".to_owned(), ..InstanceFilter::default() };
/// let mut changes = client.service("shop/api").changes(filter);
/// loop {
///     for change in changes.next().await?.changes {
///         let id = change.instance.as_ref().map_or("", |instance| &instance.id);
///         match (change.kind(), change.reason()) {
///             (Kind::Removed, Reason::SessionExpired) => println!("{id} died"),
///             (Kind::Removed, reason) => println!("{id} left: {reason:?}"),
///             _ => println!("{id} is there"),
///         }
///     }
/// }
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "nothing is watched until `next` is called"]
pub struct Changes {
    client: Client,
    request: InstanceWatchRequest,
    stream: Option<(Streaming<InstanceWatchResponse>, Arc<Endpoint>)>,
    backoff: Backoff,
    /// Whether the last message is continued in the next one.
    is_partial: bool,
    /// The parts of a snapshot or revision received so far, for [`Changes::next`].
    parts: InstanceWatchResponse,
    reporter: Reporter,
}

/// The result of one step of [`Changes`].
pub(super) enum Step {
    /// A message.
    Message(InstanceWatchResponse),
    /// The watch is established.
    Connected,
    /// The watch is broken, for this reason.
    Cut(Arc<str>),
}

impl Changes {
    pub(super) fn new(service: &Service, filter: InstanceFilter) -> Self {
        let request = InstanceWatchRequest {
            service: service.name.clone(),
            filter: Some(filter),
            ..InstanceWatchRequest::default()
        };
        let (client, backoff) = (service.client.clone(), Backoff::default());
        let parts = InstanceWatchResponse::default();
        Self {
            client,
            request,
            stream: None,
            backoff,
            is_partial: false,
            parts,
            reporter: Reporter::default(),
        }
    }

    /// Merges changes within this time: at most one change for each instance, as of the last of
    /// those revisions. The first change after a quiet period is delivered at once. Zero delivers
    /// each revision separately; at most 10 s. Default: 100 ms for a service of 50 instances or
    /// more, zero for others. Call it before the first [`Changes::next`].
    pub fn window(mut self, window: Duration) -> Self {
        let window_ms = u32::try_from(window.as_millis()).unwrap_or(u32::MAX);
        self.request.window_ms = Some(window_ms);
        self
    }

    /// The next snapshot, or the complete changes of the next revision. While no server answers, it
    /// waits. Cancel-safe, but cancelling while it connects restarts the connecting.
    ///
    /// # Errors
    /// Errors that retrying cannot cure, such as [`Error::Unimplemented`] or [`Error::Denied`].
    pub async fn next(&mut self) -> Result<InstanceWatchResponse, Error> {
        loop {
            match self.step().await {
                Ok(Step::Message(message)) => {
                    if let Some(whole) = put_together(&mut self.parts, message) {
                        return Ok(whole);
                    }
                }
                // An incomplete snapshot or revision is sent again from its beginning, or replaced
                // by another.
                Ok(Step::Connected) => self.parts = InstanceWatchResponse::default(),
                Ok(Step::Cut(why)) => {
                    self.reporter.is_lost(|| why);
                    self.parts = InstanceWatchResponse::default();
                }
                Err(error) if error.is_passing() => {
                    self.reporter.is_lost(|| error.to_string().into());
                    sleep(self.backoff.next()).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The same as a stream, which ends after the first error.
    pub fn into_stream(
        self,
    ) -> impl Stream<Item = Result<InstanceWatchResponse, Error>> + Send + use<> {
        stream::unfold(Some(self), async |changes| {
            let mut changes = changes?;
            let next = changes.next().await;
            let rest = next.is_ok().then_some(changes);
            Some((next, rest))
        })
    }

    /// Whether a server currently reports changes to [`Changes::next`].
    #[must_use]
    pub fn connection(&self) -> Connection {
        self.reporter.connection()
    }

    /// The next message or connection event. Cancelling while it connects restarts the connecting.
    pub(super) async fn step(&mut self) -> Result<Step, Error> {
        let Some((stream, endpoint)) = &mut self.stream else {
            self.open().await?;
            return Ok(Step::Connected);
        };
        match stream.message().await {
            Ok(Some(message)) => {
                endpoint.succeeded();
                self.backoff.reset();
                self.is_partial = message.more;
                // An incomplete snapshot or revision is requested again as a whole.
                if !message.more {
                    self.request.after_revision = message.revision;
                } else if message.snapshot() != Snapshot::None {
                    self.request.after_revision = 0;
                }
                Ok(Step::Message(message))
            }
            ended => {
                endpoint.failed();
                let reason = match ended {
                    Err(status) => endpoint.ended(status).to_string(),
                    Ok(_) => format!("{}: the stream ended", endpoint.address()),
                };
                tracing::debug!(reason, "the watch of a service broke");
                self.stream = None;
                Ok(Step::Cut(reason.into()))
            }
        }
    }

    async fn open(&mut self) -> Result<(), Error> {
        let mut logins = Logins::default();
        loop {
            let endpoint = self.client.endpoint();
            match self.open_on(&endpoint).await {
                Err(error) if logins.may_help(&error, &endpoint) => {}
                opened => return opened,
            }
        }
    }

    async fn open_on(&mut self, endpoint: &Arc<Endpoint>) -> Result<(), Error> {
        let client = DiscoveryServiceClient::new(endpoint.channel());
        let mut client = client.max_decoding_message_size(usize::MAX);
        if self.is_partial {
            // A revision was received in part: only a snapshot makes sure that nothing is delivered
            // twice.
            (self.request.after_revision, self.is_partial) = (0, false);
        }
        let mut request = Request::new(self.request.clone());
        // A member cut off from the leader must end the stream instead of staying silent.
        request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
        let limit = self.client.timeout().min(OPEN_TIMEOUT_MAX);
        let error = match timeout(limit, client.watch(request)).await {
            Ok(Ok(opened)) => {
                self.stream = Some((opened.into_inner(), Arc::clone(endpoint)));
                self.reporter.is_there();
                return Ok(());
            }
            Ok(Err(status)) => Error::from_status(status, endpoint.address()),
            Err(_elapsed) => Error::Deadline {
                outcome: Outcome::NotApplied,
                endpoint: endpoint.address().to_owned(),
                timeout: limit,
            },
        };
        if let Error::FutureRevision(_) = error {
            // The cluster was restored to an older state.
            self.request.after_revision = 0;
            let status = Status::new(Code::Unavailable, "the cluster is at an older revision");
            return Err(Error::from_status(status, endpoint.address()));
        }
        if !error.wants_login() {
            endpoint.failed();
        }
        Err(error)
    }
}

/// Appends a message to the parts before it; returns the whole if it is the last part.
fn put_together(
    parts: &mut InstanceWatchResponse,
    message: InstanceWatchResponse,
) -> Option<InstanceWatchResponse> {
    if message.snapshot() != Snapshot::None && parts.snapshot() == Snapshot::None {
        // A snapshot replaces an incomplete revision.
        parts.changes.clear();
        parts.snapshot = message.snapshot;
    }
    parts.revision = message.revision;
    parts.changes.extend(message.changes);
    (!message.more).then(|| std::mem::take(parts))
}
