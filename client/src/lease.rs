//! Leases: keys that are deleted unless their lease is kept alive.
//!
//! [`Lease`] is a guard: a background task keeps the lease alive. This process judges it by its own
//! monotonic clock, counted from when a keep-alive was *sent*. So the guard reports a loss before
//! the server can let the lease expire, even if answers are delayed or lost. On Linux that clock
//! also runs while the machine is suspended.

mod keeper;

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use bytes::Bytes;
use conclave_proto::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse,
    LeaseLeasesRequest, LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse,
    LeaseTimeToLiveRequest, LeaseTimeToLiveResponse, lease_client::LeaseClient,
};
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Response, Status};

use crate::{
    client::Client,
    error::{Error, Outcome},
    login::Channel,
    moment::Moment,
    pulse::Pulse,
    reliance,
    reply::Reply,
    session,
};

/// What this process knows about its lease.
///
/// ```no_run
/// # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
/// use std::time::Duration;
/// use conclave_client::LeaseState;
///
/// let lease = client.lease(Duration::from_secs(10)).await?;
/// let mut states = lease.state();
/// while states.changed().await.is_ok() {
///     match *states.borrow_and_update() {
///         LeaseState::Alive => println!("go on"),
///         LeaseState::Suspended => println!("begin nothing new: the cluster does not answer"),
///         LeaseState::Lost => break,
///     }
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LeaseState {
    /// The server renewed the lease, and the granted time has not passed.
    Alive,
    /// The last keep-alive failed or was not answered, but the granted time has not passed: do not
    /// begin anything that needs the lease.
    Suspended,
    /// The lease ended, or may have. Final.
    Lost,
}

impl Client {
    /// Grants a lease of at least `ttl` (whole seconds, rounded up) and keeps it alive.
    ///
    /// # Errors
    /// See [`Error`]. If the outcome is unknown, the lease is revoked in the background; if that
    /// fails, too, it may remain until its TTL has passed.
    ///
    /// # Cancel safety
    /// If the future is dropped, the lease is revoked in the background.
    pub async fn lease(&self, ttl: Duration) -> Result<Lease, Error> {
        let client = self.clone();
        self.begin(async move { client.grant_and_keep(ttl).await }).await
    }

    async fn grant_and_keep(&self, ttl: Duration) -> Result<Lease, Error> {
        let seconds = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
        let seconds = seconds.saturating_add(i64::from(ttl.subsec_nanos() > 0));
        let sent = Moment::now();
        let grant = self.lease_grant_or_revoke(seconds).await?;
        let granted = Duration::from_secs(u64::try_from(grant.ttl).unwrap_or(0));
        let (state, states) = watch::channel(LeaseState::Alive);
        let state = Arc::new(state);
        let teller = Arc::downgrade(&state);
        let (guard, dropped) = oneshot::channel();
        let standing = keeper::Standing {
            state,
            lost: CancellationToken::new(),
            deadline: Arc::new(Mutex::new(reliance::lost_at(sent, granted))),
        };
        let (lost, deadline) = (standing.lost.clone(), Arc::clone(&standing.deadline));
        let keeper = keeper::Keeper::new(self.clone(), grant.id, granted, standing);
        // Not aborted with the guard: it still has to revoke the lease. It ends by itself, at most
        // one time limit after the guard.
        self.spawn(keeper.run(dropped));
        let client = self.clone();
        let guard = Some(guard);
        let pulse = Pulse::of_lease(lost, Arc::clone(&deadline));
        Ok(Lease { client, id: grant.id, ttl: granted, states, teller, pulse, deadline, guard })
    }

    /// Grants a lease of at least `ttl` seconds without keeping it alive. `id` 0 lets the server
    /// choose.
    ///
    /// # Errors
    /// [`Error::Refused`] if the id is taken, and those of any write.
    pub async fn lease_grant(&self, ttl: i64, id: i64) -> Result<Reply<LeaseGrantResponse>, Error> {
        let request = LeaseGrantRequest { ttl, id };
        let call = |channel| async move { LeaseClient::new(channel).lease_grant(request).await };
        self.write(call).await.map(Reply::new)
    }

    /// Grants a lease under a new id. If nobody knows whether that worked, revokes it in the
    /// background.
    pub(crate) async fn lease_grant_or_revoke(
        &self,
        ttl: i64,
    ) -> Result<Reply<LeaseGrantResponse>, Error> {
        let id = session::new_id();
        let granted = self.lease_grant(ttl, id).await;
        if granted.as_ref().is_err_and(|error| error.outcome() == Outcome::Unknown) {
            let client = self.clone();
            self.spawn(async move { drop(client.lease_revoke(id).await) });
        }
        granted
    }

    /// Ends a lease and deletes its keys.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no such lease (any more), and those of any write.
    pub async fn lease_revoke(&self, id: i64) -> Result<Reply<LeaseRevokeResponse>, Error> {
        let request = LeaseRevokeRequest { id };
        let call = |channel| async move { LeaseClient::new(channel).lease_revoke(request).await };
        self.write(call).await.map(Reply::new)
    }

