//! A held lock.

use std::pin::pin;

use bytes::Bytes;
use conclave_proto::{
    etcdserverpb::TxnResponse,
    v1::{
        CheckFenceRequest, CheckFenceResponse, CommitRequest, ConvertRequest, Granted, Guard,
        HeldLock, lock_service_client::LockServiceClient,
    },
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::{
    client::Client,
    error::{Error, Outcome},
    loss::Loss,
    once::Caller,
    pulse::run_while,
    queue::{Owned, Turn},
    reply::Reply,
    session::{self, Hearing, Session},
    txn::Txn,
    undo::Kept,
};

/// A held lock: held for as long as this guard exists and its session lives.
///
/// Release it with [`LockGuard::release`], which reports whether that worked. Dropping the guard
/// releases in the background without a report, with retries for as long as the session lives.
///
/// ```no_run
/// # async fn example(session: conclave_client::Session) -> Result<(), conclave_client::Error> {
/// use conclave_client::{Error, kv::put};
///
/// let mut lock = session.lock("documents/7").shared().await?; // others may read, too
/// let text = session.client().get("texts/7").await?.one().unwrap_or_default();
/// match lock.upgrade().await {
///     Ok(()) => {}
///     Err(Error::Refused(_)) => return lock.release().await, // others read, or wait
///     Err(error) => return Err(error),
/// }
/// lock.txn().then(put("texts/7", text.value.to_ascii_uppercase())).commit().await?;
/// lock.release().await?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "the lock is released when the guard is dropped"]
pub struct LockGuard {
    held: Held,
    /// With full names, including the namespace.
    whole: Vec<HeldLock>,
    /// With names relative to the client's namespace.
    locks: Vec<HeldLock>,
}

/// How the lock is held.
#[derive(Debug)]
enum Held {
    /// A place in the queue of Conclave's lock API.
    Place(Place),
    /// A turn of etcd's recipe, on a server without that API.
    Turn(Turn),
}

impl Held {
    /// Converts one of the locks to another share without releasing it; returns its new token.
    async fn convert(&self, lock: &HeldLock, permits: u32, limit: u32) -> Result<i64, Error> {
        let Self::Place(place) = self else { return Err(unimplemented()) };
        let session = &place.kept.session;
        let request = ConvertRequest {
            name: Bytes::clone(&lock.name),
            session: session.id(),
            request_id: Bytes::clone(&place.request_id),
            permits,
            limit,
            once: None,
        };
        let call = |channel, once| {
            let request = ConvertRequest { once, ..request.clone() };
            async move { LockServiceClient::new(channel).convert(request).await }
        };
        Ok(Caller::session(session).send(call).await?.fence)
    }
}

/// A granted request; released when dropped.
#[derive(Debug)]
struct Place {
    kept: Kept,
    request_id: Bytes,
    hearing: Hearing,
}

impl Place {
    fn loss(&self) -> Option<Loss> {
        let session = || self.kept.session.is_lost().then_some(Loss::Session);
        self.hearing.standing().loss().cloned().or_else(session)
    }
}

impl LockGuard {
    pub(super) fn new(kept: Kept, request_id: Bytes, granted: Granted, hearing: Hearing) -> Self {
        hearing.holds(Some(&granted.locks));
        let place = Place { kept, request_id, hearing };
        Self::of(Held::Place(place), granted.locks)
    }

    pub(super) fn of_turn(name: Bytes, turn: Turn) -> Self {
        let lock = HeldLock { name, key: turn.key().clone(), fence: turn.token() };
        Self::of(Held::Turn(turn), vec![lock])
    }

    fn of(held: Held, whole: Vec<HeldLock>) -> Self {
        let mut guard = Self { held, whole, locks: Vec::new() };
        guard.show();
        guard
    }

    fn show(&mut self) {
        let namespace = match &self.held {
            Held::Place(place) => place.kept.session.client().namespace(),
            Held::Turn(turn) => turn.namespace(),
        };
        let mut shown = self.whole.clone();
        shown.iter_mut().for_each(|lock| namespace.strip(&mut lock.name));
        self.locks = shown;
    }

    fn client(&self) -> &Client {
        match &self.held {
            Held::Place(place) => place.kept.session.client(),
            Held::Turn(turn) => turn.client(),
        }
    }

    /// The fencing token: larger than that of every earlier holder of this lock. Pass it along to
    /// whatever the lock protects, and refuse requests with an older token there. Locks that were
    /// acquired together for the first time have the same token; see [`LockGuard::locks`].
    #[must_use]
    pub fn token(&self) -> i64 {
        self.whole.first().map_or(0, |lock| lock.fence)
    }

    /// The locks by name, with their tokens and keys. Names are relative to the namespace; keys are
    /// always full keys.
    #[must_use]
    pub fn locks(&self) -> &[HeldLock] {
        &self.locks
    }

    /// The session that holds the lock; `None` if a plain lease holds it, because the server knows
    /// no sessions.
    #[must_use]
    pub fn session(&self) -> Option<&Session> {
        match &self.held {
            Held::Place(place) => Some(&place.kept.session),
            Held::Turn(_) => None,
        }
    }

    /// Cancelled when the lock is lost. If its session may have ended: before the server gives the
    /// lock to others, as long as this process gets to run. If an operator takes the lock away or
    /// its key is deleted: as soon as the member that receives the session's heartbeats reports it.
    /// Old versions do not report it; there [`LockGuard::is_held`] and [`LockGuard::txn`] detect
    /// it. Of several locks, cancelled when one is lost.
    #[must_use]
    pub fn lost(&self) -> CancellationToken {
        match &self.held {
            Held::Place(place) => place.hearing.standing().lost().clone(),
            Held::Turn(turn) => turn.lost(),
        }
    }

    /// Why the lock was lost, if it was.
    #[must_use]
    pub fn loss(&self) -> Option<Loss> {
        match &self.held {
            Held::Place(place) => place.loss(),
            Held::Turn(turn) => turn.lease().is_lost().then_some(Loss::Session),
        }
    }

    /// Waits until the lock is lost or may soon be, because its session is in jeopardy: time to
    /// finish what needs it. Cancel-safe.
    pub async fn jeopardy(&self) {
        let lost = self.lost();
        let near = async {
            match &self.held {
                Held::Place(place) => place.kept.session.jeopardy().await,
                Held::Turn(turn) => turn.lease().jeopardy().await,
            }
        };
        tokio::select! {
            () = lost.cancelled() => {}
            () = near => {}
        }
    }

    /// Runs `work` until it ends or the lock is lost; in the latter case `work` is dropped.
    ///
    /// # Errors
    /// [`Error::Lost`] if the lock was lost: what `work` had begun may be half done.
    pub async fn run<T>(&self, work: impl Future<Output = T>) -> Result<T, Error> {
        run_while(&self.lost(), || self.loss().map(|loss| loss.error()), pin!(work)).await
    }

    /// Asks the cluster whether the lock is held at this moment.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn is_held(&self) -> Result<bool, Error> {
        if let Held::Turn(turn) = &self.held {
            return turn.is_held().await;
        }
        session::are_held(self.client(), &self.whole).await
    }

    /// Starts a transaction that is carried out only if this lock is held when it is applied.
    pub fn txn(&self) -> Txn<Guarded> {
        match &self.held {
            Held::Place(place) => {
                let guards = self.whole.iter();
                let guards =
                    guards.map(|lock| Guard { name: lock.name.clone(), fence: lock.fence });
                Guarded::by_locks(place.kept.session.client().clone(), guards.collect())
            }
            Held::Turn(turn) => Guarded::by_turn(turn),
        }
    }

    /// Becomes a shared holder (reader) without letting go: others may read from now on. The token
    /// stays the same.
    ///
    /// # Errors
    /// [`Error::Refused`] if the lock is no longer held, or other guards of the session hold it by
    /// re-entry; [`Error::Unimplemented`] from a server without shared locks. See [`Error`];
    /// [`Error::outcome`] says whether it may have been done, or may still be. Of several locks,
    /// some may be converted by then.
    pub async fn downgrade(&self) -> Result<(), Error> {
        for lock in &self.whole {
            self.held.convert(lock, 1, u32::MAX).await?;
        }
        Ok(())
    }

    /// Becomes the exclusive holder (writer), if there is no other reader. If there was another
    /// reader in the meantime, the token grows: use what [`LockGuard::token`] returns afterwards.
    ///
    /// # Errors
    /// [`Error::Refused`] if there are other readers, if others wait and the token would have to
    /// grow, or if the lock is no longer held. See [`Error`] and [`LockGuard::downgrade`]. If the
    /// outcome is unknown, the guard may have an old token, for which [`LockGuard::is_held`] and
    /// [`LockGuard::txn`] say that the lock is no longer held.
    pub async fn upgrade(&mut self) -> Result<(), Error> {
        // A check made meanwhile with the old token would report the lock as lost.
        self.tell_held(false);
        let mut upgraded = Ok(());
        for lock in &mut self.whole {
            match self.held.convert(lock, 1, 1).await {
                Ok(fence) => lock.fence = fence,
                Err(error) => {
                    upgraded = Err(error);
                    break;
                }
            }
        }
        self.tell_held(!matches!(&upgraded, Err(error) if error.outcome() == Outcome::Unknown));
        self.show();
        upgraded
    }

    fn tell_held(&self, is_known: bool) {
        if let Held::Place(place) = &self.held {
            place.hearing.holds(is_known.then_some(&self.whole));
        }
    }

    /// Releases the lock.
    ///
    /// # Errors
    /// [`Error::Lost`] if the lock, or one of several, was no longer held. See [`Error`]; the
    /// release is then retried in the background, as if the guard had been dropped.
    pub async fn release(self) -> Result<(), Error> {
        let place = match self.held {
            Held::Place(place) => place,
            Held::Turn(turn) => return turn.release().await,
        };
        let Place { kept, hearing, .. } = place;
        let session = kept.session.clone();
        let was_held = match Box::pin(kept.undo()).await {
            // The lock ended with its session.
            Err(Error::NotFound(_) | Error::Lost { .. }) => false,
            done => done?,
        };
        let lost = || session.is_lost().then_some(Loss::Session);
        let loss = || hearing.standing().loss().cloned().or_else(lost);
        let error = || loss().map_or(Error::lost("the lock was held no more"), |loss| loss.error());
        if was_held { Ok(()) } else { Err(error()) }
    }
}

