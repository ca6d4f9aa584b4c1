//! Leader election: one leader among the candidates, and a way for others to follow who leads.
//!
//! Candidates queue as in etcd's own elections, so candidates of both kinds stand in the same
//! queue. A leader is a session, with the same limits as a lock: its actions must be fenced by its
//! [token]. A canceled campaign leaves no candidate behind, and a candidate whose session ended
//! meanwhile is never elected. Against a server that only speaks etcd's API, a candidate is a
//! [`crate::queue::Turn`], with the same guard.
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
    /// The election `name`. Each campaign begins a session of its own.
    pub fn election(&self, name: impl Into<Vec<u8>>) -> Election {
        let (client, name) = (self.clone(), self.namespace().name(name));
        Election { client, session: None, name, ttl: session::TTL, owner: None }
    }
}

impl Session {
    /// The election `name`, with this session as candidate. A session is only one candidate of an
    /// election: simultaneous campaigns share its place, which is given up with the last of them.
    pub fn election(&self, name: impl Into<Vec<u8>>) -> Election {
        let client = self.client().clone();
        let name = client.namespace().name(name);
        Election { client, session: Some(self.clone()), name, ttl: session::TTL, owner: None }
    }
}

/// An election by name; see [`Client::election`].
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
    /// How long a candidate or leader outlives its last heartbeat. No effect on a given session.
    /// Default 10 s.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// Owner of the session that a campaign begins. No effect on a given session. Default: this
    /// process and its host.
    pub fn owner(mut self, owner: impl Into<String>) -> Self {
        self.owner = Some(owner.into());
        self
    }

    /// Starts to describe a campaign with `value`; await it to be elected.
    pub fn campaign(&self, value: impl Into<Vec<u8>>) -> Campaign {
        Campaign { election: self.clone(), value: value.into().into(), wait: None }
    }

    /// The current leader, if there is one.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn leader(&self) -> Result<Option<Leader>, Error> {
        observe::now(&self.client, &self.name).await
    }

    /// Follows who leads, beginning with the current leader.
    pub fn observe(&self) -> Observer {
        self.observe_from(0)
    }

    /// Follows who has led since `revision`: every leader and every value it proclaimed, in order,
    /// as far as the history is not compacted. 0 begins with the current leader.
    pub fn observe_from(&self, revision: i64) -> Observer {
        Observer::start(&self.client, &self.name, revision)
    }
}