    /// The remaining time of a lease in seconds (-1: there is no such lease). With `keys`, also the
    /// keys attached to it, limited to the client's namespace.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn lease_time_to_live(
        &self,
        id: i64,
        keys: bool,
    ) -> Result<Reply<LeaseTimeToLiveResponse>, Error> {
        let request = LeaseTimeToLiveRequest { id, keys };
        let call = |channel| async move { lease(channel).lease_time_to_live(request).await };
        let mut answer = self.read(call).await?;
        answer.keys = self.namespace().own(answer.keys);
        Ok(Reply::new(answer))
    }

    /// Lists all leases.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn leases(&self) -> Result<Reply<LeaseLeasesResponse>, Error> {
        let call =
            |channel| async move { lease(channel).lease_leases(LeaseLeasesRequest {}).await };
        self.read(call).await.map(Reply::new)
    }

    /// Renews a lease once. An answer with TTL 0 or less means that there is no such lease.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn lease_keep_alive_once(
        &self,
        id: i64,
    ) -> Result<Reply<LeaseKeepAliveResponse>, Error> {
        // Renewing twice does no harm, so this may be retried like a read.
        let call = |channel| async move {
            let outgoing = tokio_stream::once(LeaseKeepAliveRequest { id });
            let mut stream =
                LeaseClient::new(channel).lease_keep_alive(outgoing).await?.into_inner();
            match stream.message().await? {
                Some(answer) => Ok(Response::new(answer)),
                None => Err(Status::new(Code::Unavailable, "keep-alive stream ended")),
            }
        };
        self.read(call).await.map(Reply::new)
    }
}

/// The generated client without its 4 MiB limit on answers: a lease may hold many keys.
fn lease(channel: Channel) -> LeaseClient<Channel> {
    LeaseClient::new(channel).max_decoding_message_size(usize::MAX)
}

/// A lease that is kept alive as long as this guard exists.
///
/// End it with [`Lease::revoke`], which reports whether that worked. Dropping the guard revokes in
/// the background, within the client's time limit and without a report; if that fails, the server
/// ends the lease when its TTL has passed.
///
/// ```no_run
/// # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
/// use std::time::Duration;
///
/// let lease = client.lease(Duration::from_secs(10)).await?;
/// client.put("cameras/7", "10.0.0.7:554").lease(lease.id()).await?;
/// tokio::select! {
///     () = film() => lease.revoke().await?, // deletes the key at once
///     () = lease.lost() => eprintln!("nobody finds this camera any more"),
/// }
/// # async fn film() {}
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "the lease is revoked when the guard is dropped"]
pub struct Lease {
    client: Client,
    id: i64,
    ttl: Duration,
    states: watch::Receiver<LeaseState>,
    /// The keeper's sender; it is gone when the keeper has ended.
    teller: Weak<watch::Sender<LeaseState>>,
    pulse: Pulse,
    /// Shared with the keeper: the earliest moment at which the lease may end.
    deadline: Arc<Mutex<Moment>>,
    /// Tells the keeper not to revoke the lease; dropping it makes the keeper revoke.
    guard: Option<oneshot::Sender<keeper::Released>>,
}

impl Lease {
    /// The lease's id, for [`crate::kv::Put::lease`].
    #[must_use]
    pub fn id(&self) -> i64 {
        self.id
    }

    /// The id in hexadecimal without leading zeros, as it appears in keys of locks and elections.
    #[must_use]
    pub fn key_suffix(&self) -> Bytes {
        format!("{:x}", self.id).into()
    }

    /// The TTL that the server granted.
    #[must_use]
    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    /// The lease's state, as a receiver that can wait for changes.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<LeaseState> {
        self.states.clone()
    }

    /// Waits until the lease is lost. Cancel-safe.
    pub async fn lost(&self) {
        self.pulse.lost().cancelled().await;
    }

    /// Cancelled when the lease is lost. As long as this process gets to run, that is before the
    /// server can give what the lease held to others.
    #[must_use]
    pub fn lost_token(&self) -> CancellationToken {
        self.pulse.lost().clone()
    }

    /// Whether the lease may have ended, by the clock at this moment. Correct even in a process
    /// that was stopped for a while and has not noticed yet.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.pulse.is_lost()
    }

    /// Waits until two thirds of the TTL have passed since the last answered keep-alive was sent,
    /// or the lease is lost: time to finish what needs the lease. Cancel-safe.
    pub async fn jeopardy(&self) {
        let third = reliance::lost_at(Duration::ZERO, self.ttl).saturating_sub(self.ttl * 2 / 3);
        let near = async {
            loop {
                let deadline = *self.deadline.lock();
                if deadline.left() <= third {
                    return;
                }
                // The deadline may have been extended by then.
                deadline.reached_but(third).await;
            }
        };
        tokio::select! {
            () = self.lost() => {}
            () = near => {}
        }
    }

    pub(crate) fn pulse(&self) -> &Pulse {
        &self.pulse
    }

    /// Ends the lease and deletes its keys.
    ///
    /// # Errors
    /// [`Error::NotFound`] if it had already ended, and those of any write. The call is then tried
    /// once more in the background, as if the guard had been dropped.
    pub async fn revoke(mut self) -> Result<(), Error> {
        // From now on others may get what the lease held.
        if let Some(state) = self.teller.upgrade() {
            keeper::lose(&state, self.pulse.lost());
        }
        self.pulse.lost().cancel();
        let revoked = self.client.lease_revoke(self.id).await.map(|_reply| ());
        // If it failed, dropping this guard still revokes.
        if matches!(revoked, Ok(()) | Err(Error::NotFound(_))) {
            self.release();
        }
        revoked
    }

    /// Stops keeping the lease alive without ending it, and returns its id.
    #[must_use]
    pub fn detach(mut self) -> i64 {
        self.release();
        self.id
    }

    fn release(&mut self) {
        if let Some(guard) = self.guard.take() {
            // The keeper may have ended because the lease was lost.
            drop(guard.send(keeper::Released));
        }
    }
}
