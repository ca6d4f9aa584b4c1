//! Elections: one leader among those who campaign, and a way for others to know it.
//!
//! The queue is that of etcd's own elections, so candidates of either stand in it together. A leader
//! is a session, with the same limits as a lock: what it does must be fenced by its [token]. A campaign
//! that is canceled leaves no candidate behind, and one whose session ended meanwhile is never elected.
//! From a server that speaks etcd's API only a candidate is a [`crate::queue::Turn`], with the same guard.
//!
//! [token]: Leadership::token
//!
//! ```no_run
//! # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
//! let election = client.election("scheduler");
//! let leadership = election.campaign("10.0.0.7:80").await?;
//! leadership.run(async { /* dropped when leadership is lost */ }).await?;
//! leadership.resign().await?;
//!
//! let mut leaders = election.observe();
//! while let Some(leader) = leaders.leader().await? {
//!     println!("{leader:?}");
//! }
//! # Ok(())
//! # }
//! ```

mod candidacy;
mod candidate;
mod observe;

use std::{
    future::{Future, IntoFuture},
    pin::{Pin, pin},
    time::Duration,
};

use bytes::Bytes;
use conclave_proto::v1::Guard;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    client::Client,
    error::Error,
    lock::Guarded,
    patience::Patience,
    pulse::run_while,
    queue::{Enter, Turn},
    session::{self, Session},
    txn::Txn,
};

use candidate::Candidate;

pub use crate::loss::Loss;
pub use candidacy::{CampaignEvent, Candidacy, Waiting};
pub use observe::{Leader, Observer};

impl Client {
    /// The election `name`. Each candidate has a session of its own.
    pub fn election(&self, name: impl Into<Vec<u8>>) -> Election {
        let (client, name) = (self.clone(), self.namespace().name(name));
        Election { client, session: None, name, ttl: session::TTL, owner: None }
    }
}

impl Session {
    /// The election `name`, with this session as candidate. A session is a candidate of a name once: campaigns
    /// at the same time share the place, which goes with the last of them.
    pub fn election(&self, name: impl Into<Vec<u8>>) -> Election {
        let client = self.client().clone();
        let name = client.namespace().name(name);
        Election { client, session: Some(self.clone()), name, ttl: session::TTL, owner: None }
    }
}

/// An election: what can be done with its name; see [`Client::election`].
///
/// ```no_run
/// # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
/// use std::time::Duration;
///
/// let election = client.election("scheduler").ttl(Duration::from_secs(5));
/// match election.leader().await? {
///     Some(leader) => println!("ask {}", String::from_utf8_lossy(leader.value())),
///     None => println!("nobody leads at present"),
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
#[must_use = "an election does nothing by itself"]
pub struct Election {
    client: Client,
    session: Option<Session>,
    name: Bytes,
    ttl: Duration,
    owner: Option<String>,
}

impl Election {
    /// How long a candidate, leader or not, outlives its last heartbeat; without effect on a given session.
    /// Default 10 s.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// Owner of the session that a campaign begins; without effect on a given one. Default: the process and its host.
    pub fn owner(mut self, owner: impl Into<String>) -> Self {
        self.owner = Some(owner.into());
        self
    }

    /// Becomes a candidate who says `value`; await it to be elected.
    pub fn campaign(&self, value: impl Into<Vec<u8>>) -> Campaign {
        Campaign { election: self.clone(), value: value.into().into(), wait: None }
    }

    /// The leader, if there is one.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn leader(&self) -> Result<Option<Leader>, Error> {
        observe::now(&self.client, &self.name).await
    }

    /// Follows who leads, beginning with who does now.
    pub fn observe(&self) -> Observer {
        self.observe_from(0)
    }

    /// Follows who led since `revision`: every leader and everything it proclaimed, in order, as far as
    /// the history is not compacted. 0 for now.
    pub fn observe_from(&self, revision: i64) -> Observer {
        Observer::start(&self.client, &self.name, revision)
    }
}

