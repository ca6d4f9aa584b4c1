//! The client: a cheap handle on a pool of endpoints, and the loop that calls them.
//!
//! Fail-over is implemented here because tonic's balancer keeps picking an endpoint that cannot be
//! connected to (with one live and one dead endpoint, a third of the calls fail).

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::oneshot,
    time::{Instant, sleep_until, timeout, timeout_at},
};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tonic::{Code, Response, Status};
use tracing::{Instrument as _, Span, field};

use crate::{
    backoff::Backoff,
    budget::Budget,
    builder::Builder,
    deadline,
    endpoint::Endpoint,
    error::{Error, Outcome},
    login::{ATTEMPT, Channel, Logins},
    moment::LONGEST,
    namespace::Namespace,
    retry::Retry,
    session::Heart,
    writes::Writers,
};

/// A client of one cluster. Cloning is cheap and shares the connections.
///
/// ```no_run
/// # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
/// use std::time::Duration;
///
/// client.ready().await?;
/// for member in client.each() {
///     let status = member.with_timeout(Duration::from_secs(1)).status().await?;
///     println!("{:?} has applied {}", member.endpoints(), status.raft_applied_index);
/// }
/// client.put("color", "red").await?;
/// client.close().await; // dropped guards have released what they held
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Client {
    pool: Arc<Pool>,
    timeout: Duration,
    namespace: Namespace,
}

