//! Configuration of a client.

use std::{sync::Arc, time::Duration};

use http::HeaderMap;
use tokio::{runtime::Handle, time::Instant};

use crate::{
    budget::{Budget, RetryBudget},
    client::{Client, Pool},
    endpoint::Endpoint,
    error::Error,
    login::{Headers, Login},
    namespace::Namespace,
    tls::Tls,
};
use conclave_transport::Target;

/// Settings shared by all endpoints of a client.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) dial_timeout: Duration,
    pub(crate) ping_interval: Duration,
    pub(crate) ping_timeout: Duration,
    pub(crate) login: Option<Arc<Login>>,
    pub(crate) headers: Option<Headers>,
}

/// Configures a [`Client`]; start with [`Client::builder`].
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), conclave_client::Error> {
/// use std::time::Duration;
/// use conclave_client::{Client, Error};
///
/// let client = Client::builder(["10.0.0.1:2379", "10.0.0.2:2379", "10.0.0.3:2379"])
///     .timeout(Duration::from_secs(3))
///     .user("app", "correct horse")
///     .build()?;
/// assert_eq!(client.endpoints().len(), 3);
/// // An invalid endpoint is reported here, not by the first call.
/// let wrong = Client::builder(["ftp://10.0.0.1"]).build();
/// assert!(matches!(wrong, Err(Error::Config { .. })));
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until `build` is called"]
pub struct Builder {
    endpoints: Vec<String>,
    timeout: Duration,
    settings: Settings,
    tls: Option<Tls>,
    are_writes_remembered: bool,
    retry_budget: RetryBudget,
    namespace: Namespace,
}

impl Builder {
    pub(crate) fn new(endpoints: Vec<String>) -> Self {
        Self {
            endpoints,
            // Above the 7 s after which a server gives up on a proposal: the server's answer, which
            // says more than a local timeout, comes first.
            timeout: Duration::from_secs(10),
            settings: Settings {
                dial_timeout: Duration::from_secs(2),
                // etcd refuses clients that ping more often than every 5 s.
                ping_interval: Duration::from_secs(6),
                ping_timeout: Duration::from_secs(4),
                login: None,
                headers: None,
            },
            tls: None,
            are_writes_remembered: true,
            retry_budget: RetryBudget::default(),
            namespace: Namespace::default(),
        }
    }

    /// Time limit of each call, retries included. Default 10 s, capped at 30 years. Each attempt
    /// tells the server how much time is left (`grpc-timeout`), so that it does not work on
    /// abandoned calls.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Time limit for making one connection. Default 2 s.
    pub fn dial_timeout(mut self, timeout: Duration) -> Self {
        self.settings.dial_timeout = timeout;
        self
    }

    /// How often a connection with open requests is probed, and how long the answer may take
    /// before the connection counts as dead. Default 6 s and 4 s. etcd disconnects clients that
    /// probe more often than every 5 s.
    pub fn keep_alive(mut self, interval: Duration, timeout: Duration) -> Self {
        self.settings.ping_interval = interval;
        self.settings.ping_timeout = timeout;
        self
    }

    /// Sets up TLS for `https://` and `unixs://` endpoints, and for endpoints without a scheme.
    /// Without this call `https://` and `unixs://` endpoints trust the system's certificate
    /// authorities, and endpoints without a scheme are plaintext; `http://` and `unix://` always
    /// are.
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Calls as this user. The first call fetches a token; a new one is fetched when the server no
    /// longer accepts it. If the server has authentication disabled, calls carry no token.
    pub fn user(mut self, name: impl Into<String>, password: impl Into<String>) -> Self {
        self.settings.login = Some(Arc::new(Login::new(name.into(), password.into())));
        self
    }

    /// Whether the cluster remembers the answers of puts, deletions and transactions for a while,
    /// if it can. A write whose answer was lost is then sent again by this client, and takes effect
    /// once. Default yes; no effect against etcd. If no, writes are sent as any etcd client sends
    /// them, which saves the cluster a small row for each, and a write whose answer was lost is
    /// reported with [`Outcome::Unknown`](crate::Outcome::Unknown).
    pub fn remembered_writes(mut self, are_remembered: bool) -> Self {
        self.are_writes_remembered = are_remembered;
        self
    }

    /// Limits how often calls are retried, for all calls of the client and its clones together.
    /// Besides, each call pauses between its attempts: once it has tried all endpoints, for a
    /// random time of up to 20 ms, doubled with each round up to 1 s.
    pub fn retry_budget(mut self, budget: RetryBudget) -> Self {
        self.retry_budget = budget;
        self
    }

    /// Calls `add` with the headers of every call before it is sent (except those that fetch a
    /// token), on the task that makes the call. Meant for trace context (`traceparent` of W3C Trace
    /// Context), which the server uses with `--enable-distributed-tracing`.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), conclave_client::Error> {
    /// # mod opentelemetry { pub fn traceparent() -> String {
    /// #     "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned()
    /// # } }
    /// use conclave_client::{Client, http::HeaderValue};
    ///
    /// let client = Client::builder(["127.0.0.1:2379"])
    ///     .headers(|headers| {
    ///         // From the program's current span, or by a propagator of the crate `opentelemetry`.
    ///         if let Ok(context) = HeaderValue::try_from(opentelemetry::traceparent()) {
    ///             headers.insert("traceparent", context);
    ///         }
    ///     })
    ///     .build()?;
    /// # Ok(()) }
    /// ```
    pub fn headers(mut self, add: impl Fn(&mut HeaderMap) + Send + Sync + 'static) -> Self {
        self.settings.headers = Some(Headers::new(add));
        self
    }

    /// Puts this prefix before every key that the client sends and removes it from the keys in the
    /// answers. It applies to keys and values, transactions, watches and settings, and to the names
    /// of locks, elections, barriers, latches, counters and groups. A range never reaches beyond
    /// the namespace. It works as the package `namespace` of etcd's Go client does: a lock name
    /// excludes the same name locked by such a client.
    ///
    /// Names that the server makes stay whole: the keys of lock places and leaders, and the events
    /// of a server's log. Services, users, permissions and members belong to the whole cluster.
    pub fn namespace(mut self, prefix: impl AsRef<[u8]>) -> Self {
        self.namespace = Namespace::default().within(prefix.as_ref());
        self
    }

    /// Makes the client. It connects on the first call. Must be called inside a tokio runtime,
    /// which then runs the client's background tasks: the sessions and leases that it keeps alive
    /// are lost when that runtime ends.
    ///
    /// # Panics
    /// If called outside a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Config`] if there is no endpoint, one cannot be parsed, or a TLS file cannot be
    /// used.
    pub fn build(self) -> Result<Client, Error> {
        if self.endpoints.is_empty() {
            return Err(Error::Config { message: "no endpoints given".to_owned() });
        }
        let prefers_tls = self.tls.is_some();
        let targets = self.endpoints.into_iter().map(|address| {
            let target = Target::parse(&address, prefers_tls);
            target.map(|target| (address, target)).map_err(|message| Error::Config { message })
        });
        let targets = targets.collect::<Result<Vec<_>, _>>()?;
        let needs_tls = targets.iter().any(|(_, target)| target.is_tls());
        let tls = needs_tls.then(|| self.tls.unwrap_or_default().follow()).transpose()?;
        let endpoint = |(address, target)| {
            Arc::new(Endpoint::new(address, target, tls.clone(), &self.settings))
        };
        let endpoints = targets.into_iter().map(endpoint).collect();
        let budget = Arc::new(Budget::new(self.retry_budget, Instant::now()));
        let pool = Pool::new(endpoints, Handle::current(), self.are_writes_remembered, budget);
        Ok(Client::new(pool, self.timeout, self.namespace))
    }
}
