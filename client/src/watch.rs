//! Watches: streams of changes that survive broken connections.
//!
//! Each watch has its own stream, so a slow reader holds back only its own server stream (by HTTP/2
//! flow control). After an error or a clean end of the stream, the watch resumes at the last
//! delivered revision + 1, on another endpoint if necessary: each event is delivered once, in
//! order.

mod resume;

pub(crate) use resume::mod_revision;

use std::{
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
};

use bytes::Bytes;
use conclave_proto::{
    etcdserverpb::{ResponseHeader, WatchCreateRequest, watch_create_request::FilterType},
    mvccpb::{Event, KeyValue},
};
use futures::Stream;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio_util::task::AbortOnDropHandle;

use crate::{client::Client, error::Error, key::spans, known_cluster::KnownCluster};

/// Responses that wait for the reader; beyond that the server's stream is held back.
const RESPONSES_MAX: usize = 16;
/// Progress requests not yet passed on; more are not worth sending.
const PROGRESS_REQUESTS_MAX: usize = 4;

impl Client {
    /// Watches a key, or a range of keys.
    pub fn watch(&self, key: impl Into<Vec<u8>>) -> Watch {
        let request = WatchCreateRequest {
            key: Bytes::from(key.into()),
            // A revision too large for one message is sent in fragments, which are joined here.
            fragment: true,
            ..WatchCreateRequest::default()
        };
        let cluster = KnownCluster::default();
        Watch {
            client: self.clone(),
            request,
            created_notify: false,
            on_compaction: OnCompaction::default(),
            known: 0,
            cluster,
        }
    }
}

/// A watch to be started; see [`Client::watch`].
///
/// ```no_run
/// # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
/// // Read the keys, then watch every change: nothing is missed in between.
/// let now = client.get("config/").prefix().await?;
/// println!("{} keys", now.kvs.len());
/// let watch = client.watch("config/").prefix().from_revision(now.revision() + 1);
/// let mut changes = watch.prev_kv().start();
/// while let Some(response) = changes.next().await? {
///     println!("{} events", response.events.len());
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
#[must_use = "a watch does nothing until `start` is called"]
pub struct Watch {
    client: Client,
    request: WatchCreateRequest,
    created_notify: bool,
    on_compaction: OnCompaction,
    known: i64,
    cluster: KnownCluster,
}

/// What a watch does if changes that it has not delivered are already compacted, because it was
/// disconnected for too long or began too far back.
///
/// ```no_run
/// # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
/// use std::collections::BTreeMap;
/// use conclave_client::{mvccpb::event::EventType, watch::OnCompaction};
///
/// let mut jobs = BTreeMap::new();
/// # let known = 1;
/// let watch = client.watch("jobs/").prefix().from_revision(known + 1);
/// let mut changes = watch.on_compaction(OnCompaction::Resync).start();
/// while let Some(response) = changes.next().await? {
///     if let Some(now) = response.snapshot {
///         jobs = now.into_iter().map(|kv| (kv.key, kv.value)).collect();
///     }
///     for event in response.events {
///         let Some(kv) = event.kv else { continue };
///         match EventType::try_from(event.r#type) {
///             Ok(EventType::Put) => _ = jobs.insert(kv.key, kv.value),
///             _ => _ = jobs.remove(&kv.key),
///         }
///     }
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnCompaction {
    /// Ends with [`Error::Compacted`], as etcd's own clients do.
    #[default]
    Fail,
    /// Continues with a [`Response`] that has a [`Response::snapshot`] of the current keys,
    /// whatever happened before. If it cannot be read, the watch ends with the error of that read.
    Resync,
}

impl Watch {
    spans!();

    /// Sets what to do if the next changes are already compacted. Default: fail.
    pub fn on_compaction(mut self, what: OnCompaction) -> Self {
        self.on_compaction = what;
        self
    }

    /// Begins with the events of this revision; 0 for the events after the watch was created.
    pub fn from_revision(mut self, revision: i64) -> Self {
        self.request.start_revision = revision;
        self
    }

    /// Adds the previous key-value pair to each event, if it is not compacted.
    pub fn prev_kv(mut self) -> Self {
        self.request.prev_kv = true;
        self
    }

    /// Leaves out puts.
    pub fn no_puts(mut self) -> Self {
        self.request.filters.push(FilterType::Noput.into());
        self
    }

    /// Leaves out deletions.
    pub fn no_deletes(mut self) -> Self {
        self.request.filters.push(FilterType::Nodelete.into());
        self
    }

    /// Also yields a [`Response`] without events from time to time, which means that everything up
    /// to its revision was delivered.
    pub fn progress_notify(mut self) -> Self {
        self.request.progress_notify = true;
        self
    }

    /// Yields one [`Response`] with [`Response::created`] set once the server has set up the watch.
    pub fn created_notify(mut self) -> Self {
        self.created_notify = true;
        self
    }

    /// Tells the watch that the store of this cluster has reached this revision.
    pub(crate) fn known(mut self, revision: i64, cluster: KnownCluster) -> Self {
        (self.known, self.cluster) = (revision, cluster);
        self
    }

