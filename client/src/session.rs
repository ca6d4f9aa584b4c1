//! Sessions: one lease and one stream for everything a process holds.
//!
//! A session is a lease with an owner. All sessions of a client share one stream; one small message
//! every third of the shortest TTL keeps all of them alive. This process judges a session by its
//! own monotonic clock, counted from when a heartbeat was *sent*. So the session counts as lost
//! here before the server can give what it held to others, even if answers are delayed or lost. On
//! Linux that clock also runs while the machine is suspended.
//!
//! A server that only speaks etcd's API knows no owners: there a session is a plain lease. Locks
//! and candidacies of such a session use etcd's recipe, each with a lease of its own.
//!
//! ```no_run
//! # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
//! use std::time::Duration;
//!
//! let session = client.session().ttl(Duration::from_secs(10)).owner("worker-7").await?;
//! client.put("workers/7", "busy").lease(session.id()).await?;
//! let lock = session.lock("jobs/1").await?;
//! let lost = session.lost();
//! tokio::select! {
//!     () = work() => lock.release().await?,
//!     () = lost.cancelled() => eprintln!("somebody else may work on it now"),
//! }
//! session.close().await?;
//! # Ok(())
//! # }
//! # async fn work() {}
//! ```

mod heart;
pub(crate) mod owner;

