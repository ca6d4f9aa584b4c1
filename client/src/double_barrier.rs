//! Double barriers: participants start together, and finish together.
//!
//! A participant is a key attached to its session: a lost participant no longer counts and is not
//! waited for. All participants give the same expected count.
//!
//! ```no_run
//! # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
//! use std::time::Duration;
//!
//! let session = client.session().owner("worker-7").await?;
//! let inside = session.double_barrier("step/1", 3).wait(Duration::from_secs(60)).await?;
//! // ... all three work
//! inside.leave().at_most(Duration::from_secs(60)).await?;    // all three are done, or lost
//! # Ok(())
//! # }
//! ```

use std::{
    future::{Future, IntoFuture},
    pin::Pin,
    time::Duration,
};

use bytes::Bytes;
use conclave_proto::v1::{
    self, DoubleBarrierEnterRequest, DoubleBarrierLeaveRequest, Passed, WaitResponse,
    double_barrier_service_client::DoubleBarrierServiceClient, wait_response::Event,
};
use tokio_util::sync::CancellationToken;
use tonic::{Response, Status, Streaming};

use crate::login::Channel;
use crate::{
    error::Error,
    once::Ticket,
    patience::{self, Ask, Heard, Patience},
    session::Session,
    undo::{Did, Kept},
    wait::{for_ms, heard},
};

impl Session {
    /// Starts to describe entering the double barrier `name` of `count` participants (1 to 1,024);
    /// await it to enter.
    pub fn double_barrier(&self, name: impl Into<Vec<u8>>, count: u32) -> Enter {
        let (session, name) = (self.clone(), self.client().namespace().name(name));
        Enter { session, name, count, note: Bytes::new(), wait: None }
    }
}

/// A double barrier to be entered; see [`Session::double_barrier`].
///
/// Awaiting it is cancel-safe: dropping the future gives up its place in the background, even if
/// the request has not arrived yet.
///
/// ```no_run
/// # async fn example(session: conclave_client::Session) -> Result<(), conclave_client::Error> {
/// use std::time::Duration;
/// use conclave_client::Error;
///
/// // Three players, or no game.
/// let game = session.double_barrier("games/17", 3).note("ada");
/// match game.wait(Duration::from_secs(30)).await {
///     Ok(inside) => inside.leave().await?,
///     Err(Error::NotYet) => println!("not enough players"), // and the place is free again
///     Err(error) => return Err(error),
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
#[must_use = "nothing is entered until it is awaited"]
pub struct Enter {
    session: Session,
    name: Bytes,
    count: u32,
    note: Bytes,
    wait: Option<Duration>,
}

impl Enter {
    /// Limits the wait for the others; after it, gives up the place and fails with
    /// [`Error::NotYet`]. If no server answers, it may take up to 5 s longer. Default: for ever.
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = Some(wait);
        self
    }

    /// A note about the participant: the value of its key.
    pub fn note(mut self, note: impl Into<Vec<u8>>) -> Self {
        self.note = note.into().into();
        self
    }

    async fn enter(self) -> Result<Inside, Error> {
        let Self { session, name, count, note, wait } = self;
        let patience = Patience::new(session.client(), wait);
        let ticket = session.request().await?;
        let (client, sequence) = (session.client().clone(), ticket.sequence());
        let did = Did::Enter;
        let kept = Kept { session, name: name.clone(), sequence, did, open: None, is_over: false };
        let request = DoubleBarrierEnterRequest { name, count, note, ..Default::default() };
        let mut asked = Entering { request, number: Number::Open(ticket) };
        let lost = kept.session.lost();
        let passed = tokio::select! {
            biased;
            () = lost.cancelled() => Err(Error::session_lost()),
            passed = patience::wait(&client, patience, &mut asked) => passed,
        };
        let Passed { fence, .. } = passed?;
        Ok(Inside { kept, fence })
    }
}

impl IntoFuture for Enter {
    type Output = Result<Inside, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.enter())
    }
}

/// How the server recognises a request to enter.
enum Number {
    /// By its number, which the session has to remember.
    Open(Ticket),
    /// By the participant that it created.
    Placed(v1::Once),
}

struct Entering {
    request: DoubleBarrierEnterRequest,
    number: Number,
}

impl Ask for Entering {
    type Answer = WaitResponse;
    type Done = Passed;

    async fn open(
        &self,
        channel: Channel,
        wait_ms: Option<u64>,
    ) -> Result<Response<Streaming<WaitResponse>>, Status> {
        let once = match &self.number {
            Number::Open(ticket) => ticket.once(),
            Number::Placed(once) => *once,
        };
        let (once, patience) = (Some(once), Some(for_ms(wait_ms)));
        let request = DoubleBarrierEnterRequest { once, patience, ..self.request.clone() };
        DoubleBarrierServiceClient::new(channel).enter(request).await
    }

