//! Waiting on a server stream for as long as the caller wants, on one endpoint after another.

use std::{future::Future, time::Duration};

use tokio::time::{Instant, timeout_at};
use tonic::{Code, Response, Status, Streaming};

use crate::login::{Channel, Logins};
use crate::{
    backoff::Backoff,
    client::Client,
    endpoint::Endpoint,
    error::{Error, Outcome},
};

/// Most time for an endpoint to give its first answer; also how much longer a wait may take if none
/// answers.
const FIRST_ANSWER_TIMEOUT_MAX: Duration = Duration::from_secs(5);

/// How long a caller waits, counted from when this is made.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Patience {
    /// No wait for other holders; until this instant for the cluster to say whether there are any.
    None(Instant),
    Until(Instant),
    Forever,
}

impl Patience {
    /// `None` means for ever, and so does a time longer than the clock can count.
    pub(crate) fn new(client: &Client, wait: Option<Duration>) -> Self {
        match wait {
            None => Self::Forever,
            Some(Duration::ZERO) => Self::None(Instant::now() + client.timeout()),
            Some(wait) => Instant::now().checked_add(wait).map_or(Self::Forever, Self::Until),
        }
    }

    /// The time left, in milliseconds; `None` for ever.
    pub(crate) fn left_ms(self) -> Option<u64> {
        match self {
            Self::None(_) => Some(0),
            Self::Until(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                Some(u64::try_from(left.as_millis()).unwrap_or(u64::MAX))
            }
            Self::Forever => None,
        }
    }

    /// When to stop asking even if no server says that the time is over.
    fn give_up(self) -> Option<Instant> {
        match self {
            Self::None(give_up) => Some(give_up),
            Self::Until(deadline) => deadline.checked_add(FIRST_ANSWER_TIMEOUT_MAX),
            Self::Forever => None,
        }
    }

    /// The time limit of a call made before the wait.
    pub(crate) fn limit(self, client: &Client) -> Duration {
        let Some(give_up) = self.give_up() else { return client.timeout() };
        let left = give_up.saturating_duration_since(Instant::now());
        // Errors show it to people: whole milliseconds.
        let left_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX).saturating_add(1);
        Duration::from_millis(left_ms).min(client.timeout())
    }
}

/// What an answer means to the caller that waits.
pub(crate) enum Heard<T> {
    Done(T),
    Failed(Error),
    /// The request is queued: go on waiting.
    More,
}

/// A request that is answered by a stream, and may be sent again when that breaks.
pub(crate) trait Ask: Send {
    type Answer: Send;
    type Done: Send;

    /// Opens a stream with the time that is left to wait, in milliseconds; `None` for ever.
    fn open(
        &self,
        channel: Channel,
        wait_ms: Option<u64>,
    ) -> impl Future<Output = Result<Response<Streaming<Self::Answer>>, Status>> + Send;

    /// Handles the next answer.
    fn hear(&mut self, answer: Self::Answer) -> Heard<Self::Done>;

    /// The error if the time is over and the server did not say so.
    fn late(&self) -> Error;
}

/// Asks one endpoint after another until the wait ends.
pub(crate) async fn wait<A: Ask>(
    client: &Client,
    patience: Patience,
    ask: &mut A,
) -> Result<A::Done, Error> {
    let mut backoff = Backoff::default();
    let mut logins = Logins::default();
    let give_up = patience.give_up();
    loop {
        let endpoint = client.endpoint();
        let asked =
            once(client, &endpoint, (patience, give_up), ask, (&mut logins, &mut backoff)).await;
        let error = match asked {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        let needs_login = logins.may_help(&error, &endpoint);
        let next = Instant::now() + backoff.next();
        let is_passing = needs_login || error.is_passing();
        if !is_passing || give_up.is_some_and(|give_up| next >= give_up) {
            return Err(error);
        }
        if !needs_login {
            endpoint.failed();
        }
        tracing::debug!(endpoint = endpoint.address(), %error, "asking once more");
        tokio::time::sleep_until(next).await;
    }
}

/// Follows one stream to its end, or until it is time to give up.
async fn once<A: Ask>(
    client: &Client,
    endpoint: &Endpoint,
    (patience, give_up): (Patience, Option<Instant>),
    ask: &mut A,
    (logins, backoff): (&mut Logins, &mut Backoff),
) -> Result<A::Done, Error> {
    let timeout = client.timeout().min(FIRST_ANSWER_TIMEOUT_MAX);
    let until = Instant::now() + timeout;
    let until = give_up.map_or(until, |give_up| until.min(give_up));
    let late = |_elapsed| Error::Deadline {
        outcome: Outcome::Unknown,
        endpoint: endpoint.address().to_owned(),
        timeout,
    };
    let opening = ask.open(endpoint.channel(), patience.left_ms());
    let opened = timeout_at(until, opening).await.map_err(late)?;
    let opened = opened.map_err(|status| Error::from_status(status, endpoint.address()))?;
    let mut answers = opened.into_inner();
    let mut first = Some(until);
    loop {
        let answer = match (first.take(), give_up) {
            (Some(until), _) => timeout_at(until, answers.message()).await.map_err(late)?,
            (None, Some(give_up)) => {
                timeout_at(give_up, answers.message()).await.map_err(|_elapsed| ask.late())?
            }
            (None, None) => answers.message().await,
        };
        let broken = || Status::new(Code::Unavailable, "the stream of a request ended");
        let answer = answer.and_then(|answer| answer.ok_or_else(broken));
        let answer = answer.map_err(|status| endpoint.ended(status))?;
        endpoint.succeeded();
        logins.succeeded();
        backoff.reset();
        match ask.hear(answer) {
            Heard::Done(done) => return Ok(done),
            Heard::Failed(error) => return Err(error),
            Heard::More => {}
        }
    }
}
