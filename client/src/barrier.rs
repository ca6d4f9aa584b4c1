//! Barriers: processes wait at a barrier until it is lifted.
//!
//! A barrier is raised while the key with its name exists, whoever put it, and lifted when that key
//! is deleted. [`Barrier::raise`] puts one that stays until it is lifted; [`Session::hold_barrier`]
//! puts one that is lifted with its session at the latest.
//!
//! ```no_run
//! # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
//! use std::time::Duration;
//!
//! let session = client.session().owner("migration").await?;
//! let held = session.hold_barrier("schema/migrating").await?;    // others wait
//! // ... migrate
//! held.lift().await?;
//!
//! client.barrier("schema/migrating").wait().at_most(Duration::from_secs(60)).await?;
//! # Ok(())
//! # }
//! ```

use bytes::Bytes;
use conclave_proto::v1::{
    BarrierLiftRequest, BarrierRaiseRequest, barrier_service_client::BarrierServiceClient,
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::{
    client::Client,
    error::Error,
    once::{Caller, Ticket},
    session::Session,
    undo::{Did, Kept},
    wait::{For, Wait},
};

impl Client {
    /// The barrier `name`.
    pub fn barrier(&self, name: impl Into<Vec<u8>>) -> Barrier {
        Barrier { caller: Caller::client(self), name: self.namespace().name(name) }
    }
}

impl Session {
    /// The barrier `name`, raised and lifted on behalf of this session, so that a late retry has no
    /// effect. For a barrier that ends with the session use [`Session::hold_barrier`].
    pub fn barrier(&self, name: impl Into<Vec<u8>>) -> Barrier {
        let name = self.client().namespace().name(name);
        Barrier { caller: Caller::session(self), name }
    }

    /// Raises the barrier `name` for as long as the guard exists and the session lives.
    ///
    /// # Errors
    /// [`Error::Refused`] if it is raised already. See [`Error`].
    pub async fn hold_barrier(&self, name: impl Into<Vec<u8>>) -> Result<HeldBarrier, Error> {
        let name = self.client().namespace().name(name);
        let ticket = self.request().await?;
        let (session, sequence) = (self.clone(), ticket.sequence());
        // From here on the request is undone, even if this future is dropped.
        let (did, open) = (Did::Raise(0), Some(ticket));
        let mut kept = Kept { session, name: name.clone(), sequence, did, open, is_over: false };
        let call = |channel| {
            let (once, name) = (kept.open.as_ref().map(Ticket::once), name.clone());
            let request = BarrierRaiseRequest { once, name, note: Bytes::new(), bound: true };
            async move { BarrierServiceClient::new(channel).raise(request).await }
        };
        let answer = self.client().repeat(call).await?;
        kept.open = None;
        if !answer.raised {
            kept.is_over = true;
            let status = Status::failed_precondition("conclave: the barrier is raised already");
            return Err(Error::Refused(status));
        }
        kept.did = Did::Raise(answer.fence);
        Ok(HeldBarrier { kept, fence: answer.fence })
    }
}

/// A barrier; see [`Client::barrier`].
///
/// ```no_run
/// # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
/// // Others wait until all is loaded, even if this process ends meanwhile.
/// let barrier = client.barrier("loading");
/// barrier.raise().await?;
/// // ... load, and in the end, perhaps in another process:
/// if !client.barrier("loading").lift().await? {
///     println!("somebody lifted it before");
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
#[must_use = "a barrier does nothing by itself"]
pub struct Barrier {
    caller: Caller,
    name: Bytes,
}

/// The result of raising a barrier.
///
/// ```no_run
/// # async fn example(session: conclave_client::Session) -> Result<(), conclave_client::Error> {
/// use conclave_client::barrier::Raised;
///
/// let Raised { is_new, fence } = session.barrier("loading").raise().await?;
/// let by = if is_new { "this process" } else { "another one" };
/// println!("raised by {by} in revision {fence}");
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Raised {
    /// Whether this call raised the barrier; false if it was raised already.
    pub is_new: bool,
    /// Create revision of its key: grows each time that the barrier is raised.
    pub fence: i64,
}

impl Barrier {
    /// Raises the barrier until it is lifted.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn raise(&self) -> Result<Raised, Error> {
        let call = |channel, once| {
            let name = self.name.clone();
            let request = BarrierRaiseRequest { once, name, note: Bytes::new(), bound: false };
            async move { BarrierServiceClient::new(channel).raise(request).await }
        };
        let answer = self.caller.send(call).await?;
        Ok(Raised { is_new: answer.raised, fence: answer.fence })
    }

    /// Lifts the barrier, whoever raised it. Returns whether it was raised.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn lift(&self) -> Result<bool, Error> {
        let call = |channel, once| {
            let request = BarrierLiftRequest { once, name: self.name.clone(), fence: 0 };
            async move { BarrierServiceClient::new(channel).lift(request).await }
        };
        self.caller.send(call).await.map(|answer| answer.lifted)
    }

    /// Waits until the barrier is lifted; await the result. Returns at once if it is not raised.
    pub fn wait(&self) -> Wait {
        Wait::new(&self.caller.client, For::Barrier, &self.name)
    }
}

/// A held barrier: raised for as long as this guard exists and its session lives.
///
/// Lift it with [`HeldBarrier::lift`], which reports whether that worked. Dropping the guard lifts
/// in the background without a report, with retries for as long as the session lives.
///
/// ```no_run
/// # async fn example(session: conclave_client::Session) -> Result<(), conclave_client::Error> {
/// let held = session.hold_barrier("schema/migrating").await?;
/// let lost = held.lost();
/// tokio::select! {
///     () = migrate() => held.lift().await?,
///     () = lost.cancelled() => eprintln!("others go on: the schema may be half done"),
/// }
/// # async fn migrate() {}
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "the barrier is lifted when the guard is dropped"]
pub struct HeldBarrier {
    kept: Kept,
    fence: i64,
}

impl HeldBarrier {
    /// Create revision of the key.
    #[must_use]
    pub fn fence(&self) -> i64 {
        self.fence
    }

    /// Cancelled when the session is lost, and the barrier with it.
    #[must_use]
    pub fn lost(&self) -> CancellationToken {
        self.kept.session.lost()
    }

    /// Lifts the barrier.
    ///
    /// # Errors
    /// [`Error::Lost`] if it was already lifted. See [`Error`]; it is then retried in the
    /// background.
    pub async fn lift(self) -> Result<(), Error> {
        let was_raised = self.kept.undo().await?;
        if was_raised { Ok(()) } else { Err(Error::lost("the barrier was lifted")) }
    }
}
