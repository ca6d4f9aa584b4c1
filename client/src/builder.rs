//! How a client is configured.

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
/// // What cannot be an endpoint is told now, not by the first call.
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
            // Above the 7 s that a server may take to give up on a proposal, so that the server's
            // answer, which says more than silence, comes first.
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

    /// Time allowed for each call, retries included. Default 10 s; more than 30 years are 30 years. Servers
    /// are told how much of it is left for an attempt (`grpc-timeout`), so that none works for who has given up.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Time allowed for making one connection. Default 2 s.
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

    /// Secures connections: to `https://` and `unixs://` endpoints, and to those without a scheme.
    /// Endpoints of these schemes are secured without it too, by the system's authorities; `http://`
    /// and `unix://` never are.
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Calls as this user. The token is asked for with the first call, and again whenever the server
    /// does not take it any more; a server that wants no user is called without one.
    pub fn user(mut self, name: impl Into<String>, password: impl Into<String>) -> Self {
        self.settings.login = Some(Arc::new(Login::new(name.into(), password.into())));
        self
    }

    /// Whether puts, deletions and transactions are sent so that the cluster remembers their answers for a
    /// while, if it can: then one whose answer was lost is sent again by this client, and takes effect once.
    /// Default yes; against a server of etcd it makes no difference. Without it they go as any etcd client
    /// sends them, which spares the cluster a small row for each, and one whose answer was lost is reported
    /// with [`Outcome::Unknown`](crate::Outcome::Unknown).
    pub fn remembered_writes(mut self, are_remembered: bool) -> Self {
        self.are_writes_remembered = are_remembered;
        self
    }

    /// How often calls are made again, all calls of the client and its clones together. Each call also pauses
    /// between its attempts: once it has been to all endpoints for a random time up to 20 ms, doubled with each
    /// round up to 1 s.
    pub fn retry_budget(mut self, budget: RetryBudget) -> Self {
        self.retry_budget = budget;
        self
    }

    /// Calls this with the headers of every call before it is sent (but for those that ask for a token), on the task that
    /// makes the call: for the context
    /// of a trace (`traceparent` of W3C Trace Context), which the server takes up with
    /// `--enable-distributed-tracing`.
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
    ///         // Of the span that the program is in; or by a propagator of the crate `opentelemetry`.
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

    /// Puts this before every key that the client sends, and takes it off the keys in the answers: keys and values,
    /// transactions, watches and settings, and the names of locks, elections, barriers, latches, counters and groups.
    /// A range ends with the namespace at the latest. As the package `namespace` of etcd's client in Go does; a
    /// lock of a name excludes the same one of such a client.
    ///
    /// What the server names itself stays whole: the keys of places and leaders, and the events of a server's log.
    /// Services, users, permissions and members are those of the cluster.
    pub fn namespace(mut self, prefix: impl AsRef<[u8]>) -> Self {
        self.namespace = Namespace::default().within(prefix.as_ref());
        self
    }

    /// Makes the client. Nothing is connected before the first call; call it inside a tokio runtime, on
    /// which the client's own tasks run: what it keeps alive is lost with that runtime.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Config`] if there is no endpoint, one cannot be understood, or a file of TLS cannot be
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