use std::{
    fmt,
    future::{Future, IntoFuture},
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use conclave_proto::v1::{
    SessionBeginRequest, SessionEndRequest, SessionInfo, SessionListRequest, SessionTag,
    session_service_client::SessionServiceClient,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    client::Client,
    error::{Error, Outcome},
    moment::Moment,
    once::{Requests, Ticket},
    pulse::Pulse,
    registry::Entries,
};

pub(crate) use heart::{Cleanup, Hearing, Heart, are_held};

/// A session's TTL if none was requested.
pub(crate) const TTL: Duration = Duration::from_secs(10);
/// Length of the random ids by which the server recognises requests, in bytes.
const REQUEST_ID_BYTES: usize = 16;

/// What this process knows about its session.
///
/// ```no_run
/// # async fn example(session: conclave_client::Session) -> Result<(), conclave_client::Error> {
/// use conclave_client::SessionState;
///
/// let mut states = session.state();
/// while states.changed().await.is_ok() {
///     match *states.borrow_and_update() {
///         SessionState::Active => println!("take new work"),
///         SessionState::Jeopardy => println!("end what is under way, take nothing new"),
///         SessionState::Lost => break, // and begin another session
///     }
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SessionState {
    /// The last heartbeat was answered in time.
    Active,
    /// Two thirds of the TTL passed since the last answered heartbeat: what the session holds is
    /// still held, but do not begin anything that takes long.
    Jeopardy,
    /// It ended, or may have. Final.
    Lost,
}

impl Client {
    /// Starts to describe a session; await the result to begin it.
    pub fn session(&self) -> Begin {
        let (client, owner, metadata) = (self.clone(), String::new(), Vec::new());
        Begin { client, ttl: TTL, owner, metadata, limit: self.timeout() }
    }

    /// All sessions of the cluster, with their owners and keys.
    ///
    /// # Errors
    /// See [`Error`]. Many sessions are read in pages; if one page fails, none is returned.
    pub async fn sessions(&self) -> Result<Vec<SessionInfo>, Error> {
        let mut sessions = Vec::new();
        let mut from = 0;
        loop {
            let request = SessionListRequest { from, limit: 0 };
            let call = |channel| async move {
                let client = SessionServiceClient::new(channel);
                client.max_decoding_message_size(usize::MAX).list(request).await
            };
            let mut page = self.read(call).await?;
            sessions.append(&mut page.sessions);
            if page.next <= from {
                return Ok(sessions);
            }
            from = page.next;
        }
    }

    /// Ends a session and releases everything it holds, whether or not this client began it.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no such session (any more). See [`Error`].
    pub async fn session_end(&self, id: i64) -> Result<(), Error> {
        let call = |channel| async move {
            SessionServiceClient::new(channel).end(SessionEndRequest { id }).await
        };
        // Retried as if it were a read: ending a session twice does no harm.
        match self.read(call).await {
            Err(Error::Unimplemented(_)) => self.lease_revoke(id).await.map(drop),
            ended => ended.map(drop),
        }
    }
}

/// A random id by which the server recognises a request that is sent again.
pub(crate) fn request_id() -> Bytes {
    Bytes::copy_from_slice(&rand::random::<[u8; REQUEST_ID_BYTES]>())
}

/// A random id for a session or lease. The client chooses it so that it can end what it began
/// without having heard the answer.
pub(crate) fn new_id() -> i64 {
    i64::try_from(rand::random::<u64>() >> 1).unwrap_or(i64::MAX).max(1)
}

/// A session to be begun; see [`Client::session`].
///
/// ```no_run
/// # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
/// use std::time::Duration;
///
/// // What it holds outlives a process that is killed by about 5 s.
/// let begin = client.session().ttl(Duration::from_secs(5)).owner("worker-7");
/// let session = begin.tag("host", "10.0.0.7").tag("version", "1.4.0").await?;
/// println!("session {:x} with a TTL of {:?}", session.id(), session.ttl());
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
#[must_use = "a session does not begin until it is awaited"]
pub struct Begin {
    client: Client,
    ttl: Duration,
    owner: String,
    metadata: Vec<SessionTag>,
    /// Time limit of the call that begins it.
    limit: Duration,
}

impl Begin {
    /// How long the session outlives its last heartbeat, in whole seconds, rounded up. The server
    /// raises it to at least the time that outlives an election (2 s by default). Default 10 s.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// Who holds the session, for people who inspect locks and sessions.
    pub fn owner(mut self, owner: impl Into<String>) -> Self {
        self.owner = owner.into();
        self
    }

    /// Adds a detail about the owner, for people.
    pub fn tag(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata.push(SessionTag { name: name.into(), value: value.into() });
        self
    }

    /// Limits the call that begins it to `limit`, when it is one step of another call.
    pub(crate) fn within(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    fn ttl_seconds(&self) -> i64 {
        let seconds = i64::try_from(self.ttl.as_secs()).unwrap_or(i64::MAX);
        seconds.saturating_add(i64::from(self.ttl.subsec_nanos() > 0))
    }

    async fn begin(self) -> Result<Session, Error> {
        match self.clone().native().await {
            Err(Error::Unimplemented(_)) => self.leased().await,
            begun => begun,
        }
    }

    /// Begins it on a server that knows only leases.
    async fn leased(self) -> Result<Session, Error> {
        let client = self.client.clone();
        let grant = async move {
            let sent = Moment::now();
            let client = self.client.with_timeout(self.limit);
            let lease = client.lease_grant_or_revoke(self.ttl_seconds()).await?;
            Ok(self.keep((lease.id, lease.ttl), sent, true))
        };
        client.begin(grant).await
    }

    /// Begins it on a server that knows sessions. If this is dropped, the session ends.
    pub(crate) async fn native(self) -> Result<Session, Error> {
        self.client.clone().begin(self.request()).await
    }

    async fn request(self) -> Result<Session, Error> {
        let request = SessionBeginRequest {
            id: new_id(),
            ttl_seconds: self.ttl_seconds(),
            request_id: request_id(),
            owner: self.owner.clone(),
            metadata: self.metadata.clone(),
        };
        let sent = Moment::now();
        // The server recognises the `request_id` of a retry.
        let call = |channel| {
            let request = request.clone();
            async move { SessionServiceClient::new(channel).begin(request).await }
        };
        match self.client.with_timeout(self.limit).read(call).await {
            Ok(begun) => Ok(self.keep((begun.id, begun.ttl_seconds), sent, false)),
            Err(error) => {
                if error.outcome() == Outcome::Unknown {
                    let client = self.client.clone();
                    // Tried once: otherwise the TTL ends it.
                    self.client.spawn(async move { drop(client.session_end(request.id).await) });
                }
                Err(error)
            }
        }
    }

    /// Keeps the session with this id and TTL (seconds) alive; it was requested at `sent`.
    fn keep(self, (id, ttl): (i64, i64), sent: Moment, is_lease: bool) -> Session {
        let ttl = Duration::from_secs(u64::try_from(ttl).unwrap_or(0));
        let lost = CancellationToken::new();
        let heart = Arc::clone(self.client.heart());
        let begun = heart::Begun { id, ttl, sent, is_lease, lost: lost.clone() };
        let state = heart.keep(&self.client, begun);
        let pulse = Pulse::of_session(lost, Arc::clone(&heart), id);
        let (client, requests, entries) = (self.client, Arc::default(), Entries::default());
        let inner = Inner { client, id, ttl, state, pulse, heart, requests, entries, is_lease };
        Session { inner: Arc::new(inner) }
    }
}

impl IntoFuture for Begin {
    type Output = Result<Session, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.begin())
    }
}

