//! Writes that may be sent again. The client numbers them, and the cluster remembers them until
//! nobody waits for them any more. Against etcd, which does not know these, writes are sent as
//! plain transactions.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
};

use bytes::Bytes;
use conclave_proto::{
    etcdserverpb::{TxnRequest, TxnResponse},
    v1::{
        Guard, WriteRequest, WriteResponse, write_response::State,
        write_service_client::WriteServiceClient,
    },
};
use parking_lot::Mutex;
use tonic::Status;

use crate::{client::Client, error::Error, retry::Retry};

/// How many writes of one writer the cluster remembers at a time.
const WINDOW: u64 = 32;
/// Writers that a client makes when it has more writes in flight than one writer allows. Writes
/// beyond that are sent as to etcd, and are not retried.
const WRITERS_MAX: usize = 32;
/// How often a write is started again under a new number because the cluster has forgotten the old
/// one, while the client knows that it was sent only once.
const RENEWALS_MAX: usize = 3;
const WRITER_BYTES: usize = 16;

/// The writers of one client.
#[derive(Debug)]
pub(crate) struct Writers {
    writers: Mutex<Vec<Writer>>,
    /// The largest revision seen in an answer.
    seen: AtomicI64,
    /// Whether writes are sent without being remembered: switched off, or unknown to the cluster.
    is_off: AtomicBool,
}

#[derive(Debug)]
struct Writer {
    name: Bytes,
    last: u64,
    /// Numbers of writes that a caller still waits for.
    open: BTreeSet<u64>,
}

impl Writer {
    fn new() -> Self {
        let name = Bytes::copy_from_slice(&rand::random::<[u8; WRITER_BYTES]>());
        Self { name, last: 0, open: BTreeSet::new() }
    }

    fn has_room(&self) -> bool {
        self.open.first().is_none_or(|first| self.last + 1 - first < WINDOW)
    }
}

impl Writers {
    pub(crate) fn new(are_remembered: bool) -> Self {
        Self {
            writers: Mutex::default(),
            seen: AtomicI64::new(0),
            is_off: AtomicBool::new(!are_remembered),
        }
    }

    /// Records the revision of an answer.
    pub(crate) fn saw(&self, revision: i64) {
        self.seen.fetch_max(revision, Ordering::Relaxed);
    }

    /// Numbers a new write; `None` if it cannot be remembered.
    fn begin(self: &Arc<Self>) -> Option<Ticket> {
        if self.is_off.load(Ordering::Relaxed) {
            return None;
        }
        let since = self.seen.load(Ordering::Relaxed);
        let mut writers = self.writers.lock();
        let index = match writers.iter().position(Writer::has_room) {
            Some(index) => index,
            None if writers.len() < WRITERS_MAX => {
                writers.push(Writer::new());
                writers.len() - 1
            }
            None => return None,
        };
        let writer = &mut writers[index];
        writer.last += 1;
        let sequence = writer.last;
        writer.open.insert(sequence);
        drop(writers);
        Some(Ticket { writers: Arc::clone(self), index, sequence, since })
    }
}

/// One numbered write, open for as long as a caller waits for it.
#[derive(Debug)]
struct Ticket {
    writers: Arc<Writers>,
    index: usize,
    sequence: u64,
    since: i64,
}

impl Ticket {
    /// The request to send. `settled` is up to date each time.
    fn request(&self, guards: &[Guard], txn: &TxnRequest) -> WriteRequest {
        let writers = self.writers.writers.lock();
        let writer = &writers[self.index];
        WriteRequest {
            writer: Bytes::clone(&writer.name),
            sequence: self.sequence,
            settled: writer.open.first().copied().unwrap_or(self.sequence),
            since: self.since,
            guards: guards.to_vec(),
            txn: Some(txn.clone()),
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.writers.writers.lock()[self.index].open.remove(&self.sequence);
    }
}

impl Client {
    /// Commits a transaction under guards exactly once, however often it is sent. `None` if the
    /// cluster cannot remember it; nothing was done then.
    pub(crate) async fn write_once(
        &self,
        guards: &[Guard],
        txn: &TxnRequest,
    ) -> Result<Option<TxnResponse>, Error> {
        let writers = self.writers();
        for _ in 0..RENEWALS_MAX {
            let Some(ticket) = writers.begin() else { return Ok(None) };
            let call = |channel| {
                let request = ticket.request(guards, txn);
                let client = WriteServiceClient::new(channel);
                async move { client.max_decoding_message_size(usize::MAX).write(request).await }
            };
            let (answer, doubt) = match self.call(call, Retry::Once).await {
                Err(Error::Unimplemented(_)) => {
                    writers.is_off.store(true, Ordering::Relaxed);
                    return Ok(None);
                }
                answered => answered?,
            };
            writers.saw(answer.revision);
            match (answer.state(), doubt) {
                // The retry came too late: the cluster has forgotten what the earlier attempt did.
                (State::Forgotten, Some(doubt)) => return Err(doubt),
                (State::Forgotten, None) => {}
                (..) => return answered(answer).map(Some),
            }
        }
        Ok(None)
    }
}

fn answered(answer: WriteResponse) -> Result<TxnResponse, Error> {
    match (answer.state(), answer.txn) {
        (State::Done, Some(txn)) => Ok(txn),
        (State::NotHeld, _) => Err(Error::lost("the lock is held no more")),
        (State::Unkept, _) => Err(Error::AnswerLost { revision: answer.revision }),
        (State::Done | State::Forgotten | State::Unspecified, _) => {
            let status = Status::internal("a write has an answer outside the protocol");
            Err(Error::from_status(status, "the cluster"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(ticket: &Ticket) -> (usize, u64, u64) {
        let request = ticket.request(&[], &TxnRequest::default());
        (ticket.index, request.sequence, request.settled)
    }

    #[test]
    fn a_writer_runs_no_further_ahead_than_the_cluster_remembers() {
        let writers = Arc::new(Writers::new(true));
        let stuck = writers.begin().unwrap();
        for sequence in 2..=WINDOW {
            assert_eq!(numbers(&writers.begin().unwrap()), (0, sequence, 1));
        }
        assert_eq!(numbers(&writers.begin().unwrap()), (1, 1, 1), "another goes on meanwhile");
        drop(stuck);
        assert_eq!(numbers(&writers.begin().unwrap()), (0, WINDOW + 1, WINDOW + 1));
    }

    #[test]
    fn writers_are_bounded() {
        let writers = Arc::new(Writers::new(true));
        let in_flight: Vec<Ticket> = std::iter::from_fn(|| writers.begin()).take(5_000).collect();
        assert_eq!(in_flight.len(), WRITERS_MAX * usize::try_from(WINDOW).unwrap());
        drop(in_flight);
        assert!(writers.begin().is_some());
        assert!(Arc::new(Writers::new(false)).begin().is_none());
    }

    #[test]
    fn what_was_seen_before_a_write_stays_with_it() {
        let writers = Arc::new(Writers::new(true));
        let since = |ticket: &Ticket| ticket.request(&[], &TxnRequest::default()).since;
        let first = writers.begin().unwrap();
        writers.saw(7);
        writers.saw(5);
        assert_eq!((since(&first), since(&writers.begin().unwrap())), (0, 7));
    }
}
