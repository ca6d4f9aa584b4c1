//! Locks: exclusive, shared, or counted, for as long as a session lives.
//!
//! A lock is a lease: a process that is paused for longer than its session's TTL loses it without
//! noticing at once. Therefore every grant has a *fencing token*, which grows with every holder;
//! the protected resource must refuse a token older than one it has seen. For data in Conclave
//! itself [`LockGuard::txn`] does that: the check of the lock and the write are one step.
//!
//! ```no_run
//! # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
//! use std::time::Duration;
//! use conclave_client::kv::put;
//!
//! let session = client.session().owner("worker-7").await?;
//! let lock = session.lock("jobs/1").wait(Duration::from_secs(30)).await?;
//! println!("token {}", lock.token());
//! lock.txn().then(put("states/1", "running")).commit().await?;
//! lock.run(async { /* dropped if the lock is lost */ }).await?;
//! lock.release().await?;
//!
//! let reader = session.lock("document").shared().await?;
//! let slot = session.lock("pool").permits(1, 8).try_now().await;
//! # drop((reader, slot));
//! # Ok(())
//! # }
//! ```

mod admin;
mod guard;

use std::{
    future::{Future, IntoFuture},
    pin::Pin,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use bytes::Bytes;
use conclave_proto::v1::{
    AcquireRequest, AcquireResponse, Ended, Granted, ReleaseRequest, acquire_request::Wait,
    acquire_response::Event, ended::Reason, lock_service_client::LockServiceClient,
};
use tonic::{Response, Status, Streaming};

use crate::login::Channel;
use crate::{
    client::Client,
    error::Error,
    loss::Standing,
    once::{Number, Ticket},
    patience::{self, Ask, Heard, Patience},
    queue::Enter,
    session::{self, Session},
    undo::{Did, Kept},
};

pub use crate::loss::Loss;
pub(crate) use guard::unimplemented;
pub use guard::{Guarded, LockGuard};

impl Client {
    /// Starts to describe an acquisition of `name` by a new session of its own, which ends with the
    /// guard. A process that takes many locks should share one [`Client::session`].
    ///
    /// Against a server that only speaks etcd's API, it takes an exclusive lock by etcd's recipe
    /// ([`Client::queue`]); options that the recipe lacks fail with [`Error::Unimplemented`].
    #[doc(alias("mutex", "acquire"))]
    pub fn lock(&self, name: impl Into<Vec<u8>>) -> Acquire {
        Acquire::new(self.clone(), None, name.into())
    }
}

impl Session {
    /// Starts to describe an acquisition of `name`; await it to acquire. Against a server that only
    /// speaks etcd's API it takes the lock as [`Client::lock`] does: the lock then has a lease of
    /// its own and does not end with this session.
    pub fn lock(&self, name: impl Into<Vec<u8>>) -> Acquire {
        Acquire::new(self.client().clone(), Some(self.clone()), name.into())
    }
}

/// A lock acquisition to be made; see [`Session::lock`].
///
/// Awaiting it is cancel-safe: dropping the future gives up its place in the queue, in the
/// background, even if the request has not arrived yet. Awaiting a clone is another acquisition.
///
/// ```no_run
/// # async fn example(session: conclave_client::Session) -> Result<(), conclave_client::Error> {
/// use std::time::Duration;
/// use conclave_client::Error;
///
/// // Both accounts or none, so that nobody waits for one while holding the other.
/// let both = session.lock("accounts/1").and("accounts/2").note("transfer 17");
/// match both.wait(Duration::from_secs(2)).await {
///     Ok(lock) => lock.release().await?,
///     Err(Error::Busy) => println!("others are at work: later"),
///     Err(error) => return Err(error),
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
#[must_use = "nothing is acquired until it is awaited"]
pub struct Acquire {
    client: Client,
    session: Option<Session>,
    ttl: Option<Duration>,
    owner: Option<String>,
    wait: Option<Duration>,
    request: AcquireRequest,
}

impl Acquire {
    fn new(client: Client, session: Option<Session>, name: Vec<u8>) -> Self {
        let request = AcquireRequest {
            names: vec![client.namespace().name(name)],
            permits: 1,
            limit: 1,
            ..AcquireRequest::default()
        };
        Self { client, session, ttl: None, owner: None, wait: None, request }
    }

    /// Adds another lock: all are acquired together or none is. Acquiring several locks this way
    /// cannot deadlock, whatever their order.
    pub fn and(mut self, name: impl Into<Vec<u8>>) -> Self {
        self.request.names.push(self.client.namespace().name(name));
        self
    }

    /// Acquires the lock shared (as a reader): together with other shared holders, but not with
    /// exclusive ones. The queue is fair: a waiting writer goes before readers that came later.
    #[doc(alias("rwlock", "read_lock"))]
    pub fn shared(mut self) -> Self {
        (self.request.permits, self.request.limit) = (1, u32::MAX);
        self
    }

    /// Takes `permits` of `limit`, the total for all holders together (a semaphore). All users of
    /// this lock should give the same limit; if they differ, the smallest counts.
    #[doc(alias = "semaphore")]
    pub fn permits(mut self, permits: u32, limit: u32) -> Self {
        (self.request.permits, self.request.limit) = (permits, limit);
        self
    }

    /// Limits the wait; a time longer than the clock can count means for ever. If no server
    /// answers, it may take up to 5 s longer. Default: for ever.
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = Some(wait);
        self
    }

    /// Does not wait for other holders. Waits for the answer at most for the client's time limit.
    pub fn try_now(self) -> Self {
        self.wait(Duration::ZERO)
    }

    /// If the session already holds the lock in the same way, holds it once more. Only for a single
    /// name. If such acquisitions ask for different delays, the longest applies until all of them
    /// are released; of their notes, the last one.
    pub fn reentrant(mut self) -> Self {
        self.request.reentrant = true;
        self
    }

    /// If the session expires while it holds the lock, nobody else gets it for this long (whole
    /// seconds, rounded up): time for requests that the lost holder has sent to arrive. Does not
    /// apply after a release.
    pub fn delay_after_loss(mut self, delay: Duration) -> Self {
        let seconds = delay.as_secs().saturating_add(u64::from(delay.subsec_nanos() > 0));
        self.request.lock_delay_seconds = u32::try_from(seconds).unwrap_or(u32::MAX);
        self
    }

    /// A note about the holder, for people who inspect the lock.
    pub fn note(mut self, note: impl Into<Vec<u8>>) -> Self {
        self.request.note = note.into().into();
        self
    }

    /// TTL of the session that [`Client::lock`] begins. No effect on a given session.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Owner of the session that [`Client::lock`] begins. No effect on a given session. Default:
    /// this process and its host.
    pub fn owner(mut self, owner: impl Into<String>) -> Self {
        self.owner = Some(owner.into());
        self
    }

    async fn acquire(self) -> Result<LockGuard, Error> {
        let Self { client, session, ttl, owner, wait, mut request } = self;
        let patience = Patience::new(&client, wait);
        request.request_id = session::request_id();
        // A lock taken by etcd's recipe needs a lease of its own, with the session's TTL.
        let ttl =
            session.as_ref().filter(|session| session.is_lease()).map_or(ttl, |s| Some(s.ttl()));
        let session = match session.filter(|session| !session.is_lease()) {
            Some(session) => session,
            None => {
                let owner = owner.unwrap_or_else(session::owner::of_process);
                let begin = client.session().ttl(ttl.unwrap_or(session::TTL)).owner(&owner);
                match begin.within(patience.limit(&client)).native().await {
                    Err(Error::Unimplemented(_)) => {
                        if request.note.is_empty() {
                            request.note = owner.into();
                        }
                        return by_recipe(&client, request, ttl, wait).await;
                    }
                    begun => begun?,
                }
            }
        };
        request.session = session.id();
        request.names.sort();
        request.names.dedup();
        let standing = Standing::under(&session.lost());
        // Subscribe before the request is sent, so that no report of a loss comes too early.
        let hearing = session.heart().hear(session.id(), &request.request_id, standing);
        let ticket = session.requests().begin(session.id(), patience.limit(&client)).await?;
        let mut kept = Kept {
            name: Bytes::clone(&request.names[0]),
            sequence: ticket.sequence(),
            did: Did::Acquire(release_of(&request)),
            open: None,
            is_over: false,
            session,
        };
        let lost = kept.session.lost();
        let mut asked = Asked::new(request, ticket);
        let granted = tokio::select! {
            biased;
            () = lost.cancelled() => return Err(Error::session_lost()),
            granted = patience::wait(&client, patience, &mut asked) => granted,
        };
        kept.is_over = asked.has_nothing();
        let granted = granted?;
        // The answer may be old: without a live session the lock is not held.
        if kept.session.is_lost() {
            return Err(Error::session_lost());
        }
        Ok(LockGuard::new(kept, asked.request.request_id, granted, hearing))
    }
}

