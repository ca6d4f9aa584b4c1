//! Requests that may be sent again: numbered by their session, and remembered by it in the cluster until
//! nobody waits for them any more.

use std::{collections::BTreeSet, future::Future, sync::Arc};

use conclave_proto::v1;
use parking_lot::Mutex;
use tonic::{Response, Status};

use crate::login::Channel;
use crate::{client::Client, error::Error, session::Session};

/// The requests of one session.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    numbers: Mutex<Numbers>,
}

#[derive(Debug, Default)]
struct Numbers {
    last: u64,
    /// Those that somebody waits for.
    open: BTreeSet<u64>,
}

impl Requests {
    /// A new request of the session `session`, whose these are.
    pub(crate) fn begin(self: &Arc<Self>, session: i64) -> Ticket {
        let mut numbers = self.numbers.lock();
        numbers.last += 1;
        let sequence = numbers.last;
        numbers.open.insert(sequence);
        drop(numbers);
        Ticket { requests: Arc::clone(self), session, sequence, undoes: 0 }
    }
}

/// One request, for as long as somebody waits for it.
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

    /// As a request that takes an earlier one back.
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
    }
}

/// Whoever sends requests: a session, whose requests may be sent again, or just a client.
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

    /// Sends a request that changes something: again only if the cluster recognises it.
    pub(crate) async fn send<T, F, C>(&self, call: C) -> Result<T, Error>
    where
        F: Future<Output = Result<Response<T>, Status>> + Send,
        C: Fn(Channel, Option<v1::Once>) -> F + Send + Sync,
    {
        let Some(session) = &self.session else {
            return self.client.write(|channel| call(channel, None)).await;
        };
        let ticket = session.request();
        self.client.read(|channel| call(channel, Some(ticket.once()))).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_settled_is_what_nobody_waits_for() {
        let requests = Arc::<Requests>::default();
        let (first, second) = (requests.begin(7), requests.begin(7));
        let once = |settled, sequence, undoes| v1::Once { session: 7, sequence, settled, undoes };
        assert_eq!(second.once(), once(1, 2, 0));
        drop(first);
        assert_eq!(second.once(), once(2, 2, 0));
        let undo = requests.begin(7).undoing(second.sequence());
        drop(second);
        assert_eq!(undo.once(), once(3, 3, 2));
        drop(undo);
        assert_eq!(requests.begin(7).once(), once(4, 4, 0));
    }
}