impl Client {
    /// Starts to configure a client of the cluster behind `endpoints` (`host:port`, or a URL
    /// with the scheme http, https, unix or unixs; see [`Builder::tls`]).
    pub fn builder<I, S>(endpoints: I) -> Builder
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        Builder::new(endpoints.into_iter().map(Into::into).collect())
    }

    pub(crate) fn new(pool: Pool, timeout: Duration, namespace: Namespace) -> Self {
        Self { pool: Arc::new(pool), timeout: timeout.min(LONGEST), namespace }
    }

    /// The same client with another time limit for each call, capped at 30 years.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { timeout: timeout.min(LONGEST), ..self.clone() }
    }

    /// The same client restricted to the keys that begin with `prefix`, as by
    /// [`Builder::namespace`]. The prefix is added to the namespace that this client has already.
    ///
    /// ```no_run
    /// # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
    /// let team = client.with_namespace("/team-a/");
    /// team.put("color", "red").await?;
    /// assert!(client.get("/team-a/color").await?.one().is_some_and(|kv| kv.value == "red"));
    /// // The keys of this namespace, and of no other.
    /// for kv in &team.get("").prefix().await?.kvs {
    ///     println!("{}", String::from_utf8_lossy(&kv.key)); // color
    /// }
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn with_namespace(&self, prefix: impl AsRef<[u8]>) -> Self {
        Self { namespace: self.namespace.within(prefix.as_ref()), ..self.clone() }
    }

    /// The same client for the whole key space.
    pub(crate) fn bare(&self) -> Self {
        Self { namespace: Namespace::default(), ..self.clone() }
    }

    pub(crate) fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The time limit of each call.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// The addresses as given to the builder, in that order.
    #[must_use]
    pub fn endpoints(&self) -> Vec<String> {
        self.pool.endpoints.iter().map(|endpoint| endpoint.address().to_owned()).collect()
    }

    /// One client for each endpoint, in the order of [`Client::endpoints`]. Each talks only to its
    /// endpoint; all share this client's connections.
    #[must_use]
    pub fn each(&self) -> Vec<Self> {
        let single = |endpoint: &Arc<Endpoint>| {
            let Pool { runtime, are_writes_remembered, budget, .. } = &*self.pool;
            let (runtime, budget) = (runtime.clone(), Arc::clone(budget));
            let endpoints = vec![Arc::clone(endpoint)];
            let pool = Pool::new(endpoints, runtime, *are_writes_remembered, budget);
            Self::new(pool, self.timeout, self.namespace.clone())
        };
        self.pool.endpoints.iter().map(single).collect()
    }

    /// The channel of the endpoint that the next call would use, for calling generated gRPC clients
    /// directly: no time limit, no retries, and errors stay plain statuses.
    #[must_use]
    pub fn channel(&self) -> Channel {
        self.pool.pick(&[]).channel()
    }

    /// Waits until the cluster serves a linearizable read.
    ///
    /// # Errors
    /// The error of the read, after retries within the time limit.
    pub async fn ready(&self) -> Result<(), Error> {
        match self.get("health").count_only().await {
            // Whoever may not read this key has still been answered by a quorum.
            Err(error) if error.is_permission_denied() => Ok(()),
            answer => answer.map(drop),
        }
    }

    /// Waits, at most for the time limit, until the background tasks of guards are done, such as
    /// releases after a drop. Tasks of guards that still exist are waited for, too. Call it at the
    /// end of a program: tasks end with the runtime, and what was not released then stays until its
    /// TTL has passed.
    pub async fn close(&self) {
        self.pool.tasks.close();
        if timeout(self.timeout, self.pool.tasks.wait()).await.is_err() {
            tracing::debug!(tasks = self.pool.tasks.len(), "closed while guards were at work");
        }
        self.pool.tasks.reopen();
    }

    /// Runs a cleanup task that outlives its guard, on the runtime of the connections, whatever
    /// runtime the caller is on.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        drop(self.pool.tasks.spawn_on(task, &self.pool.runtime));
    }

    /// Runs a call that begins something to its end, even if the caller drops this future. Nobody
    /// takes the answer then, so the guard in it is dropped and ends what was begun.
    pub(crate) async fn begin<T: Send + 'static>(
        &self,
        call: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        let (done, answer) = oneshot::channel();
        let call = async move { drop(done.send(call.await)) };
        self.spawn(call.in_current_span());
        answer.await.unwrap_or_else(|_runtime_ended| {
            let status = Status::unavailable("the runtime that the client was built on has ended");
            Err(Error::Unavailable { endpoint: String::new(), status, outcome: Outcome::Unknown })
        })
    }

    /// Runs a task on the runtime of the connections until its handle is dropped.
    pub(crate) fn task<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> AbortOnDropHandle<T> {
        AbortOnDropHandle::new(self.pool.runtime.spawn(task))
    }

    /// Calls with retries on other endpoints within the time limit. For requests that change
    /// nothing.
    pub(crate) async fn read<T, F, C>(&self, call: C) -> Result<T, Error>
    where
        F: Future<Output = Result<Response<T>, Status>> + Send,
        C: Fn(Channel) -> F + Send,
    {
        self.call(call, Retry::Read).await.map(|(answer, _)| answer)
    }

    /// Calls with retries only if the request provably did nothing. For requests that change
    /// something.
    pub(crate) async fn write<T, F, C>(&self, call: C) -> Result<T, Error>
    where
        F: Future<Output = Result<Response<T>, Status>> + Send,
        C: Fn(Channel) -> F + Send,
    {
        self.call(call, Retry::Write).await.map(|(answer, _)| answer)
    }

    /// Calls with retries even if the outcome is unknown. For requests that change something and
    /// that the cluster recognises when they are sent again.
    pub(crate) async fn repeat<T, F, C>(&self, call: C) -> Result<T, Error>
    where
        F: Future<Output = Result<Response<T>, Status>> + Send,
        C: Fn(Channel) -> F + Send,
    {
        self.call(call, Retry::Once).await.map(|(answer, _)| answer)
    }

    /// The retry loop of all calls. Returns the answer together with the error of an earlier
    /// attempt whose outcome is unknown, if there was one. Calls that are retried whatever the
    /// outcome of an attempt give each attempt the remaining time divided by the number of
    /// endpoints left to try.
    pub(crate) async fn call<T, F, C>(
        &self,
        call: C,
        retry: Retry,
    ) -> Result<(T, Option<Error>), Error>
    where
        F: Future<Output = Result<Response<T>, Status>> + Send,
        C: Fn(Channel) -> F + Send,
    {
        let started = Instant::now();
        let deadline = started + self.timeout;
        let shares = retry.shares(self.pool.endpoints.len());
        let mut backoff = Backoff::default();
        let mut tried: Vec<usize> = Vec::new();
        let mut logins = Logins::default();
        let mut doubt = None;
        let mut reason = None;
        let mut attempts = 0_u32;
        loop {
            let index = self.pool.choose(&tried);
            let endpoint = &self.pool.endpoints[index];
            let shares = u32::try_from(shares.saturating_sub(tried.len()).max(1)).unwrap_or(1);
            let now = Instant::now();
            let until = now + deadline.saturating_duration_since(now) / shares;
            attempts += 1;
            // `method` is filled in by the channel.
            let span = tracing::debug_span!(
                ATTEMPT,
                method = field::Empty,
                endpoint = endpoint.address(),
                number = attempts,
                outcome = field::Empty,
            );
            // The server is told the deadline, so that it does not work on an abandoned call.
            let channel = endpoint.channel().until(until);
            let attempt = self.attempt(endpoint, until, (call(channel), &span));
            let error = match attempt.instrument(span.clone()).await {
                Ok(answer) => {
                    self.pool.budget.earn();
                    return Ok((answer, doubt));
                }
                Err(error) => error,
            };
            if logins.may_help(&error, endpoint) {
                continue;
            }
            let waited = started.elapsed().min(self.timeout);
            if !retry.covers(&error) {
                return Err(retry.verdict(doubt, reason, error).after(waited));
            }
            tracing::debug!(endpoint = endpoint.address(), %error, "retrying");
            tried.push(index);
            let mut next = Instant::now();
            if tried.len() == self.pool.endpoints.len() {
                tried.clear();
                next += backoff.next();
            }
            let Some(next) = self.pool.budget.take(next, deadline) else {
                return Err(retry.verdict(doubt, reason, error).after(waited));
            };
            match error {
                error if error.outcome() == Outcome::Unknown => doubt = Some(error),
                error => reason = Some(error),
            }
            sleep_until(next).await;
        }
    }

    async fn attempt<T>(
        &self,
        endpoint: &Endpoint,
        until: Instant,
        (call, span): (impl Future<Output = Result<Response<T>, Status>>, &Span),
    ) -> Result<T, Error> {
        let _in_flight = endpoint.enter();
        // Either this timer or the server notices first that the time is over.
        let ended = match timeout_at(until, call).await {
            Ok(Err(status)) if deadline::is_over(&status) => Err(()),
            Ok(ended) => Ok(ended),
            Err(_elapsed) => Err(()),
        };
        let code = match &ended {
            Ok(Ok(_)) => Code::Ok,
            Ok(Err(status)) => status.code(),
            Err(()) => Code::DeadlineExceeded,
        };
        span.record("outcome", field::debug(code));
        match ended {
            Ok(Ok(response)) => {
                endpoint.succeeded();
                Ok(response.into_inner())
            }
            Ok(Err(status)) => {
                let error = Error::from_status(status, endpoint.address());
                if error.is_unavailable() {
                    endpoint.failed();
                } else {
                    endpoint.succeeded();
                }
                Err(error)
            }
            Err(()) => {
                endpoint.failed();
                Err(Error::Deadline {
                    outcome: Outcome::Unknown,
                    endpoint: endpoint.address().to_owned(),
                    timeout: self.timeout,
                })
            }
        }
    }

    /// The heartbeats of all clients that share these connections.
    pub(crate) fn heart(&self) -> &Arc<Heart> {
        &self.pool.heart
    }

    /// The numbered writes of all clients that share these connections.
    pub(crate) fn writers(&self) -> &Arc<Writers> {
        &self.pool.writers
    }

    /// The endpoint to open the next stream on.
    pub(crate) fn endpoint(&self) -> Arc<Endpoint> {
        Arc::clone(self.pool.pick(&[]))
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("endpoints", &self.endpoints())
            .field("timeout", &self.timeout)
            .field("namespace", self.namespace.prefix())
            .finish()
    }
}

