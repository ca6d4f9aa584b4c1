//! Counters: integers that many processes change, stored in ordinary keys.
//!
//! A counter is decimal text in the key with its name, so any client can read and watch it. Every
//! change is atomic and returns the number after it. Through a session a change takes effect once,
//! however often it had to be sent. Without a session, a change whose answer was lost is not sent
//! again, and [`Error::outcome`] says that it may have been applied.
//!
//! ```no_run
//! # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
//! let session = client.session().owner("shop-1").await?;
//! let stock = session.counter("stock/7");
//! stock.set(100).await?;
//! let left = stock.add(-3).await?;
//! println!("{} left as of revision {}", left.value, left.revision);
//! let swapped = stock.compare_and_set(97, 90).await?;
//! assert!(swapped.is_done || swapped.count.value != 97);
//! # Ok(())
//! # }
//! ```

use bytes::Bytes;
use conclave_proto::v1::{
    CounterAddRequest, CounterGetRequest, CounterResponse, CounterSetRequest,
    counter_service_client::CounterServiceClient, counter_set_request::Condition,
};

use crate::{client::Client, error::Error, once::Caller, session::Session};

impl Client {
    /// The counter `name`.
    pub fn counter(&self, name: impl Into<Vec<u8>>) -> Counter {
        Counter { caller: Caller::client(self), name: self.namespace().name(name) }
    }
}

impl Session {
    /// The counter `name`, changed on behalf of this session: every change takes effect once.
    pub fn counter(&self, name: impl Into<Vec<u8>>) -> Counter {
        let name = self.client().namespace().name(name);
        Counter { caller: Caller::session(self), name }
    }
}

/// A counter; see [`Session::counter`].
///
/// ```no_run
/// # async fn example(session: conclave_client::Session) -> Result<(), conclave_client::Error> {
/// use conclave_client::{Error, counter::Counter};
///
/// let tickets: Counter = session.counter("tickets");
/// match tickets.add(1).await {
///     Ok(ticket) => println!("your number is {}", ticket.value), // nobody else's
///     Err(Error::Refused(_)) => println!("somebody wrote something else into this key"),
///     Err(error) => return Err(error),
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
#[must_use = "a counter does nothing by itself"]
pub struct Counter {
    caller: Caller,
    name: Bytes,
}

/// The value of a counter at one revision.
///
/// ```no_run
/// # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
/// use conclave_client::counter::Count;
///
/// let Count { value, revision } = client.counter("visits").get().await?;
/// println!("{value} visits as of revision {revision}");
/// // The next change after that read.
/// let mut later = client.watch("visits").from_revision(revision + 1).start();
/// println!("{:?}", later.next().await?);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Count {
    /// The number; 0 if the counter does not exist.
    pub value: i64,
    /// Revision of its last change; 0 if the counter does not exist.
    pub revision: i64,
}

/// The result of a conditional change.
///
/// ```no_run
/// # async fn example(session: conclave_client::Session) -> Result<(), conclave_client::Error> {
/// use conclave_client::counter::Exchange;
///
/// // The best result of all players.
/// let (best, mine) = (session.counter("best"), 4711);
/// let mut seen = best.get().await?;
/// while seen.value < mine {
///     let Exchange { is_done, count } = best.set_if_unchanged(seen, mine).await?;
///     if is_done { println!("a record"); }
///     seen = count; // another player's, if it is not done
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "the condition may not have held"]
pub struct Exchange {
    /// Whether the condition held.
    pub is_done: bool,
    /// The counter afterwards.
    pub count: Count,
}

impl Counter {
    /// Reads the counter.
    ///
    /// # Errors
    /// [`Error::Refused`] if the key does not hold a number. See [`Error`].
    pub async fn get(&self) -> Result<Count, Error> {
        let request = CounterGetRequest { name: self.name.clone() };
        let call = |channel| {
            let request = request.clone();
            async move { CounterServiceClient::new(channel).get(request).await }
        };
        self.caller.client.read(call).await.map(|answer| count(&answer))
    }

    /// Adds `delta`, which may be negative.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the sum does not fit 64 bits; nothing changed then. [`Error::Refused`]
    /// if the key does not hold a number. See [`Error`].
    pub async fn add(&self, delta: i64) -> Result<Count, Error> {
        let call = |channel, once| {
            let request = CounterAddRequest { once, name: self.name.clone(), delta };
            async move { CounterServiceClient::new(channel).add(request).await }
        };
        self.caller.send(call).await.map(|answer| count(&answer))
    }

    /// Sets the counter to `value`, whatever it was.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn set(&self, value: i64) -> Result<Count, Error> {
        self.exchange(value, None).await.map(|done| done.count)
    }

    /// Sets the counter to `value` if it is `expected`.
    ///
    /// # Errors
    /// [`Error::Refused`] if the key does not hold a number. See [`Error`].
    pub async fn compare_and_set(&self, expected: i64, value: i64) -> Result<Exchange, Error> {
        self.exchange(value, Some(Condition::IfValue(expected))).await
    }

    /// Sets the counter to `value` if it has not changed since it was `seen`, not even there and
    /// back.
    ///
    /// # Errors
    /// [`Error::Refused`] if it changed and the key does not hold a number. See [`Error`].
    pub async fn set_if_unchanged(&self, seen: Count, value: i64) -> Result<Exchange, Error> {
        self.exchange(value, Some(Condition::IfRevision(seen.revision))).await
    }

    async fn exchange(&self, value: i64, condition: Option<Condition>) -> Result<Exchange, Error> {
        let call = |channel, once| {
            let request = CounterSetRequest { once, name: self.name.clone(), value, condition };
            async move { CounterServiceClient::new(channel).set(request).await }
        };
        let answer = self.caller.send(call).await?;
        Ok(Exchange { is_done: answer.changed, count: count(&answer) })
    }
}

fn count(answer: &CounterResponse) -> Count {
    Count { value: answer.value, revision: answer.revision }
}
