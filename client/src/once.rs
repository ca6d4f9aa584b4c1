//! Requests that may be sent again: numbered by their session, and remembered with it in the
//! cluster until nobody waits for them any more.

use std::{collections::BTreeSet, future::Future, sync::Arc, time::Duration};

use conclave_proto::v1;
use parking_lot::Mutex;
use tokio::{sync::Notify, time::timeout};
use tonic::{Response, Status};

use crate::login::Channel;
use crate::{client::Client, error::Error, session::Session};

/// How far a request may be ahead of the oldest one that a caller waits for. Half of what the
/// cluster remembers for a session, because every request may have to be undone by another one.
const WINDOW: u64 = 128;

/// The requests of one session.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    numbers: Mutex<Numbers>,
    /// Wakes one task that waits for room when a request is settled; a task that gets room wakes
    /// the next.
    settled: Notify,
}

#[derive(Debug, Default)]
struct Numbers {
    last: u64,
    /// Numbers of requests that a caller still waits for.
    open: BTreeSet<u64>,
}

impl Numbers {
    fn has_room(&self) -> bool {
        self.open.first().is_none_or(|first| self.last + 1 - first < WINDOW)
    }

    fn next(&mut self) -> u64 {
        self.last += 1;
        self.open.insert(self.last);
        self.last
    }
}

impl Requests {
    /// Numbers a new request of `session`, the owner of these. A slow request keeps the cluster
    /// from forgetting the answers to all later ones; requests that would exceed the window wait,
    /// for at most `limit`.
    pub(crate) async fn begin(
        self: &Arc<Self>,
        session: i64,
        limit: Duration,
    ) -> Result<Ticket, Error> {
        let begun = async {
            loop {
                if let Some(sequence) = self.next() {
                    return sequence;
                }
                self.settled.notified().await;
            }
        };
        let sequence = timeout(limit, begun).await.map_err(|_elapsed| {
            let text = "conclave: too many requests of the session are under way";
            Error::Overloaded(Status::resource_exhausted(text))
        })?;
        Ok(self.ticket(session, sequence))
    }

    /// Like [`Requests::begin`] but without waiting: for a request that undoes one which is open
    /// until then.
    pub(crate) fn begin_undo(self: &Arc<Self>, session: i64) -> Ticket {
        let sequence = self.numbers.lock().next();
        self.ticket(session, sequence)
    }

    fn next(&self) -> Option<u64> {
        let mut numbers = self.numbers.lock();
        let sequence = numbers.has_room().then(|| numbers.next())?;
        // Settling one request may make room for several, but only one waiter was woken: wake the
        // next.
        if numbers.has_room() {
            self.settled.notify_one();
        }
        Some(sequence)
    }

    fn ticket(self: &Arc<Self>, session: i64, sequence: u64) -> Ticket {
        Ticket { requests: Arc::clone(self), session, sequence, undoes: 0 }
    }
}

/// One numbered request, open for as long as a caller waits for it.
#[derive(Debug)]
pub(crate) struct Ticket {
    requests: Arc<Requests>,
    session: i64,
    sequence: u64,
    undoes: u64,
}

impl Ticket {
    /// Its number.
    pub(crate) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Marks this as the request that undoes an earlier one.
    pub(crate) fn undoing(mut self, sequence: u64) -> Self {
        self.undoes = sequence;
        self
    }

    /// What is sent with the request.
    pub(crate) fn once(&self) -> v1::Once {
        let settled = self.requests.numbers.lock().open.first().copied();
        let Self { session, sequence, undoes, .. } = *self;
        v1::Once { session, sequence, settled: settled.unwrap_or(sequence), undoes }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.requests.numbers.lock().open.remove(&self.sequence);
        self.requests.settled.notify_one();
    }
}

/// The number of a request that may wait for a long time after its first answer.
#[derive(Debug)]
pub(crate) enum Number {
    /// Not answered yet: the cluster has to remember it with the session.
    Open(Ticket),
    /// Answered: the server recognises it by the place it took, so later requests need not be
    /// remembered because of it.
    Placed(v1::Once),
}