    /// Starts the watch, in a task on the client's runtime.
    #[must_use = "the watch ends when the watcher is dropped"]
    pub fn start(self) -> Watcher {
        let (output, responses) = mpsc::channel(RESPONSES_MAX);
        let (progress, progress_requests) = mpsc::channel(PROGRESS_REQUESTS_MAX);
        let cancel_header = Arc::new(OnceLock::new());
        let (connection, is_connected) = watch::channel(false);
        let trouble = Trouble::default();
        let channels = resume::Channels {
            output,
            progress: progress_requests,
            cancel_header: Arc::clone(&cancel_header),
            connection,
            trouble: trouble.clone(),
        };
        let client = self.client.clone();
        let task = client.task(resume::Task::new(self, channels).run());
        Watcher { responses, progress, cancel_header, is_connected, trouble, _task: task }
    }
}

/// Some events in order. All events of one revision are in one response.
///
/// ```no_run
/// # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
/// use conclave_client::mvccpb::event::EventType;
///
/// let mut changes = client.watch("jobs/").prefix().progress_notify().start();
/// while let Some(response) = changes.next().await? {
///     for event in &response.events {
///         let Some(kv) = &event.kv else { continue };
///         match event.r#type() {
///             EventType::Put => println!("{:?} = {:?}", kv.key, kv.value),
///             EventType::Delete => println!("{:?} is gone", kv.key),
///         }
///     }
///     println!("all is known up to revision {}", response.revision());
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Response {
    /// The header of the server's message.
    pub header: Option<ResponseHeader>,
    /// Whether this only reports that the watch was set up.
    pub created: bool,
    /// The changes. Empty if this only reports progress.
    pub events: Vec<Event>,
    /// All key-value pairs of the range at the header's revision, in place of changes that are
    /// compacted; only with [`OnCompaction::Resync`].
    pub snapshot: Option<Vec<KeyValue>>,
}

impl Response {
    fn of(header: Option<ResponseHeader>, created: bool, events: Vec<Event>) -> Self {
        Self { header, created, events, snapshot: None }
    }

    /// Whether this only reports progress.
    #[must_use]
    pub fn is_progress(&self) -> bool {
        self.events.is_empty() && !self.created && self.snapshot.is_none()
    }

    /// The revision in the header.
    #[must_use]
    pub fn revision(&self) -> i64 {
        self.header.as_ref().map_or(0, |header| header.revision)
    }
}

/// A running watch: a [`Stream`] of responses. It ends after the first error that retrying cannot
/// cure. [`Error::Compacted`] has the oldest revision that can still be read.
/// [`Error::FutureRevision`] means that the store is behind the revisions it has delivered, or
/// belongs to another cluster, as after a restore from a backup.
///
/// ```no_run
/// # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
/// use conclave_client::Error;
///
/// # let known = 1;
/// let mut watcher = client.watch("jobs/").prefix().from_revision(known + 1).start();
/// loop {
///     match watcher.next().await {
///         Ok(Some(response)) => println!("{} events", response.events.len()),
///         Ok(None) => break,
///         // This process was disconnected for too long: read the keys, and watch from there.
///         Err(Error::Compacted { revision }) => println!("nothing is left before {revision}"),
///         Err(error) => return Err(error),
///     }
/// }
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Watcher {
    responses: mpsc::Receiver<Result<Response, Error>>,
    progress: mpsc::Sender<()>,
    cancel_header: Arc<OnceLock<ResponseHeader>>,
    is_connected: watch::Receiver<bool>,
    trouble: Trouble,
    _task: AbortOnDropHandle<()>,
}

impl Watcher {
    /// The next response, or `None` after the end. Cancel-safe: nothing is lost.
    ///
    /// # Errors
    /// The error that ended the watch, returned once.
    pub async fn next(&mut self) -> Result<Option<Response>, Error> {
        self.responses.recv().await.transpose()
    }

    /// Whether a server currently serves the watch. Each failed attempt marks the value as changed,
    /// so that a caller can wait for it.
    #[must_use]
    pub fn connected(&self) -> watch::Receiver<bool> {
        self.is_connected.clone()
    }

    /// Why no server currently serves the watch, if known; `None` while one does. For people.
    #[must_use]
    pub fn trouble(&self) -> Option<Arc<str>> {
        self.trouble.get()
    }

    pub(crate) fn troubles(&self) -> Trouble {
        self.trouble.clone()
    }

    /// The header of the message with which the server canceled the watch.
    #[must_use]
    pub fn cancel_header(&self) -> Option<&ResponseHeader> {
        self.cancel_header.get()
    }

    /// Asks the server to report progress. The answer, a response without events, comes only if the
    /// watch has caught up.
    pub fn request_progress(&self) {
        if self.progress.try_send(()).is_err() {
            tracing::trace!("a progress request is already on its way, or the watch has ended");
        }
    }
}

/// Why a watch is not served, for people.
#[derive(Debug, Clone, Default)]
pub(crate) struct Trouble(Arc<Mutex<Option<Arc<str>>>>);

impl Trouble {
    pub(crate) fn get(&self) -> Option<Arc<str>> {
        self.0.lock().clone()
    }

    fn set(&self, trouble: Option<Arc<str>>) {
        *self.0.lock() = trouble;
    }
}

impl Stream for Watcher {
    type Item = Result<Response, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.responses.poll_recv(cx)
    }
}