    fn hear(&mut self, answer: WaitResponse) -> Heard<Passed> {
        if let (Some(Event::Waiting(_)), Number::Open(ticket)) = (&answer.event, &self.number) {
            // The wait may be long; later requests of the session need not be remembered because of
            // it.
            self.number = Number::Placed(v1::Once { settled: 0, ..ticket.once() });
        }
        heard(answer, "the participant was removed")
    }

    fn late(&self) -> Error {
        Error::NotYet
    }
}

/// A place inside a double barrier: held for as long as this guard exists and its session lives.
///
/// Leave with [`Inside::leave`], which waits for the others. Dropping the guard leaves in the
/// background without waiting.
///
/// ```no_run
/// # async fn example(session: conclave_client::Session) -> Result<(), conclave_client::Error> {
/// let inside = session.double_barrier("steps/1", 3).await?;
/// let lost = inside.lost();
/// tokio::select! {
///     () = compute() => inside.leave().await?, // nobody takes step 2 before all have left
///     () = lost.cancelled() => eprintln!("the others go on without this one"),
/// }
/// # async fn compute() {}
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "the place is given up when the guard is dropped"]
pub struct Inside {
    kept: Kept,
    fence: i64,
}

impl Inside {
    /// Create revision of the participant's key.
    #[must_use]
    pub fn fence(&self) -> i64 {
        self.fence
    }

    /// Cancelled when the session is lost: the others no longer wait for this participant.
    #[must_use]
    pub fn lost(&self) -> CancellationToken {
        self.kept.session.lost()
    }

    /// Leaves, and waits until all other participants inside have left or are lost; await the
    /// result.
    pub fn leave(self) -> Leave {
        Leave { kept: self.kept, wait: None }
    }
}

/// A request to leave a double barrier; see [`Inside::leave`]. The place is given up in any case,
/// even if this is dropped.
///
/// ```no_run
/// # async fn example(inside: conclave_client::double_barrier::Inside) -> Result<(), conclave_client::Error> {
/// use std::time::Duration;
/// use conclave_client::Error;
///
/// match inside.leave().at_most(Duration::from_secs(60)).await {
///     Ok(()) => println!("all are done, or lost"),
///     Err(Error::NotYet) => println!("somebody is slow; this one has left"),
///     Err(error) => return Err(error),
/// }
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "nobody is waited for until it is awaited"]
pub struct Leave {
    kept: Kept,
    wait: Option<Duration>,
}

impl Leave {
    /// Limits the wait for the others; after it, fails with [`Error::NotYet`]. If no server
    /// answers, it may take up to 5 s longer. Default: for ever.
    pub fn at_most(mut self, wait: Duration) -> Self {
        self.wait = Some(wait);
        self
    }

    async fn leave(self) -> Result<(), Error> {
        let Self { mut kept, wait } = self;
        let patience = Patience::new(kept.session.client(), wait);
        let ticket = kept.session.request().await?.undoing(kept.sequence);
        let client = kept.session.client().clone();
        let mut asked = Leaving { name: kept.name.clone(), way: Way::Leaving(ticket) };
        let lost = kept.session.lost();
        let left = tokio::select! {
            biased;
            () = lost.cancelled() => Err(Error::session_lost()),
            left = patience::wait(&client, patience, &mut asked) => left,
        };
        // With any of these results the participant has left.
        kept.is_over = matches!(left, Ok(_) | Err(Error::NotYet | Error::Lost { .. }));
        left.map(drop)
    }
}

impl IntoFuture for Leave {
    type Output = Result<(), Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.leave())
    }
}

/// The progress of a participant that leaves.
enum Way {
    /// It leaves by a request with this number, which the session has to remember.
    Leaving(Ticket),
    /// It has left, and waits for the others with fences up to this one.
    Waiting(i64),
}

struct Leaving {
    name: Bytes,
    way: Way,
}

impl Ask for Leaving {
    type Answer = WaitResponse;
    type Done = Passed;

    async fn open(
        &self,
        channel: Channel,
        wait_ms: Option<u64>,
    ) -> Result<Response<Streaming<WaitResponse>>, Status> {
        let (once, until_fence) = match &self.way {
            Way::Leaving(ticket) => (Some(ticket.once()), 0),
            Way::Waiting(fence) => (None, *fence),
        };
        let (name, patience) = (self.name.clone(), Some(for_ms(wait_ms)));
        let request = DoubleBarrierLeaveRequest { once, name, patience, until_fence };
        DoubleBarrierServiceClient::new(channel).leave(request).await
    }

    fn hear(&mut self, answer: WaitResponse) -> Heard<Passed> {
        if let Some(Event::Waiting(waiting)) = &answer.event
            && waiting.fence > 0
        {
            // The wait may be long; later requests of the session need not be remembered because of
            // it.
            self.way = Way::Waiting(waiting.fence);
        }
        heard(answer, "the participant was removed")
    }

    fn late(&self) -> Error {
        Error::NotYet
    }
}