impl IntoFuture for Acquire {
    type Output = Result<LockGuard, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.acquire())
    }
}

/// Acquires the lock by etcd's recipe, on a server that only speaks etcd's API: the same queue and
/// the same guarantees, but exclusive only.
async fn by_recipe(
    client: &Client,
    request: AcquireRequest,
    ttl: Option<Duration>,
    wait: Option<Duration>,
) -> Result<LockGuard, Error> {
    let is_exclusive = (request.permits, request.limit) == (1, 1);
    let has_extras = request.reentrant || request.lock_delay_seconds > 0;
    let name = match <[Bytes; 1]>::try_from(request.names) {
        Ok([name]) if is_exclusive && !has_extras => name,
        _ => return Err(unimplemented()),
    };
    let enter =
        Enter::at(client, name.clone()).ttl(ttl.unwrap_or(session::TTL)).value(request.note);
    let enter = match wait {
        Some(wait) => enter.wait(wait),
        None => enter,
    };
    Ok(LockGuard::of_turn(name, enter.await?))
}

fn release_of(request: &AcquireRequest) -> ReleaseRequest {
    ReleaseRequest {
        names: request.names.clone(),
        session: request.session,
        request_id: Bytes::clone(&request.request_id),
        once: None,
    }
}

/// The request to send. Its id and number never change, so its place in the queue is kept.
struct Asked {
    request: AcquireRequest,
    number: Number,
    /// Streams opened for it so far.
    streams: AtomicU32,
    /// The server answered that others hold the lock, and keeps nothing of the request.
    is_refused: bool,
}