impl Number {
    /// What is sent with the request.
    pub(crate) fn once(&self) -> v1::Once {
        match self {
            Self::Open(ticket) => ticket.once(),
            Self::Placed(once) => *once,
        }
    }

    /// Whether it has been answered.
    pub(crate) fn is_placed(&self) -> bool {
        matches!(self, Self::Placed(_))
    }

    /// Records that it has been answered.
    pub(crate) fn answered(&mut self) {
        if let Self::Open(ticket) = self {
            *self = Self::Placed(v1::Once { settled: 0, ..ticket.once() });
        }
    }
}

/// The sender of requests: a session, whose requests may be sent again, or a plain client.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) client: Client,
    session: Option<Session>,
}

impl Caller {
    pub(crate) fn client(client: &Client) -> Self {
        Self { client: client.clone(), session: None }
    }

    pub(crate) fn session(session: &Session) -> Self {
        Self { client: session.client().clone(), session: Some(session.clone()) }
    }

    /// Sends a request that changes something. It is retried after an unknown outcome only if the
    /// cluster recognises it.
    pub(crate) async fn send<T, F, C>(&self, call: C) -> Result<T, Error>
    where
        F: Future<Output = Result<Response<T>, Status>> + Send,
        C: Fn(Channel, Option<v1::Once>) -> F + Send + Sync,
    {
        let Some(session) = &self.session else {
            return self.client.write(|channel| call(channel, None)).await;
        };
        let ticket = session.request().await?;
        self.client.repeat(|channel| call(channel, Some(ticket.once()))).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_request_runs_no_further_ahead_than_the_cluster_remembers() {
        let requests = Arc::<Requests>::default();
        let stuck = requests.begin(7, SOON).await.unwrap();
        for _ in 1..WINDOW {
            requests.begin(7, SOON).await.unwrap();
        }
        let early = requests.begin(7, Duration::ZERO).await;
        assert!(matches!(early, Err(Error::Overloaded(_))), "{early:?}");
        let undo = requests.begin_undo(7);
        assert_eq!(undo.once().settled, 1, "what takes one back does not wait for it");
        let waiting = tokio::spawn(async move { requests.begin(7, SOON).await });
        tokio::task::yield_now().await;
        drop(stuck);
        assert_eq!(waiting.await.unwrap().unwrap().sequence(), WINDOW + 2);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn all_who_wait_for_room_get_it() {
        let requests = Arc::<Requests>::default();
        let stuck = requests.begin(7, SOON).await.unwrap();
        let mut waiting = tokio::task::JoinSet::new();
        for number in 0..10 * WINDOW {
            let requests = Arc::clone(&requests);
            // Some give up while they wait, perhaps just when it is their turn.
            let limit = if number.is_multiple_of(5) { Duration::from_millis(number) } else { SOON };
            waiting.spawn(async move {
                requests.begin(7, limit).await.map(drop).is_ok() || limit < SOON
            });
        }
        // WINDOW - 1 of them begin at once; there is no room for the others.
        for _ in 1..WINDOW {
            assert!(waiting.join_next().await.unwrap().unwrap());
        }
        drop(stuck);
        assert!(waiting.join_all().await.into_iter().all(|has_begun| has_begun));
    }

    #[test]
    fn what_is_settled_is_what_nobody_waits_for() {
        let requests = Arc::<Requests>::default();
        let (first, second) = (requests.begin_undo(7), requests.begin_undo(7));
        let once = |settled, sequence, undoes| v1::Once { session: 7, sequence, settled, undoes };
        assert_eq!(second.once(), once(1, 2, 0));
        drop(first);
        assert_eq!(second.once(), once(2, 2, 0));
        let undo = requests.begin_undo(7).undoing(second.sequence());
        drop(second);
        assert_eq!(undo.once(), once(3, 3, 2));
        drop(undo);
        assert_eq!(requests.begin_undo(7).once(), once(4, 4, 0));
    }
}
