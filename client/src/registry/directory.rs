//! The instances of a service, followed as they come and go.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use conclave_proto::{
    etcdserverpb::{
        RangeResponse, ResponseHeader, ResponseOp, TxnRequest, TxnResponse, response_op::Response,
    },
    mvccpb::KeyValue,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    Record, Service, decode,
    source::{News, Source},
};
use crate::{
    backoff::Backoff,
    balance::{BalancedChannel, ChannelBuilder, Instance},
    cache::Cache,
    kv::get,
    txn::txn,
};

/// Least time between two writes of the cache file.
const SAVE_PAUSE: Duration = Duration::from_secs(2);

type Filter = dyn Fn(&Record) -> bool + Send + Sync;

/// Configures a [`Directory`]; see [`Service::discover`].
///
/// ```no_run
/// # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
/// // Only instances that this release can talk to; the cache lets it start without the cluster.
/// let discover = client.service("shop/api").discover();
/// let discover = discover.filter(|record| record.version.starts_with("2."));
/// let directory = discover.cache("/var/cache/shop/api.instances").start();
/// # Ok(()) }
/// ```
#[derive(Clone)]
#[must_use = "nothing is followed until `start` is called"]
pub struct Discover {
    service: Service,
    filters: Vec<Arc<Filter>>,
    cache: Option<PathBuf>,
}

impl Discover {
    pub(super) fn new(service: Service) -> Self {
        Self { service, filters: Vec::new(), cache: None }
    }

    /// Leaves out instances for which `is_wanted` is false. With several filters, all must be true.
    pub fn filter(mut self, is_wanted: impl Fn(&Record) -> bool + Send + Sync + 'static) -> Self {
        self.filters.push(Arc::new(is_wanted));
        self
    }

    /// Keeps the known instances in a file, for starting while the cluster is unreachable.
    pub fn cache(mut self, path: impl AsRef<Path>) -> Self {
        self.cache = Some(path.as_ref().to_owned());
        self
    }

    /// Begins to follow the instances, in a task on the client's runtime.
    pub fn start(self) -> Directory {
        let prefix = self.service.prefix();
        let request: TxnRequest = txn().then(get(&prefix[..]).prefix()).request;
        let cache = self.cache.map(|path| Cache::new(path, None, &request));
        let (told, listing, instances) = Told::new();
        let client = self.service.client.clone();
        let source = Source::new(self.service);
        let follower = Follower { source, prefix, filters: self.filters, cache, told };
        let task = client.task(follower.run());
        Directory { listing, instances, task: Arc::new(task) }
    }
}

impl fmt::Debug for Discover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Discover")
            .field("service", &self.service)
            .field("filters", &self.filters.len())
            .field("cache", &self.cache)
            .finish()
    }
}

/// Where the instances of a listing come from.
///
/// ```no_run
/// # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
/// use conclave_client::registry::Basis;
///
/// let listing = client.service("shop/api").discover().start().current();
/// match listing.basis {
///     Basis::Nothing => println!("wait: nothing is known yet"),
///     Basis::Cache => println!("{} instances, as of an earlier run", listing.records.len()),
///     Basis::Cluster => println!("{} as of revision {}", listing.records.len(), listing.revision),
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Basis {
    /// Nothing has been received yet.
    #[default]
    Nothing,
    /// The cache file of an earlier run.
    Cache,
    /// The cluster.
    Cluster,
}

/// The instances of a service at one revision.
///
/// ```
/// use conclave_client::registry::{Basis, Listing, Record};
///
/// /// For a readiness probe: whether there is an instance to call.
/// fn is_ready(listing: &Listing) -> bool {
///     listing.basis != Basis::Nothing && listing.records.iter().any(Record::is_healthy)
/// }
///
/// let mut listing = Listing::default();
/// assert!(!is_ready(&listing));
/// listing.basis = Basis::Cluster;
/// listing.records = vec![Record::new("10.0.0.7:80")];
/// assert!(is_ready(&listing));
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Listing {
    /// The instances, by id.
    pub records: Vec<Record>,
    /// The revision of the listing.
    pub revision: i64,
    /// Where the instances come from.
    pub basis: Basis,
    /// Whether a server currently reports changes. If not, this is the last known state.
    pub is_connected: bool,
    /// Why not, if that is known. For people.
    pub trouble: Option<Arc<str>>,
}

impl Listing {
    /// The instances as a [`BalancedChannel`] sees them.
    #[must_use]
    pub fn instances(&self) -> Vec<Instance> {
        self.records.iter().map(Instance::from).collect()
    }
}

/// The instances of a service, followed for as long as this, a clone, or a channel made from it
/// exists. While the cluster is unreachable, the last known instances are kept.
///
/// ```no_run
/// # async fn example(client: conclave_client::Client) -> Result<(), Box<dyn std::error::Error>> {
/// use conclave_client::balance::{BalancedChannel, LeastRequests};
/// use conclave_client::pb::kv_client::KvClient; // or any other generated client
///
/// let directory = client.service("shop/api").discover().start();
/// let mut listing = directory.listing();
/// listing.wait_for(|listing| !listing.records.is_empty()).await?; // or call at once: calls wait
/// let channel = directory.channel(BalancedChannel::builder().policy(LeastRequests));
/// let api = KvClient::new(channel);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Directory {
    listing: watch::Receiver<Arc<Listing>>,
    instances: watch::Receiver<Vec<Instance>>,
    task: Arc<AbortOnDropHandle<()>>,
}

impl Directory {
    /// The current listing.
    #[must_use]
    pub fn current(&self) -> Arc<Listing> {
        Arc::clone(&self.listing.borrow())
    }

    /// The current listing, as a receiver that can wait for changes.
    #[must_use]
    pub fn listing(&self) -> watch::Receiver<Arc<Listing>> {
        self.listing.clone()
    }