/// The endpoints of a client.
#[derive(Debug)]
pub(crate) struct Pool {
    endpoints: Vec<Arc<Endpoint>>,
    rotation: AtomicUsize,
    /// The runtime of the connections.
    runtime: Handle,
    tasks: TaskTracker,
    heart: Arc<Heart>,
    are_writes_remembered: bool,
    writers: Arc<Writers>,
    budget: Arc<Budget>,
}

impl Pool {
    pub(crate) fn new(
        endpoints: Vec<Arc<Endpoint>>,
        runtime: Handle,
        are_writes_remembered: bool,
        budget: Arc<Budget>,
    ) -> Self {
        assert!(!endpoints.is_empty(), "the builder refuses a client without endpoints");
        let start = rand::random_range(0..endpoints.len());
        let (rotation, tasks) = (AtomicUsize::new(start), TaskTracker::new());
        let writers = Arc::new(Writers::new(are_writes_remembered));
        let heart = Arc::default();
        Self { endpoints, rotation, runtime, tasks, heart, are_writes_remembered, writers, budget }
    }

    fn pick(&self, tried: &[usize]) -> &Arc<Endpoint> {
        &self.endpoints[self.choose(tried)]
    }

    /// The best endpoint that is not in `tried`; endpoints of equal rank take turns.
    fn choose(&self, tried: &[usize]) -> usize {
        let count = self.endpoints.len();
        let start = self.rotation.fetch_add(1, Ordering::Relaxed);
        (0..count)
            .map(|offset| start.wrapping_add(offset) % count)
            .filter(|index| !tried.contains(index))
            .min_by_key(|index| self.endpoints[*index].rank())
            .unwrap_or(start % count)
    }
}