/// A campaign to be started; see [`Election::campaign`].
///
/// Awaiting it is cancel-safe: dropping the future withdraws the candidate in the background, even
/// if the request has not arrived yet.
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
    /// Limits the wait; after it, fails with [`Error::Busy`]. If no server answers, it may take up
    /// to 5 s longer. Default: for ever.
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = Some(wait);
        self
    }

    /// Campaigns and reports the progress: the position in the queue, the current leader, and the
    /// election.
    pub fn follow(self) -> Candidacy {
        let (waiting, told) = watch::channel(None);
        Candidacy::new(Box::pin(self.campaign(waiting)), told)
    }

    async fn campaign(self, waiting: watch::Sender<Option<Waiting>>) -> Result<Leadership, Error> {
        let Self { election: Election { client, session, name, ttl, owner }, value, wait } = self;
        let patience = Patience::new(&client, wait);
        // A candidate of etcd's recipe needs a lease of its own.
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

/// Leadership: held for as long as this guard exists and its session lives.
///
/// Give it up with [`Leadership::resign`], which reports whether that worked. Dropping the guard
/// resigns in the background without a report, with retries for as long as the session lives.
///
/// ```no_run
/// # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
/// use conclave_client::kv::put;
///
/// let leadership = client.election("scheduler").campaign("10.0.0.7:80").await?;
/// // Applied only while this one leads: a leader that was paused cannot overwrite its successor's plan.
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

/// How the leadership is held.
#[derive(Debug)]
enum Led {
    /// A candidate of Conclave's election API.
    Place(Candidate),
    /// A turn of etcd's recipe, on a server without that API.
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

    /// The fencing token: larger than that of every earlier leader. Pass it along with whatever the
    /// leader does, and refuse requests with an older token there.
    #[must_use]
    pub fn token(&self) -> i64 {
        match &self.led {
            Led::Place(candidate) => candidate.token(),
            Led::Turn(turn) => turn.token(),
        }
    }

    /// A revision at which this candidate led.
    #[must_use]
    pub fn revision(&self) -> i64 {
        match &self.led {
            Led::Place(candidate) => candidate.revision(),
            Led::Turn(turn) => turn.revision(),
        }
    }

    /// The session that leads; `None` if a plain lease does, because the server knows no sessions.
    #[must_use]
    pub fn session(&self) -> Option<&Session> {
        match &self.led {
            Led::Place(candidate) => Some(candidate.session()),
            Led::Turn(_) => None,
        }
    }

    /// Cancelled when leadership is lost. If the session may have ended: before the server elects
    /// another leader, as long as this process gets to run. If somebody took leadership away: when
    /// that is reported. (A server that only speaks etcd's API does not report the latter; use
    /// [`Leadership::is_held`] or [`Leadership::txn`].)
    #[must_use]
    pub fn lost(&self) -> CancellationToken {
        match &self.led {
            Led::Place(candidate) => candidate.lost(),
            Led::Turn(turn) => turn.lost(),
        }
    }

    /// Why leadership was lost, if it was.
    #[must_use]
    pub fn loss(&self) -> Option<Loss> {
        match &self.led {
            Led::Place(candidate) => candidate.loss(),
            Led::Turn(turn) => turn.lease().is_lost().then_some(Loss::Session),
        }
    }

    /// Runs `work` until it ends or leadership is lost; in the latter case `work` is dropped.
    ///
    /// # Errors
    /// [`Error::Lost`] if leadership was lost: what `work` had begun may be half done.
    pub async fn run<T>(&self, work: impl Future<Output = T>) -> Result<T, Error> {
        run_while(&self.lost(), || self.loss().map(|loss| loss.error()), pin!(work)).await
    }

    /// Waits until leadership is lost or may soon be, because its session is in jeopardy: time to
    /// finish what needs it. Cancel-safe.
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

    /// Asks the cluster whether this candidate leads at this moment.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn is_held(&self) -> Result<bool, Error> {
        match &self.led {
            Led::Place(candidate) => candidate.is_held().await,
            Led::Turn(turn) => turn.is_held().await,
        }
    }

    /// Starts a transaction that is carried out only if this candidate leads when it is applied.
    pub fn txn(&self) -> Txn<Guarded> {
        match &self.led {
            Led::Place(candidate) => {
                let guard = Guard { name: candidate.name().clone(), fence: candidate.token() };
                Guarded::by_locks(candidate.client().clone(), vec![guard])
            }
            Led::Turn(turn) => Guarded::by_turn(turn),
        }
    }

    /// Changes the value that observers see.
    ///
    /// # Errors
    /// [`Error::Lost`] if this candidate is no longer the leader. See [`Error`]; [`Error::outcome`]
    /// says whether it may have been applied.
    pub async fn proclaim(&self, value: impl Into<Vec<u8>>) -> Result<(), Error> {
        match &self.led {
            Led::Place(candidate) => candidate.proclaim(value.into().into()).await,
            Led::Turn(turn) => turn.set_value(value).await,
        }
    }

    /// Gives up leadership to the next candidate.
    ///
    /// # Errors
    /// [`Error::Lost`] if this candidate was no longer the leader. See [`Error`]; it is then
    /// retried in the background.
    pub async fn resign(self) -> Result<(), Error> {
        match self.led {
            // Boxed because the state that these futures hold while waiting is large.
            Led::Place(candidate) => Box::pin(candidate.resign()).await,
            Led::Turn(turn) => Box::pin(turn.release()).await,
        }
    }

    /// Hands leadership to the candidate with this key in one step; candidates in between move
    /// behind it.
    ///
    /// # Errors
    /// [`Error::Refused`] if this candidate is no longer the leader, or if another campaign of its
    /// session leads too, which then continues to lead. [`Error::Invalid`] if there is no such
    /// candidate, more than 64 candidates stand in between, or one in between uses etcd's recipe.
    /// [`Error::Unimplemented`] against a server that only speaks etcd's API. See [`Error`]; the
    /// guard is dropped in any case, and resigns if it still leads.
    pub async fn resign_to(self, key: impl Into<Vec<u8>>) -> Result<(), Error> {
        match self.led {
            Led::Place(candidate) => Box::pin(candidate.resign_to(key.into().into())).await,
            Led::Turn(_) => Err(crate::lock::unimplemented()),
        }
    }
}