    /// A channel to the instances. It is updated before [`Directory::listing`]: code that sees a
    /// listing calls the instances of that listing or a later one. Must be called inside a tokio
    /// runtime.
    pub fn channel(&self, builder: ChannelBuilder) -> BalancedChannel {
        builder.build(self.instances.clone(), Some(Arc::clone(&self.task)))
    }
}

/// Publishes what a directory knows.
struct Told {
    listing: watch::Sender<Arc<Listing>>,
    /// The same instances, as channels see them.
    instances: watch::Sender<Vec<Instance>>,
}

impl Told {
    fn new() -> (Self, watch::Receiver<Arc<Listing>>, watch::Receiver<Vec<Instance>>) {
        let (listing, listings) = watch::channel(Arc::default());
        let (instances, lists) = watch::channel(Vec::new());
        (Self { listing, instances }, listings, lists)
    }

    /// Updates channels first: code that sees the listing may make a call at once.
    fn tell(&self, listing: Listing) {
        self.instances.send_replace(listing.instances());
        self.listing.send_replace(Arc::new(listing));
    }

    /// Publishes whether a server currently reports changes, and if not, why.
    fn connected(&self, is_connected: bool, trouble: Option<Arc<str>>) {
        self.listing.send_if_modified(|listing| {
            let is_news = (listing.is_connected, &listing.trouble) != (is_connected, &trouble);
            if is_news {
                *listing = Arc::new(Listing { is_connected, trouble, ..Listing::clone(listing) });
            }
            is_news
        });
    }
}

/// The task behind a directory.
struct Follower {
    source: Source,
    prefix: bytes::Bytes,
    filters: Vec<Arc<Filter>>,
    cache: Option<Cache>,
    told: Told,
}

impl Follower {
    async fn run(mut self) {
        self.load().await;
        let mut backoff = Backoff::default();
        let mut save_at: Option<Instant> = None;
        loop {
            let step = tokio::select! {
                step = self.source.next() => step,
                () = sleep_until(save_at.unwrap_or_else(Instant::now)), if save_at.is_some() => {
                    save_at = None;
                    self.save().await;
                    continue;
                }
            };
            match step {
                Ok(News::Instances) => {
                    backoff.reset();
                    self.publish();
                    if self.cache.is_some() && save_at.is_none() {
                        save_at = Some(Instant::now() + SAVE_PAUSE);
                    }
                }
                Ok(News::Connected) => self.told.connected(true, None),
                Ok(News::Cut(reason)) => self.told.connected(false, reason),
                Err(error) => {
                    tracing::debug!(%error, "the instances cannot be read");
                    self.told.connected(false, Some(error.to_string().into()));
                    sleep(backoff.next()).await;
                }
            }
        }
    }

    fn wanted(&self, records: impl Iterator<Item = Record>) -> Vec<Record> {
        records.filter(|record| self.filters.iter().all(|is_wanted| is_wanted(record))).collect()
    }

    fn publish(&self) {
        let records = self.wanted(self.source.records());
        let revision = self.source.revision();
        let listing =
            Listing { records, revision, basis: Basis::Cluster, is_connected: true, trouble: None };
        self.told.tell(listing);
    }

    /// Loads the cache file of an earlier run.
    async fn load(&self) {
        let Some(cache) = self.cache.clone() else { return };
        let answer = match tokio::task::spawn_blocking(move || cache.load()).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(reason)) => return tracing::debug!(reason, "no instances are cached"),
            Err(error) => return tracing::debug!(%error, "the runtime ends"),
        };
        let first = answer.responses.into_iter().next().and_then(|answer| answer.response);
        let Some(Response::ResponseRange(RangeResponse { kvs, .. })) = first else { return };
        let revision = answer.header.map_or(0, |header| header.revision);
        let records = self.wanted(kvs.iter().filter_map(|kv| decode(&self.prefix, kv)));
        let listing = Listing { records, revision, basis: Basis::Cache, ..Listing::default() };
        self.told.tell(listing);
    }

    /// Writes the cache file for the next start.
    async fn save(&self) {
        let Some(cache) = self.cache.clone() else { return };
        let kv = |record: Record| KeyValue {
            key: [&self.prefix[..], record.id.as_bytes()].concat().into(),
            value: record.encode().into(),
            ..KeyValue::default()
        };
        let kvs = self.source.records().map(kv).collect();
        let range = Response::ResponseRange(RangeResponse { kvs, ..RangeResponse::default() });
        let revision = self.source.revision();
        let answer = TxnResponse {
            header: Some(ResponseHeader { revision, ..ResponseHeader::default() }),
            succeeded: true,
            responses: vec![ResponseOp { response: Some(range) }],
        };
        match tokio::task::spawn_blocking(move || cache.save(&answer)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the instances cannot be cached"),
            Err(error) => tracing::debug!(%error, "the runtime ends"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_channel_has_a_list_before_anybody_is_told() {
        let (told, listing, instances) = Told::new();
        let task = Arc::new(AbortOnDropHandle::new(tokio::spawn(std::future::pending())));
        let directory = Directory { listing, instances, task };
        let channel = directory.channel(BalancedChannel::builder());
        let mut listing = directory.listing();
        for name in ["h:1", "h:2"] {
            told.tell(Listing { records: vec![Record::new(name)], ..Listing::default() });
            assert!(listing.has_changed().unwrap());
            let told = listing.borrow_and_update().instances();
            // No other task has run since.
            assert_eq!(channel.serving().instances, told);
        }
        let kept = listing.borrow_and_update().instances();
        told.tell(Listing::default());
        let serving = channel.serving();
        assert!(serving.is_kept && serving.instances == kept);
    }
}