/// The error for a lock option that etcd's recipe lacks.
pub(crate) fn unimplemented() -> Error {
    Error::Unimplemented(Status::unimplemented("the server offers exclusive locks only"))
}

/// Marks a transaction that needs locks or leadership; see [`LockGuard::txn`] and
/// [`crate::election::Leadership::txn`].
///
/// ```no_run
/// # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
/// use conclave_client::{Error, kv::put, lock::Guarded, txn::Txn};
///
/// /// Books a seat if the lock is held or the process leads; says whether it did.
/// async fn book(right: Txn<Guarded>) -> Result<bool, Error> {
///     match right.then(put("seats/4", "ada")).commit().await {
///         Ok(_) => Ok(true),
///         Err(Error::Lost { .. }) => Ok(false),
///         Err(error) => Err(error),
///     }
/// }
/// let lock = client.lock("locks/seats").await?;
/// println!("booked: {}", book(lock.txn()).await?);
/// let leadership = client.election("clerk").campaign("clerk-1").await?;
/// println!("booked: {}", book(leadership.txn()).await?);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Guarded {
    by: By,
}

impl Guarded {
    /// A transaction that needs all of these locks.
    pub(crate) fn by_locks(client: Client, guards: Vec<Guard>) -> Txn<Self> {
        Txn { client: Self { by: By::Locks(client, guards) }, request: Default::default() }
    }

