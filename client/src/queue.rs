//! etcd's recipe for locks and elections: a queue of keys, of which the first one holds the name.
//!
//! A contender puts the key `<name>/<lease in hexadecimal>`, attached to a lease; the key's create
//! revision is its place. Each contender waits for the key just before its own, so a hand-over
//! wakes only one. Users of etcd's `concurrency` package, of its Lock and Election services and of
//! Conclave's own locks stand in the same queue. Only etcd's v3 API is needed. Every key below
//! `<name>/` is a place: a key put there by something else blocks the queue while it exists.
//!
//! ```no_run
//! # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
//! use std::time::Duration;
//! use conclave_client::kv::put;
//!
//! let turn = client.queue("jobs/1").ttl(Duration::from_secs(10)).await?;
//! println!("fencing token {}", turn.token());
//! turn.txn().then(put("states/1", "running")).commit().await?;
//! turn.run(async { /* dropped when the turn is lost */ }).await?;
//! turn.release().await?;
//! # Ok(())
//! # }
//! ```

use std::{
    future::{Future, IntoFuture},
    pin::{Pin, pin},
    time::Duration,
};

use bytes::Bytes;
use conclave_proto::{
    etcdserverpb::{
        RangeRequest, TxnResponse,
        range_request::{SortOrder, SortTarget},
        response_op::Response,
    },
    mvccpb::KeyValue,
};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::{
    client::Client,
    error::Error,
    key::prefix_end,
    kv::put,
    lease::Lease,
    namespace::Namespace,
    reply::Reply,
    session,
    txn::{Txn, key, txn},
};

impl Client {
    /// Starts to describe a place in the queue for `name`; await it to wait for its turn.
    pub fn queue(&self, name: impl Into<Vec<u8>>) -> Enter {
        Enter::at(self, self.namespace().name(name))
    }
}

/// A place in a queue to be taken; see [`Client::queue`].
///
/// Awaiting it is cancel-safe: dropping the future gives up the place in the background, even if
/// the request has not arrived yet.
///
/// ```no_run
/// # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
/// use conclave_client::Error;
///
/// // At most one of the replicas does the nightly work; works with any etcd.
/// match client.queue("nightly").value("replica-2").try_now().await {
///     Ok(turn) => turn.run(async { /* the work */ }).await?,
///     Err(Error::Busy) => println!("another replica does it"),
///     Err(error) => return Err(error),
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
#[must_use = "no place is taken until it is awaited"]
pub struct Enter {
    client: Client,
    /// Applies to the transactions that need the turn.
    namespace: Namespace,
    /// The full name, including the namespace.
    name: Bytes,
    value: Vec<u8>,
    ttl: Duration,
    wait: Option<Duration>,
}

impl Enter {
    /// The queue for the full `name`, whatever the namespace of the client.
    pub(crate) fn at(client: &Client, name: Bytes) -> Self {
        let (client, namespace) = (client.bare(), client.namespace().clone());
        Self { client, namespace, name, value: Vec::new(), ttl: session::TTL, wait: None }
    }

    /// How long the place outlives its last keep-alive. Default 10 s.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// Value of the key. Default: empty.
    pub fn value(mut self, value: impl Into<Vec<u8>>) -> Self {
        self.value = value.into();
        self
    }

    /// Limits the wait for the turn; a time longer than the clock can count means for ever.
    /// Unanswered calls end after the client's time limit. Default: for ever.
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = Some(wait);
        self
    }

    /// Does not wait for others.
    pub fn try_now(self) -> Self {
        self.wait(Duration::ZERO)
    }

    async fn enter(self) -> Result<Turn, Error> {
        let deadline = self.wait.and_then(|wait| Instant::now().checked_add(wait));
        // Each place has its own lease: once the lease is revoked, a put that is still on its way
        // cannot arrive and hold the name without an owner.
        let lease = self.client.lease(self.ttl).await?;
        let lost = lease.lost_token();
        let waited = tokio::select! {
            biased;
            () = lost.cancelled() => Err(Error::session_lost()),
            waited = Place::take(&self, &lease, deadline) => waited,
        };
        match waited {
            // The answer may be old: without a live lease there is no turn.
            Ok(_) if lease.is_lost() => Err(Error::session_lost()),
            Ok((place, revision)) => {
                let Self { client, namespace, .. } = self;
                Ok(Turn { client, namespace, lease, place, revision })
            }
            Err(error) => {
                // A retry must not find its own old place ahead of it.
                if let Err(error) = lease.revoke().await {
                    tracing::debug!(%error, "leaving the queue failed");
                }
                Err(error)
            }
        }
    }
}

