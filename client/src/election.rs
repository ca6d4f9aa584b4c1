//! Elections: one leader among those who campaign, and a way for others to know it.
//!
//! The queue is that of etcd's own elections, so candidates of either stand in it together. A leader
//! is a lease, with the same limits as a lock: what it does must be fenced by its [token]. A campaign
//! that is canceled leaves no candidate behind, and one whose lease ended meanwhile is never elected.
//!
//! [token]: Leader::token
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

use std::{
    future::{Future, IntoFuture},
    ops::Deref,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use conclave_proto::{etcdserverpb::ResponseHeader, mvccpb::KeyValue};
use futures::Stream;
use tokio::{sync::mpsc, time::sleep};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    backoff::Backoff,
    client::Client,
    error::Error,
    mirror::{Mirror, Step},
    queue::{Enter, Turn},
    session,
};

/// Leaders waiting for the reader; beyond that the server's stream is held back.
const LEADERS_MAX: usize = 16;

impl Client {
    /// The election `name`.
    pub fn election(&self, name: impl Into<Vec<u8>>) -> Election {
        Election { client: self.clone(), name: name.into(), ttl: session::TTL }
    }
}

/// An election: what can be done with its name; see [`Client::election`].
#[derive(Debug, Clone)]
#[must_use = "an election does nothing by itself"]
pub struct Election {
    client: Client,
    name: Vec<u8>,
    ttl: Duration,
}

impl Election {
    /// How long a candidate, leader or not, outlives its last keep-alive. Default 10 s.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// Becomes a candidate who says `value`; await it to be elected.
    pub fn campaign(&self, value: impl Into<Vec<u8>>) -> Campaign {
        Campaign { enter: self.client.queue(&self.name[..]).ttl(self.ttl).value(value) }
    }

    /// The leader, if there is one.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn leader(&self) -> Result<Option<Leader>, Error> {
        let mut mirror = self.mirror(0);
        mirror.next().await?;
        Ok(leader(&mirror))
    }

    /// Follows who leads, beginning with who does now.
    pub fn observe(&self) -> Observer {
        self.observe_from(0)
    }

    /// Follows who led since `revision`: every leader and everything it proclaimed, in order, as far as
    /// the history is not compacted. 0 for now.
    pub fn observe_from(&self, revision: i64) -> Observer {
        let (sender, leaders) = mpsc::channel(LEADERS_MAX);
        let task = AbortOnDropHandle::new(tokio::spawn(follow(self.mirror(revision), sender)));
        Observer { leaders, _task: task }
    }

    fn mirror(&self, from: i64) -> Mirror {
        let prefix = Bytes::from([&self.name[..], b"/"].concat());
        Mirror::new(self.client.clone(), prefix, from)
    }
}

/// A candidature; see [`Election::campaign`].
///
/// Awaiting it is cancel-safe: a future that is dropped gives its candidature up in the background,
/// even if the request has not arrived yet.
#[derive(Debug, Clone)]
#[must_use = "nobody campaigns until it is awaited"]
pub struct Campaign {
    enter: Enter,
}

impl Campaign {
    /// Waits for at most this long. Default: for ever.
    pub fn wait(mut self, wait: Duration) -> Self {
        self.enter = self.enter.wait(wait);
        self
    }
}

impl IntoFuture for Campaign {
    type Output = Result<Leadership, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move { Ok(Leadership { turn: self.enter.await? }) })
    }
}

/// Leadership, for as long as this guard exists and its lease lives: a [`Turn`] with a value that
/// others see.
///
/// Give it up with [`Leadership::resign`], which says whether that worked. A guard that is dropped
/// does so in the background, without a report; if that fails too, leadership ends with its lease.
#[derive(Debug)]
#[must_use = "leadership ends when the guard is dropped"]
pub struct Leadership {
    turn: Turn,
}

impl Leadership {
    /// Says something else to those who observe.
    ///
    /// # Errors
    /// [`Error::Lost`] if this is not the leader any more. See [`Error`]; [`Error::outcome`] tells
    /// whether it may have been applied.
    pub async fn proclaim(&self, value: impl Into<Vec<u8>>) -> Result<(), Error> {
        self.turn.set_value(value).await
    }

    /// Lets the next candidate lead.
    ///
    /// # Errors
    /// [`Error::Lost`] if this was not the leader any more. See [`Error`]; leadership then ends when its
    /// TTL has passed.
    pub async fn resign(self) -> Result<(), Error> {
        self.turn.release().await
    }
}

impl Deref for Leadership {
    type Target = Turn;

    fn deref(&self) -> &Turn {
        &self.turn
    }
}

/// Who leads.
#[derive(Debug, Clone, PartialEq)]
pub struct Leader {
    /// The candidate's key, with what it says. Its create revision is the fencing token.
    pub kv: KeyValue,
    /// The header of the answer that told so.
    pub header: ResponseHeader,
}

impl Leader {
    /// What it says.
    #[must_use]
    pub fn value(&self) -> &[u8] {
        &self.kv.value
    }

    /// The fencing token, which grows from leader to leader.
    #[must_use]
    pub fn token(&self) -> i64 {
        self.kv.create_revision
    }
}

/// The leaders of an election, one after the other: a [`Stream`] of leaders, and of `None` for the
/// times without one. It ends after the first error, which is one that waiting cannot mend.
#[derive(Debug)]
pub struct Observer {
    leaders: mpsc::Receiver<Result<Option<Leader>, Error>>,
    _task: AbortOnDropHandle<()>,
}

impl Observer {
    /// The next leader, waiting through times without one; `None` after the end. Cancel-safe.
    ///
    /// # Errors
    /// What ended it, once.
    pub async fn leader(&mut self) -> Result<Option<Leader>, Error> {
        loop {
            match self.leaders.recv().await.transpose()? {
                Some(None) => {}
                Some(leader) => return Ok(leader),
                None => return Ok(None),
            }
        }
    }
}

impl Stream for Observer {
    type Item = Result<Option<Leader>, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.leaders.poll_recv(cx)
    }
}

/// Tells of each new leader until nobody listens.
async fn follow(mut mirror: Mirror, leaders: mpsc::Sender<Result<Option<Leader>, Error>>) {
    let mut last: Option<Option<KeyValue>> = None;
    let mut backoff = Backoff::default();
    loop {
        match mirror.next().await {
            Ok(Step::Connected(_)) => {}
            Ok(Step::Keys) => {
                backoff.reset();
                let leader = leader(&mirror);
                let kv = leader.as_ref().map(|leader| leader.kv.clone());
                if last.as_ref() != Some(&kv) {
                    last = Some(kv);
                    if leaders.send(Ok(leader)).await.is_err() {
                        return;
                    }
                }
            }
            Err(error) if error.is_passing() => sleep(backoff.next()).await,
            Err(error) => {
                // Who does not listen any more needs no reason.
                drop(leaders.send(Err(error)).await);
                return;
            }
        }
    }
}

/// The candidate who came first.
fn leader(mirror: &Mirror) -> Option<Leader> {
    let first = mirror.keys().values().min_by_key(|kv| kv.create_revision)?;
    Some(Leader { kv: first.clone(), header: *mirror.header() })
}