/// A candidature; see [`Election::campaign`].
///
/// Awaiting it is cancel-safe: a future that is dropped gives its candidature up in the background,
/// even if the request has not arrived yet.
///
/// ```no_run
/// # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
/// use std::time::Duration;
/// use conclave_client::Error;
///
/// let campaign = client.election("scheduler").campaign("10.0.0.7:80");
/// match campaign.wait(Duration::from_secs(30)).await {
///     Ok(leadership) => leadership.run(async { /* lead */ }).await?,
///     Err(Error::Busy) => println!("another one leads; this one is no candidate any more"),
///     Err(error) => return Err(error),
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
#[must_use = "nobody campaigns until it is awaited"]
pub struct Campaign {
    election: Election,
    value: Bytes,
    wait: Option<Duration>,
}

impl Campaign {
    /// Waits for at most this long, then fails with [`Error::Busy`]. If no server answers, it takes up to 5 s
    /// longer. Default: for ever.
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = Some(wait);
        self
    }

    /// Campaigns and tells how it goes: where the candidate stands, who leads meanwhile, and that it was elected.
    pub fn follow(self) -> Candidacy {
        let (waiting, told) = watch::channel(None);
        Candidacy::new(Box::pin(self.campaign(waiting)), told)
    }

    async fn campaign(self, waiting: watch::Sender<Option<Waiting>>) -> Result<Leadership, Error> {
        let Self { election: Election { client, session, name, ttl, owner }, value, wait } = self;
        let patience = Patience::new(&client, wait);
        // A turn of the recipe needs a lease of its own.
        let ttl = session.as_ref().filter(|session| session.is_lease()).map_or(ttl, Session::ttl);
        let session = match session.filter(|session| !session.is_lease()) {
            Some(session) => session,
            None => {
                let owner = owner.unwrap_or_else(session::owner::of_process);
                let begin = client.session().ttl(ttl).owner(owner);
                match begin.within(patience.limit(&client)).native().await {
                    Err(Error::Unimplemented(_)) => {
                        let enter = Enter::at(&client, name).ttl(ttl).value(value);
                        let enter = match wait {
                            Some(wait) => enter.wait(wait),
                            None => enter,
                        };
                        return Ok(Leadership { led: Led::Turn(enter.await?) });
                    }
                    begun => begun?,
                }
            }
        };
        let candidate = Candidate::elected((session, name), value, patience, waiting).await?;
        Ok(Leadership { led: Led::Place(candidate) })
    }
}

impl IntoFuture for Campaign {
    type Output = Result<Leadership, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.campaign(watch::Sender::new(None)))
    }
}

/// Leadership, for as long as this guard exists and its session lives.
///
/// Give it up with [`Leadership::resign`], which says whether that worked. A guard that is dropped
/// does so in the background, without a report, and tries again for as long as the session lives.
///
/// ```no_run
/// # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
/// use conclave_client::kv::put;
///
/// let leadership = client.election("scheduler").campaign("10.0.0.7:80").await?;
/// // Done only while this one leads: a leader that was paused cannot overwrite its successor's plan.
/// leadership.txn().then(put("plan", "first a, then b")).commit().await?;
/// leadership.proclaim("10.0.0.7:81").await?; // the address has changed
/// println!("token {} for everything outside of the cluster", leadership.token());
/// leadership.resign().await?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "leadership ends when the guard is dropped"]
pub struct Leadership {
    led: Led,
}

/// What leadership hangs on.
#[derive(Debug)]
enum Led {
    /// A candidate of the native API.
    Place(Candidate),
    /// A turn of etcd's recipe, from a server that knows no other elections.
    Turn(Turn),
}

impl Leadership {
    /// The candidate's key.
    #[must_use]
    pub fn key(&self) -> &Bytes {
        match &self.led {
            Led::Place(candidate) => candidate.key(),
            Led::Turn(turn) => turn.key(),
        }
    }

    /// The fencing token: larger than that of every earlier leader. Hand it on with whatever the leader
    /// does, and refuse there what comes with an older one.
    #[must_use]
    pub fn token(&self) -> i64 {
        match &self.led {
            Led::Place(candidate) => candidate.token(),
            Led::Turn(turn) => turn.token(),
        }
    }

    /// A revision at which it led.
    #[must_use]
    pub fn revision(&self) -> i64 {
        match &self.led {
            Led::Place(candidate) => candidate.revision(),
            Led::Turn(turn) => turn.revision(),
        }
    }