impl IntoFuture for Enter {
    type Output = Result<Turn, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.enter())
    }
}

/// A key in the queue.
#[derive(Debug, Clone)]
struct Place {
    key: Bytes,
    token: i64,
}

/// The state of a place.
enum Standing {
    First,
    Behind(Bytes),
    Gone,
}

impl Place {
    /// Puts the key and waits until it is the first one; returns the revision at which it was.
    async fn take(
        enter: &Enter,
        lease: &Lease,
        deadline: Option<Instant>,
    ) -> Result<(Self, i64), Error> {
        let prefix = [&enter.name[..], b"/"].concat();
        let name = Bytes::from([&prefix[..], &lease.key_suffix()].concat());
        // The lease is new, so the key is new, too.
        let entered = enter.client.put(name.clone(), &enter.value[..]).lease(lease.id()).await?;
        let place = Self { key: name, token: entered.revision() };
        loop {
            let (standing, revision) = place.look(&enter.client, &prefix).await?;
            let before = match standing {
                Standing::First => return Ok((place, revision)),
                Standing::Gone => return Err(Error::lost("the place was taken away")),
                Standing::Behind(before) => before,
            };
            let gone = wait_for_delete(&enter.client, before, revision + 1);
            match deadline {
                Some(deadline) => {
                    timeout_at(deadline, gone).await.map_err(|_elapsed| Error::Busy)??;
                }
                None => gone.await?,
            }
        }
    }

    /// The state of the place, and a revision at which that was so.
    ///
    /// Two reads and not one transaction: dropping an acquisition cancels what is under way, and
    /// etcd before 3.5.5 ends with a panic if that is a transaction that only reads (etcd#14110).
    /// No contender can enter before this one, so what the first read did not find is not there
    /// at the revision of the second one either.
    async fn look(&self, client: &Client, prefix: &[u8]) -> Result<(Standing, i64), Error> {
        let mut before = RangeRequest {
            key: Bytes::copy_from_slice(prefix),
            range_end: prefix_end(prefix),
            max_create_revision: self.token - 1,
            limit: 1,
            keys_only: true,
            ..RangeRequest::default()
        };
        before.set_sort_target(SortTarget::Create);
        before.set_sort_order(SortOrder::Descend);
        let before = client.send_range(before).await?;
        let own = client.get(&self.key[..]).keys_only().await?;
        let is_there = own.kvs.first().is_some_and(|own| own.create_revision == self.token);
        Ok(match before.kvs.first() {
            _ if !is_there => (Standing::Gone, own.revision()),
            // It may have been deleted between the two reads.
            Some(KeyValue { key, .. }) => (Standing::Behind(key.clone()), before.revision()),
            None => (Standing::First, own.revision()),
        })
    }
}