impl Asked {
    fn new(request: AcquireRequest, ticket: Ticket) -> Self {
        let number = Number::Open(ticket);
        Self { request, number, streams: AtomicU32::new(0), is_refused: false }
    }

    /// Whether there is nothing to undo. If the request was sent more than once, a copy may still
    /// arrive.
    fn has_nothing(&self) -> bool {
        self.is_refused && self.streams.load(Ordering::Relaxed) == 1
    }
}

impl Ask for Asked {
    type Answer = AcquireResponse;
    type Done = Granted;

    async fn open(
        &self,
        channel: Channel,
        wait_ms: Option<u64>,
    ) -> Result<Response<Streaming<AcquireResponse>>, Status> {
        self.streams.fetch_add(1, Ordering::Relaxed);
        let wait = wait_ms.map_or(Wait::WaitForever(true), Wait::WaitMs);
        let once = Some(self.number.once());
        let request = AcquireRequest { wait: Some(wait), once, ..self.request.clone() };
        LockServiceClient::new(channel).acquire(request).await
    }

    fn hear(&mut self, answer: AcquireResponse) -> Heard<Granted> {
        self.number.answered();
        match answer.event {
            Some(Event::Granted(granted)) => Heard::Done(granted),
            Some(Event::Ended(ended)) => {
                self.is_refused = ended.reason() == Reason::Timeout;
                Heard::Failed(ended_by(ended))
            }
            Some(Event::Queued(_)) | None => Heard::More,
        }
    }

    fn late(&self) -> Error {
        Error::Busy
    }
}

fn ended_by(ended: Ended) -> Error {
    match ended.reason() {
        Reason::Timeout => Error::Busy,
        Reason::SessionLost => Error::session_lost(),
        Reason::Cancelled | Reason::Unspecified => match ended.broken {
            Some(broken) => Loss::of(Some(broken)).error(),
            None => Error::lost("the request was given up"),
        },
    }
}