    /// The session that leads; `None` if the server knows no sessions, and a lease does.
    #[must_use]
    pub fn session(&self) -> Option<&Session> {
        match &self.led {
            Led::Place(candidate) => Some(candidate.session()),
            Led::Turn(_) => None,
        }
    }

    /// Cancelled when leadership may be lost: when the session may be, which is before the server lets
    /// another one lead as long as this process gets to run, and when somebody took it away. (From a server
    /// that speaks etcd's API only the latter is seen by [`Leadership::is_held`] and [`Leadership::txn`].)
    #[must_use]
    pub fn lost(&self) -> CancellationToken {
        match &self.led {
            Led::Place(candidate) => candidate.lost(),
            Led::Turn(turn) => turn.lost(),
        }
    }

    /// Why it was lost, if it was.
    #[must_use]
    pub fn loss(&self) -> Option<Loss> {
        match &self.led {
            Led::Place(candidate) => candidate.loss(),
            Led::Turn(turn) => turn.lease().is_lost().then_some(Loss::Session),
        }
    }

    /// Runs `work` until it ends or leadership is lost; then `work` is dropped.
    ///
    /// # Errors
    /// [`Error::Lost`]: what `work` had begun may be half done.
    pub async fn run<T>(&self, work: impl Future<Output = T>) -> Result<T, Error> {
        run_while(&self.lost(), || self.loss().map(|loss| loss.error()), pin!(work)).await
    }

    /// Waits until leadership may soon be lost, because its session is in jeopardy: time to end what needs it.
    /// Also if it is lost. Cancel-safe.
    pub async fn jeopardy(&self) {
        let lost = self.lost();
        let near = async {
            match &self.led {
                Led::Place(candidate) => candidate.jeopardy().await,
                Led::Turn(turn) => turn.lease().jeopardy().await,
            }
        };
        tokio::select! {
            () = lost.cancelled() => {}
            () = near => {}
        }
    }

    /// Asks the cluster whether this leads at this moment.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn is_held(&self) -> Result<bool, Error> {
        match &self.led {
            Led::Place(candidate) => candidate.is_held().await,
            Led::Turn(turn) => turn.is_held().await,
        }
    }

    /// Starts a transaction that is carried out only if this leads at that very moment.
    pub fn txn(&self) -> Txn<Guarded> {
        match &self.led {
            Led::Place(candidate) => {
                let guard = Guard { name: candidate.name().clone(), fence: candidate.token() };
                Guarded::by_locks(candidate.client().clone(), vec![guard])
            }
            Led::Turn(turn) => Guarded::by_turn(turn),
        }
    }

    /// Says something else to those who observe.
    ///
    /// # Errors
    /// [`Error::Lost`] if this is not the leader any more. See [`Error`]; [`Error::outcome`] tells
    /// whether it may have been applied.
    pub async fn proclaim(&self, value: impl Into<Vec<u8>>) -> Result<(), Error> {
        match &self.led {
            Led::Place(candidate) => candidate.proclaim(value.into().into()).await,
            Led::Turn(turn) => turn.set_value(value).await,
        }
    }

    /// Lets the next candidate lead.
    ///
    /// # Errors
    /// [`Error::Lost`] if this was not the leader any more. See [`Error`]; it is then tried again in the
    /// background.
    pub async fn resign(self) -> Result<(), Error> {
        match self.led {
            // Boxed: what they hold on to while they wait is large.
            Led::Place(candidate) => Box::pin(candidate.resign()).await,
            Led::Turn(turn) => Box::pin(turn.release()).await,
        }
    }

    /// Lets the candidate with this key lead next, in one step; whoever stands between goes behind it.
    ///
    /// # Errors
    /// [`Error::Refused`] if this is not the leader any more, or another candidacy of its session leads, too; then
    /// that one leads on. [`Error::Invalid`] if there is no such candidate,
    /// or more than 64 stand between, or one that runs etcd's recipe. [`Error::Unimplemented`] from a server
    /// that speaks etcd's API only. See [`Error`]; the guard is dropped in any case, and if it still leads it
    /// resigns.
    pub async fn resign_to(self, key: impl Into<Vec<u8>>) -> Result<(), Error> {
        match self.led {
            Led::Place(candidate) => Box::pin(candidate.resign_to(key.into().into())).await,
            Led::Turn(_) => Err(crate::lock::unimplemented()),
        }
    }
}