/// Returns when the key was deleted in `revision` or later, or may have been.
async fn wait_for_delete(client: &Client, key: Bytes, revision: i64) -> Result<(), Error> {
    let mut watcher = client.watch(key).from_revision(revision).no_puts().start();
    loop {
        match watcher.next().await {
            Ok(Some(response)) if response.events.is_empty() => {}
            Ok(_) | Err(Error::Compacted { .. } | Error::FutureRevision(_)) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// The first place in a queue: held for as long as this guard exists and its lease lives.
///
/// Give it up with [`Turn::release`], which reports whether that worked. Dropping the guard gives
/// it up in the background without a report; if that fails, the place ends with its lease.
///
/// ```no_run
/// # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
/// let turn = client.queue("reports").await?;
/// turn.set_value("writing page 1").await?; // for those who look at the queue
/// // An external store refuses requests with an older token than it has seen.
/// let sql = "UPDATE reports SET text = $1, fence = $2 WHERE fence <= $2";
/// println!("{sql} with {}", turn.token());
/// if !turn.is_held().await? {
///     println!("an operator took it away");
/// }
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "the turn is over when the guard is dropped"]
pub struct Turn {
    client: Client,
    namespace: Namespace,
    lease: Lease,
    place: Place,
    revision: i64,
}

impl Turn {
    /// The key that holds the name.
    #[must_use]
    pub fn key(&self) -> &Bytes {
        &self.place.key
    }

    /// The fencing token, the key's create revision: larger than that of every earlier holder of
    /// the name. Pass it along to whatever the name protects, and refuse requests with an older
    /// token there.
    #[must_use]
    pub fn token(&self) -> i64 {
        self.place.token
    }

    /// A revision at which the key was the first one.
    #[must_use]
    pub fn revision(&self) -> i64 {
        self.revision
    }

    pub(crate) fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// The lease to which the key is attached.
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Cancelled when the lease may have ended: before the server gives the name to others, as long
    /// as this process gets to run. If an operator deletes the key, only [`Turn::is_held`] and
    /// [`Turn::txn`] notice.
    #[must_use]
    pub fn lost(&self) -> CancellationToken {
        self.lease.lost_token()
    }

    /// Runs `work` until it ends or the turn is lost; in the latter case `work` is dropped.
    ///
    /// # Errors
    /// [`Error::Lost`] if the turn was lost: what `work` had begun may be half done.
    pub async fn run<T>(&self, work: impl Future<Output = T>) -> Result<T, Error> {
        self.lease.pulse().run(pin!(work)).await
    }

    /// Asks the cluster whether the name is held at this moment.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn is_held(&self) -> Result<bool, Error> {
        let own = self.client.get(&self.place.key[..]).keys_only().await?.one();
        Ok(own.is_some_and(|own| own.create_revision == self.place.token))
    }

    /// Starts a transaction that is carried out only if the name is held when it is applied.
    pub fn txn(&self) -> Txn<Owned> {
        self.txn_in(self.namespace.clone())
    }

    fn txn_in(&self, namespace: Namespace) -> Txn<Owned> {
        let (client, Place { key, token }) = (self.client.clone(), self.place.clone());
        Txn { client: Owned { client, namespace, key, token }, request: Default::default() }
    }

    /// Changes the value of the key.
    ///
    /// # Errors
    /// [`Error::Lost`] if the name is no longer held. See [`Error`]; [`Error::outcome`] says
    /// whether it may have been applied.
    pub async fn set_value(&self, value: impl Into<Vec<u8>>) -> Result<(), Error> {
        let put = put(&self.place.key[..], value).lease(self.lease.id());
        self.txn_in(Namespace::default()).then(put).commit().await.map(drop)
    }

    /// Gives up the name.
    ///
    /// # Errors
    /// [`Error::Lost`] if its lease had ended. See [`Error`]; the place then ends when its TTL has
    /// passed.
    pub async fn release(self) -> Result<(), Error> {
        match self.lease.revoke().await {
            Err(Error::NotFound(_)) => Err(Error::session_lost()),
            done => done,
        }
    }
}

/// Marks a transaction that needs a [`Turn`]; see [`Turn::txn`].
///
/// ```no_run
/// # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
/// use conclave_client::{Error, kv::put, queue::Owned, txn::{Txn, key}};
///
/// /// Sells one piece for the holder of the turn; repeated with the same number, it counts once.
/// async fn sell(turn: Txn<Owned>, pieces: u32) -> Result<bool, Error> {
///     let is_same = key("stock").value().equal(pieces.to_string());
///     let sold = turn.when(is_same).then(put("stock", (pieces - 1).to_string()));
///     sold.commit().await.map(|answer| answer.succeeded)
/// }
/// let turn = client.queue("stock/lock").await?;
/// println!("{}", sell(turn.txn(), 10).await?);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Owned {
    client: Client,
    namespace: Namespace,
    key: Bytes,
    token: i64,
}

impl Txn<Owned> {
    /// Sends the transaction. The answer's `succeeded` says whether its own compares held.
    ///
    /// # Errors
    /// [`Error::Lost`] if the name is no longer held; nothing was done then. See [`Error`];
    /// [`Error::outcome`] says whether it may have been applied.
    pub async fn commit(self) -> Result<Reply<TxnResponse>, Error> {
        let Self { client: Owned { client, namespace, key: own, token }, request } = self;
        let request = namespace.txn(request)?;
        // Nested, so that the answer distinguishes the two kinds of compares.
        let inner = Txn { request, ..txn() };
        let is_own = key(own).create_revision().equal(token);
        let outer = client.txn().when(is_own).then(inner).commit().await?.into_inner();
        let answer = outer.responses.into_iter().next().and_then(|answer| answer.response);
        match answer {
            Some(Response::ResponseTxn(answer)) if outer.succeeded => {
                // etcd leaves the header of the inner answer empty.
                let answer = TxnResponse { header: outer.header, ..answer };
                Ok(Reply::new(namespace.committed(answer)))
            }
            _ => Err(Error::lost("the name is held no more")),
        }
    }
}
