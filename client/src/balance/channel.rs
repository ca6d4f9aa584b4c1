//! A channel that spreads its calls over the instances of a service.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::timeout_at;
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;
use tonic::body::Body;
use tower::Service;

use super::attempt::{Attempt, Resend};
use super::breaker::BreakerOptions;
use super::hash::hash;
use super::node::Instance;
use super::outlier::{OutlierOptions, Outliers};
use super::snapshot::{Ctx, Snapshot, SnapshotOptions};
use super::table::{Security, Source, Table};
use super::{Balancer, PeakEwma};
use crate::error::{Error, never_sent};
use crate::moment::later;
use crate::tls::Tls;

/// Most instances on which one call is tried, while none of them could be connected to.
const TRIES_MAX: usize = 5;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The key of a call for [`ConsistentHash`](super::ConsistentHash); put it into the request's
/// extensions.
///
/// ```
/// use conclave_client::balance::RouteKey;
///
/// let mut request = tonic::Request::new(());
/// request.extensions_mut().insert(RouteKey::of(b"user-17"));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteKey(pub u64);

impl RouteKey {
    /// The key for this name.
    #[must_use]
    pub fn of(name: &[u8]) -> Self {
        Self(hash(name))
    }
}

/// Configures a [`BalancedChannel`].
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use std::time::Duration;
/// use conclave_client::balance::{BalancedChannel, Instance, LeastRequests, ZoneFirst};
///
/// let (_lists, list) = tokio::sync::watch::channel(vec![Instance::new("a", "10.0.0.1:80")]);
/// let channel = BalancedChannel::builder()
///     .policy(ZoneFirst::new("zone-a", LeastRequests))
///     .connect_timeout(Duration::from_millis(500))
///     .timeout(Duration::from_secs(3))
///     .watch(list); // nothing is connected before the first call
/// assert_eq!(channel.snapshot().nodes().len(), 1);
/// # }
/// ```
#[derive(Debug)]
#[must_use = "a builder does nothing until it is given instances"]
pub struct ChannelBuilder {
    policy: Arc<dyn Balancer>,
    pub(super) snapshot: SnapshotOptions,
    breaker: BreakerOptions,
    pub(super) connect_timeout: Duration,
    timeout: Duration,
    /// Interval and timeout of HTTP/2 pings.
    pub(super) ping: Option<(Duration, Duration)>,
    pub(super) security: Security,
    outliers: OutlierOptions,
    endpoint: Option<String>,
}

impl ChannelBuilder {
    /// Uses another policy than [`PeakEwma`].
    pub fn policy(mut self, policy: impl Balancer + 'static) -> Self {
        self.policy = Arc::new(policy);
        self
    }

    /// Sets how the health of the list is judged, and how long the load of a new instance is ramped
    /// up.
    pub fn snapshot(mut self, options: SnapshotOptions) -> Self {
        self.snapshot = options;
        self
    }

    /// Sets when a failing instance gets no calls.
    pub fn breaker(mut self, options: BreakerOptions) -> Self {
        self.breaker = options;
        self
    }

    /// Sets when an instance gets no calls because it does worse than the others.
    pub fn outliers(mut self, options: OutlierOptions) -> Self {
        self.outliers = options;
        self
    }

    /// Sets up TLS for `https://` addresses, and for addresses without a scheme. Without this call
    /// `https://` addresses trust the system's certificate authorities, and addresses without a
    /// scheme are plaintext; `http://` addresses always are. If no certificate names the instances'
    /// addresses, set the expected name with [`Tls::server_name`].
    ///
    /// # Errors
    /// [`Error::Config`] if a TLS file cannot be used.
    pub fn tls(mut self, tls: Tls) -> Result<Self, Error> {
        self.security = Security::chosen(tls.follow()?);
        Ok(self)
    }

    /// Calls instances at their endpoint of this name instead of at their address
    /// ([`Register::endpoint`](crate::registry::Register::endpoint), [`Instance::endpoints`]):
    /// `host:port`, optionally with the scheme `http` or `https`. Instances without such an
    /// endpoint are left out.
    pub fn endpoint(mut self, name: impl Into<String>) -> Self {
        self.endpoint = Some(name.into());
        self
    }