    /// A transaction that needs a turn of etcd's recipe.
    pub(crate) fn by_turn(turn: &Turn) -> Txn<Self> {
        Txn { client: Self { by: By::Turn(turn.txn().client) }, request: Default::default() }
    }
}

/// What a transaction depends on.
#[derive(Debug, Clone)]
enum By {
    Locks(Client, Vec<Guard>),
    Turn(Owned),
}

impl Txn<Guarded> {
    /// Sends the transaction. The answer's `succeeded` says whether its compares held.
    ///
    /// # Errors
    /// [`Error::Lost`] if the lock is no longer held; nothing was done then. See [`Error`];
    /// [`Error::outcome`] says whether it may have been applied.
    pub async fn commit(self) -> Result<Reply<TxnResponse>, Error> {
        let (client, guards) = match self.client.by {
            By::Locks(client, guards) => (client, guards),
            By::Turn(client) => return Txn { client, request: self.request }.commit().await,
        };
        let namespace = client.namespace();
        let txn = namespace.txn(self.request)?;
        if let Some(answer) = client.write_once(&guards, &txn).await? {
            return Ok(Reply::new(namespace.committed(answer)));
        }
        let request = CommitRequest { guards, txn: Some(txn) };
        let call = |channel| {
            let request = request.clone();
            let client = LockServiceClient::new(channel);
            async move { client.max_decoding_message_size(usize::MAX).commit(request).await }
        };
        let answer = client.write(call).await?;
        let txn = answer.txn.filter(|_| answer.held);
        let txn = txn.ok_or(Error::lost("the lock is held no more"))?;
        Ok(Reply::new(namespace.committed(txn)))
    }
}

impl Client {
    /// Whether `fence` is the token of a current holder of `name`: for services that were handed a
    /// token.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn check_fence(&self, name: impl Into<Vec<u8>>, fence: i64) -> Result<bool, Error> {
        let name = self.namespace().name(name);
        let request = CheckFenceRequest { name, fence, key: Bytes::new() };
        self.ask_fence(request).await.map(|answer| answer.held)
    }

    pub(crate) async fn ask_fence(
        &self,
        request: CheckFenceRequest,
    ) -> Result<CheckFenceResponse, Error> {
        let call = |channel| {
            let request = request.clone();
            async move { LockServiceClient::new(channel).check_fence(request).await }
        };
        self.read(call).await
    }
}
