//! Latches: numbers that count down to 0, which releases all waiters.
//!
//! A latch is decimal text in the key with its name. At 0 it stays there: later waiters do not
//! wait. It belongs to no session: if a process ends before it counted down, its count stays
//! missing, so wait with a limit. Through a session every count-down counts once, however often it
//! had to be sent.
//!
//! ```no_run
//! # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
//! use std::time::Duration;
//!
//! let session = client.session().owner("loader-1").await?;
//! let loaded = session.latch("loaded/2026-11-21");
//! loaded.create(3).await?;                                  // the first call counts
//! loaded.count_down().await?;
//! loaded.wait().at_most(Duration::from_secs(60)).await?;    // Error::NotYet after that
//! # Ok(())
//! # }
//! ```

use bytes::Bytes;
use conclave_proto::v1::{
    LatchCountDownRequest, LatchCreateRequest, LatchGetRequest, LatchResponse,
    latch_service_client::LatchServiceClient,
};

use crate::{
    client::Client,
    error::Error,
    once::Caller,
    session::Session,
    wait::{For, Wait},
};

impl Client {
    /// The latch `name`.
    pub fn latch(&self, name: impl Into<Vec<u8>>) -> Latch {
        Latch { caller: Caller::client(self), name: self.namespace().name(name) }
    }
}

impl Session {
    /// The latch `name`, counted down on behalf of this session: every count-down takes effect
    /// once.
    pub fn latch(&self, name: impl Into<Vec<u8>>) -> Latch {
        let name = self.client().namespace().name(name);
        Latch { caller: Caller::session(self), name }
    }
}

/// A latch; see [`Session::latch`].
///
/// ```no_run
/// # async fn example(session: conclave_client::Session) -> Result<(), conclave_client::Error> {
/// use conclave_client::{Error, latch::Latch};
///
/// // Each of 100 parts counts once, however often its request had to be sent.
/// let parts: Latch = session.latch("import/parts");
/// parts.create(100).await?;
/// match parts.count_down_by(10).await {
///     Ok(left) => println!("{} parts to come", left.count),
///     Err(Error::NotFound(_)) => println!("the import was called off"),
///     Err(error) => return Err(error),
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
#[must_use = "a latch does nothing by itself"]
pub struct Latch {
    caller: Caller,
    name: Bytes,
}

/// The state of a latch.
///
/// ```no_run
/// # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
/// use conclave_client::latch::Remaining;
///
/// let Remaining { count, revision } = client.latch("import/parts").remaining().await?;
/// match count {
///     0 => println!("complete since revision {revision}"),
///     count => println!("{count} parts to come"),
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remaining {
    /// How often it still has to be counted down; 0: nobody waits.
    pub count: i64,
    /// Revision of its last change.
    pub revision: i64,
}

impl Latch {
    /// Creates the latch with `count`, unless it exists: then it stays as it is.
    ///
    /// # Errors
    /// [`Error::Refused`] if the key does not hold a number. See [`Error`].
    pub async fn create(&self, count: i64) -> Result<Remaining, Error> {
        let call = |channel, once| {
            let request = LatchCreateRequest { once, name: self.name.clone(), count };
            async move { LatchServiceClient::new(channel).create(request).await }
        };
        self.caller.send(call).await.map(remaining)
    }

    /// Counts down by one, but not below 0.
    ///
    /// # Errors
    /// [`Error::NotFound`] if the latch does not exist, or the session has ended. See [`Error`].
    pub async fn count_down(&self) -> Result<Remaining, Error> {
        self.count_down_by(1).await
    }

    /// Counts down by `by` at once, but not below 0. A `by` of 0 means 1.
    ///
    /// # Errors
    /// As for [`Latch::count_down`]; [`Error::Invalid`] if `by` is negative.
    pub async fn count_down_by(&self, by: i64) -> Result<Remaining, Error> {
        let call = |channel, once| {
            let request = LatchCountDownRequest { once, name: self.name.clone(), by };
            async move { LatchServiceClient::new(channel).count_down(request).await }
        };
        self.caller.send(call).await.map(remaining)
    }

    /// The current state.
    ///
    /// # Errors
    /// [`Error::NotFound`] if the latch does not exist. See [`Error`].
    pub async fn remaining(&self) -> Result<Remaining, Error> {
        let request = LatchGetRequest { name: self.name.clone() };
        let call = |channel| {
            let request = request.clone();
            async move { LatchServiceClient::new(channel).get(request).await }
        };
        self.caller.client.read(call).await.map(remaining)
    }

    /// Waits until the latch is at 0; await the result. If the latch does not exist yet, also waits
    /// for its creation; if it is deleted meanwhile, the wait fails with [`Error::Lost`].
    pub fn wait(&self) -> Wait {
        Wait::new(&self.caller.client, For::Latch, &self.name)
    }
}

fn remaining(answer: LatchResponse) -> Remaining {
    Remaining { count: answer.remaining, revision: answer.revision }
}