/// A session that is kept alive; clones are the same session.
///
/// It ends with [`Session::close`], or in the background when the last clone and the last guard
/// made from it are dropped. If that fails, the server ends it when its TTL has passed.
///
/// ```no_run
/// # async fn example(session: conclave_client::Session) -> Result<(), conclave_client::Error> {
/// // One session for all that this process holds: if it is lost, all of it is.
/// let membership = session.group("workers").join("10.0.0.7:80").await?;
/// let work = async { session.counter("jobs/done").add(1).await };
/// let done = session.run(work).await??; // dropped if the session is lost
/// println!("{} jobs are done", done.value);
/// membership.leave().await?;
/// session.close().await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
#[must_use = "the session ends when it is dropped"]
pub struct Session {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client,
    id: i64,
    ttl: Duration,
    state: watch::Receiver<SessionState>,
    pulse: Pulse,
    heart: Arc<Heart>,
    requests: Arc<Requests>,
    entries: Entries,
    is_lease: bool,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.heart.end(self.id);
        self.pulse.lost().cancel();
    }
}

impl Session {
    /// The session's id. It is a lease id, so it can be passed to [`crate::kv::Put::lease`].
    #[must_use]
    pub fn id(&self) -> i64 {
        self.inner.id
    }

    /// The TTL that the server granted.
    #[must_use]
    pub fn ttl(&self) -> Duration {
        self.inner.ttl
    }

    /// The session's state, as a receiver that can wait for changes.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<SessionState> {
        self.inner.state.clone()
    }

    /// Cancelled when the session is lost. As long as this process gets to run, that is before the
    /// server can give what the session held to others.
    #[must_use]
    pub fn lost(&self) -> CancellationToken {
        self.inner.pulse.lost().clone()
    }

    /// Whether the session may have ended, by the clock at this moment. Correct even in a process
    /// that was stopped for a while and has not noticed yet.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.inner.pulse.is_lost()
    }

    /// Waits until the session is in jeopardy or lost: time to finish what needs it. Cancel-safe.
    pub async fn jeopardy(&self) {
        let mut state = self.state();
        // If the sender is gone, nothing keeps the session alive any more.
        state.wait_for(|state| *state != SessionState::Active).await.ok();
    }

    /// Runs `work` until it ends or the session is lost; in the latter case `work` is dropped.
    ///
    /// # Errors
    /// [`Error::Lost`] if the session was lost: what `work` had begun may be half done.
    pub async fn run<T>(&self, work: impl Future<Output = T>) -> Result<T, Error> {
        self.inner.pulse.run(pin!(work)).await
    }

    /// Ends the session and releases everything it holds. Clones and guards then find it lost.
    ///
    /// # Errors
    /// See [`Error`]; the call is then tried once more in the background, and the session ends at
    /// the latest when its TTL has passed.
    pub async fn close(self) -> Result<(), Error> {
        let ending = self.inner.heart.forget(self.inner.id);
        match self.inner.client.session_end(self.inner.id).await {
            // `NotFound`: it had ended already.
            Ok(()) | Err(Error::NotFound(_)) => {
                ending.done();
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// The client that began the session.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.inner.client
    }

    /// Whether the session is a plain lease for the server.
    pub(crate) fn is_lease(&self) -> bool {
        self.inner.is_lease
    }

    /// Numbers a new request, which the cluster remembers with the session. If too many requests
    /// are under way, waits for at most the client's time limit.
    pub(crate) async fn request(&self) -> Result<Ticket, Error> {
        self.inner.requests.begin(self.inner.id, self.inner.client.timeout()).await
    }

    /// The numbered requests of this session.
    pub(crate) fn requests(&self) -> &Arc<Requests> {
        &self.inner.requests
    }

    /// The registry instances of this session.
    pub(crate) fn entries(&self) -> &Entries {
        &self.inner.entries
    }

    pub(crate) fn pulse(&self) -> &Pulse {
        &self.inner.pulse
    }

    pub(crate) fn heart(&self) -> &Arc<Heart> {
        &self.inner.heart
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("id", &self.inner.id)
            .field("ttl", &self.inner.ttl)
            .field("state", &*self.inner.state.borrow())
            .finish_non_exhaustive()
    }
}