    /// The instances that can be called, each with the address to call.
    pub(super) fn callable(&self, list: Vec<Instance>) -> Vec<Instance> {
        let Some(name) = &self.endpoint else { return list };
        let at_endpoint = |instance: Instance| {
            let address = instance.endpoints.get(name)?.clone();
            Some(Instance { address, ..instance })
        };
        list.into_iter().filter_map(at_endpoint).collect()
    }

    /// Time limit for making one connection. Default 2 s.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Time limit for each call until its answer begins, including the search for an instance.
    /// Default 10 s. A call may set a shorter one ([`tonic::Request::set_timeout`]), which counts
    /// from when an instance was found.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Probes connections with open calls by HTTP/2 pings at this interval. If an instance does not
    /// answer a ping within `timeout`, all calls on that connection fail. Off by default, because
    /// servers close connections that ping more often than they allow (grpc-go: every 5 min). A
    /// vanished peer is noticed without pings, after 30 s.
    pub fn keep_alive(mut self, interval: Duration, timeout: Duration) -> Self {
        self.ping = Some((interval, timeout));
        self
    }

    /// A channel to the instances in `list`, from its current value on. Must be called inside a
    /// tokio runtime.
    pub fn watch(self, list: watch::Receiver<Vec<Instance>>) -> BalancedChannel {
        self.build(list, None)
    }

    /// A channel to the instances that `lists` yielded last. Calls wait until the first list
    /// arrives. Must be called inside a tokio runtime.
    pub fn follow(
        self,
        lists: impl Stream<Item = Vec<Instance>> + Send + 'static,
    ) -> BalancedChannel {
        let (sender, list) = watch::channel(Vec::new());
        let feed = async move {
            let mut lists = std::pin::pin!(lists);
            while let Some(list) = lists.next().await {
                sender.send_replace(list);
            }
        };
        let feed = AbortOnDropHandle::new(tokio::spawn(feed));
        self.build(list, Some(Arc::new(feed)))
    }

    /// A channel to the instances in `list`, which `feed` keeps up to date.
    pub(crate) fn build(
        self,
        list: watch::Receiver<Vec<Instance>>,
        feed: Option<Arc<AbortOnDropHandle<()>>>,
    ) -> BalancedChannel {
        let table = Table::default();
        let mut source = Source { list, table: Arc::new(table), is_kept: false };
        source.take(&self);
        let outliers = Outliers::new(self.outliers, Instant::now());
        let shared = Shared { options: self, source: Mutex::new(source), outliers, _feed: feed };
        BalancedChannel { shared: Arc::new(shared) }
    }
}

/// A channel for generated clients that spreads its calls over the instances of a service.
///
/// A call for which no connection could be made has not left this process, so it is tried on other
/// instances; nothing else is ever sent twice. If the source of the list falls silent or sends an
/// empty list, the last good list stays in use, and [`BalancedChannel::serving`] says so. Cloning
/// is cheap and shares everything.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use conclave_client::balance::{BalancedChannel, Instance};
/// use conclave_client::pb::{RangeRequest, kv_client::KvClient};
///
/// let list = vec![Instance::new("a", "10.0.0.1:80"), Instance::new("b", "10.0.0.2:80")];
/// let (lists, receiver) = tokio::sync::watch::channel(list);
/// let channel = BalancedChannel::builder().watch(receiver);
/// let mut kv = KvClient::new(channel);
/// kv.range(RangeRequest::default()).await?;
/// lists.send(vec![Instance::new("b", "10.0.0.2:80")])?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct BalancedChannel {
    shared: Arc<Shared>,
}

/// The instances that a channel uses.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use conclave_client::balance::{BalancedChannel, Instance};
///
/// let (lists, list) = tokio::sync::watch::channel(vec![Instance::new("a", "10.0.0.1:80")]);
/// let channel = BalancedChannel::builder().watch(list);
/// assert!(!channel.serving().is_kept);
/// lists.send_replace(Vec::new()); // the source of the list has lost all of them
/// let serving = channel.serving();
/// assert!(serving.is_kept, "worth a line in the log");
/// assert_eq!(serving.instances[0].id, "a", "calls go there still");
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Serving {
    /// The instances that calls may go to.
    pub instances: Vec<Instance>,
    /// Whether this is an older list, kept because the last one received was empty or because its
    /// source has ended.
    pub is_kept: bool,
}

struct Shared {
    options: ChannelBuilder,
    source: Mutex<Source>,
    outliers: Outliers,
    _feed: Option<Arc<AbortOnDropHandle<()>>>,
}

