//! Sessions: one lease and one stream for everything a process holds.
//!
//! A session is a lease with an owner. All sessions of a client share one stream, on which one small
//! message every third of the shortest TTL keeps all of them alive. What is known about a session is
//! judged by this process's own monotonic clock, from the moment a heartbeat was *sent*: so it counts
//! as lost here before the server can give to others what it held, whatever happened to answers. On Linux
//! that clock goes on while the machine is suspended.
//!
//! From a server that speaks etcd's API only a session is a lease of which nobody knows the owner. Locks
//! and candidacies of such a session are turns of etcd's recipe, each with a lease of its own.
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
    error::Error,
    moment::Moment,
    once::{Requests, Ticket},
    pulse::Pulse,
    registry::Entries,
};

pub(crate) use heart::{Cleanup, Hearing, Heart, are_held};

/// A session's TTL if none is asked for.
pub(crate) const TTL: Duration = Duration::from_secs(10);
/// Bytes of the random numbers by which requests are recognised.
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionState {
    /// The server renewed it lately.
    Active,
    /// Two thirds of the TTL passed since the last heartbeat that was answered: what the session holds
    /// is held still, but do not begin anything that takes long.
    Jeopardy,
    /// It ended, or may have. Final.
    Lost,
}

impl Client {
    /// Starts to describe a session; await it to begin it.
    pub fn session(&self) -> Begin {
        let (client, owner, metadata) = (self.clone(), String::new(), Vec::new());
        Begin { client, ttl: TTL, owner, metadata, limit: self.timeout() }
    }

    /// All sessions of the cluster, with their owners and keys.
    ///
    /// # Errors
    /// See [`Error`]. The answer to many sessions comes in pages: none is returned if one fails.
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

    /// Ends a session, whoever began it, and everything it holds.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no such session (any more). See [`Error`].
    pub async fn session_end(&self, id: i64) -> Result<(), Error> {
        let call = |channel| async move {
            SessionServiceClient::new(channel).end(SessionEndRequest { id }).await
        };
        // Ending it twice does no harm.
        match self.read(call).await {
            Err(Error::Unimplemented(_)) => self.lease_revoke(id).await.map(drop),
            ended => ended.map(drop),
        }
    }
}

/// A random number by which the server recognises a request that is sent again.
pub(crate) fn request_id() -> Bytes {
    Bytes::copy_from_slice(&rand::random::<[u8; REQUEST_ID_BYTES]>())
}

/// A session that is to begin; see [`Client::session`].
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
    /// Time for the call that begins it.
    limit: Duration,
}

impl Begin {
    /// How long the session outlives the last heartbeat: whole seconds, rounded up, at least what
    /// outlives an election (2 s by default). Default 10 s.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// Who holds it, for people who look at locks and sessions.
    pub fn owner(mut self, owner: impl Into<String>) -> Self {
        self.owner = owner.into();
        self
    }

    /// More about the owner, for people.
    pub fn tag(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata.push(SessionTag { name: name.into(), value: value.into() });
        self
    }

    /// As part of a call that may take so long.
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

    /// From a server that knows leases only.
    async fn leased(self) -> Result<Session, Error> {
        let sent = Moment::now();
        let lease = self.client.with_timeout(self.limit).lease_grant(self.ttl_seconds(), 0).await?;
        Ok(self.keep((lease.id, lease.ttl), sent, true))
    }

    /// From a server that knows sessions.
    pub(crate) async fn native(self) -> Result<Session, Error> {
        let request = SessionBeginRequest {
            id: i64::try_from(rand::random::<u64>() >> 1).unwrap_or(i64::MAX).max(1),
            ttl_seconds: self.ttl_seconds(),
            request_id: request_id(),
            owner: self.owner.clone(),
            metadata: self.metadata.clone(),
        };
        let sent = Moment::now();
        // The server recognises a repetition.
        let call = |channel| {
            let request = request.clone();
            async move { SessionServiceClient::new(channel).begin(request).await }
        };
        let begun = self.client.with_timeout(self.limit).read(call).await?;
        Ok(self.keep((begun.id, begun.ttl_seconds), sent, false))
    }

    /// The session with this id and TTL in seconds, which was asked for then.
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
/// It ends with [`Session::close`], or in the background when the last clone and the last guard made
/// from it are dropped; if that fails too, the server ends it when its TTL has passed.
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
    /// Its id, which is a lease id: for [`crate::kv::Put::lease`].
    #[must_use]
    pub fn id(&self) -> i64 {
        self.inner.id
    }

    /// The TTL that the server granted.
    #[must_use]
    pub fn ttl(&self) -> Duration {
        self.inner.ttl
    }

    /// What is known now, and a way to wait for changes.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<SessionState> {
        self.inner.state.clone()
    }

    /// Cancelled when the session is lost: before the server can give what it held to others, as long
    /// as this process gets to run.
    #[must_use]
    pub fn lost(&self) -> CancellationToken {
        self.inner.pulse.lost().clone()
    }

    /// Whether the session may have ended, by the clock and at this moment: right also in a process that
    /// was stopped for a while and has not noticed yet.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.inner.pulse.is_lost()
    }

    /// Waits until the session is in jeopardy: time to end what needs it. Also if it is lost. Cancel-safe.
    pub async fn jeopardy(&self) {
        let mut state = self.state();
        // Without a sender nobody keeps it alive any more.
        state.wait_for(|state| *state != SessionState::Active).await.ok();
    }

    /// Runs `work` until it ends or the session is lost; then `work` is dropped.
    ///
    /// # Errors
    /// [`Error::Lost`]: what `work` had begun may be half done.
    pub async fn run<T>(&self, work: impl Future<Output = T>) -> Result<T, Error> {
        self.inner.pulse.run(pin!(work)).await
    }

    /// Ends the session and everything it holds. Clones and guards find it lost.
    ///
    /// # Errors
    /// See [`Error`]; it is then tried once more in the background, and the session ends at the latest when
    /// its TTL has passed.
    pub async fn close(self) -> Result<(), Error> {
        let ending = self.inner.heart.forget(self.inner.id);
        match self.inner.client.session_end(self.inner.id).await {
            // Or it had ended already.
            Ok(()) | Err(Error::NotFound(_)) => {
                ending.done();
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// The client it was begun with.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.inner.client
    }

    /// Whether the server knows it as a lease only.
    pub(crate) fn is_lease(&self) -> bool {
        self.inner.is_lease
    }

    /// A new request, which the session remembers in the cluster. If it has to wait for others, then for as
    /// long as a call may take.
    pub(crate) async fn request(&self) -> Result<Ticket, Error> {
        self.inner.requests.begin(self.inner.id, self.inner.client.timeout()).await
    }

    /// Its requests.
    pub(crate) fn requests(&self) -> &Arc<Requests> {
        &self.inner.requests
    }

    /// Its instances in the registry.
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