impl BalancedChannel {
    /// Starts to configure a channel.
    pub fn builder() -> ChannelBuilder {
        ChannelBuilder {
            policy: Arc::new(PeakEwma),
            snapshot: SnapshotOptions::default(),
            breaker: BreakerOptions::default(),
            connect_timeout: Duration::from_secs(2),
            timeout: Duration::from_secs(10),
            ping: None,
            security: Security::default(),
            outliers: OutlierOptions::default(),
            endpoint: None,
        }
    }

    /// The instances in use at present.
    #[must_use]
    pub fn serving(&self) -> Serving {
        let table = self.shared.table();
        let nodes = table.snapshot.nodes().iter();
        let instances = nodes.map(|node| node.instance().clone()).collect();
        let source = self.shared.source.lock();
        Serving { instances, is_kept: source.is_kept || source.list.has_changed().is_err() }
    }

    /// The instances with what is known about them.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.shared.table().snapshot.clone()
    }
}

impl fmt::Debug for BalancedChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BalancedChannel").field("serving", &self.serving()).finish()
    }
}

impl Service<http::Request<Body>> for BalancedChannel {
    type Response = http::Response<Body>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        // The instance that must be ready is not known before the call.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move {
            let limit = shared.options.timeout;
            let deadline = later(Instant::now(), limit);
            match timeout_at(deadline.into(), shared.route(request, deadline)).await {
                Ok(answer) => answer,
                Err(_elapsed) => {
                    let reason = format!("no answer within {limit:?}");
                    Err(Status::deadline_exceeded(reason).into())
                }
            }
        })
    }
}

impl Shared {
    /// Sends a call to one instance after another until one could be connected to.
    async fn route(
        &self,
        request: http::Request<Body>,
        deadline: Instant,
    ) -> Result<http::Response<Body>, BoxError> {
        let table = self.filled_table().await?;
        let (parts, body) = request.into_parts();
        let key = parts.extensions.get::<RouteKey>().map(|key| key.0);
        let body = Resend::new(body);
        let mut tried = Vec::new();
        let mut failure: BoxError = Status::unavailable("no instance takes calls").into();
        while tried.len() < TRIES_MAX {
            let now = Instant::now();
            self.outliers.sweep(&table.snapshot, now);
            let ctx = Ctx { now, random: rand::random(), key, tried: &tried };
            let Some(pick) = self.options.policy.pick(&table.snapshot, &ctx) else { break };
            let id = pick.node.instance().id.clone();
            let Some(mut channel) = table.channels.get(&id).cloned() else {
                let reason = format!("the policy chose {id}, which is not in the list");
                return Err(Status::internal(reason).into());
            };
            let Self { options, .. } = self;
            let attempt = Attempt::begin(pick, &options.policy, options.breaker, deadline);
            let request = http::Request::from_parts(parts.clone(), body.handle());
            let sent = async {
                std::future::poll_fn(|cx| channel.poll_ready(cx)).await?;
                channel.call(request).await
            };
            match sent.await {
                Ok(response) => return Ok(attempt.answered(response)),
                Err(error) => {
                    let is_sent = !never_sent(&error) || body.is_touched();
                    tracing::debug!(instance = id, %error, is_sent, "call failed");
                    attempt.failed(is_sent);
                    if is_sent {
                        return Err(error.into());
                    }
                    failure = error.into();
                    tried.push(id);
                }
            }
        }
        Err(failure)
    }

    /// Waits until the table has an instance, and returns it.
    async fn filled_table(&self) -> Result<Arc<Table>, BoxError> {
        let mut list = self.source.lock().list.clone();
        loop {
            let table = self.table();
            if !table.snapshot.nodes().is_empty() {
                return Ok(table);
            }
            if list.wait_for(|list| !list.is_empty()).await.is_err() {
                return Err(Status::unavailable("no instance is known").into());
            }
            // A list of only unusable addresses must not make this a busy loop.
            if self.table().snapshot.nodes().is_empty() && list.changed().await.is_err() {
                return Err(Status::unavailable("no instance can be used").into());
            }
        }
    }

    fn table(&self) -> Arc<Table> {
        let mut source = self.source.lock();
        // Asks the value, not the channel: the last list counts even if its sender is gone.
        let is_new = source.list.borrow().has_changed();
        if is_new {
            source.take(&self.options);
        }
        Arc::clone(&source.table)
    }
}
