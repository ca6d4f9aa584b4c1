//! Forwards batches to the leader: one stream per connection.
//!
//! A separate call for every batch would cost both members more than the batch itself. The leader
//! answers only for batches that it does not apply; of the others their sender learns from its own
//! log. The first batch opens the stream, and the next batch after a break opens it again. The
//! outcome of everything sent on a broken stream is unknown. Nothing is sent before the leader has
//! accepted the stream.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use conclave_proto::internal::{ProposeRequest, ProposeResponse, propose_response};
use parking_lot::Mutex;
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::sync::oneshot;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::link::Client;
use super::route::Offer;

/// Batches on one stream that are neither applied nor refused. More than the batcher ever has in
/// flight, because at the leader those count too that the batcher gave up on.
pub(crate) const FORWARDS_MAX: usize = 64;
/// How long the leader may take to accept a stream.
const OPEN_TIMEOUT: Duration = Duration::from_millis(1500);

/// An open stream of batches.
#[derive(Debug)]
pub(crate) struct Forwards {
    /// `None` once it has ended. Dropping the request sender ends the stream at the leader, too.
    stream: Mutex<Option<Open>>,
}

/// The parts of an open stream.
#[derive(Debug)]
struct Open {
    requests: mpsc::Sender<ProposeRequest>,
    /// Requests that wait for an answer, by request id.
    pending: HashMap<u64, oneshot::Sender<Offer>>,
}

/// Removes a request from `pending` when dropped, even if nobody waits for its answer any more.
struct Listed<'a> {
    forwards: &'a Forwards,
    id: u64,
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        if let Some(open) = self.forwards.stream.lock().as_mut() {
            open.pending.remove(&self.id);
        }
    }
}

impl Forwards {
    /// Opens a stream.
    ///
    /// # Errors
    /// [`Status`] if the leader does not accept it; in that case nothing was sent.
    pub(crate) async fn open(mut client: Client) -> Result<Arc<Self>, Status> {
        let (requests, outgoing) = mpsc::channel(FORWARDS_MAX);
        let opened = client.stream_propose(ReceiverStream::new(outgoing));
        let answers = tokio::time::timeout(OPEN_TIMEOUT, opened)
            .await
            .map_err(|_elapsed| Status::deadline_exceeded("no answer from the leader"))??;
        let open = Open { requests, pending: HashMap::new() };
        let forwards = Arc::new(Self { stream: Mutex::new(Some(open)) });
        tokio::spawn(forwards.clone().answer(answers.into_inner()));
        Ok(forwards)
    }

    /// Whether batches can still be sent.
    pub(crate) fn is_open(&self) -> bool {
        self.stream.lock().is_some()
    }

    /// Closes the stream; the outcome of unanswered batches is unknown.
    pub(crate) fn close(&self) {
        drop(self.stream.lock().take());
    }

    /// Sends a batch and waits until the leader refuses it or its outcome is unknown. The caller
    /// cancels this once the batch is applied here.
    pub(crate) async fn send(&self, mut request: ProposeRequest) -> Offer {
        let (answer, answered) = oneshot::channel();
        let id = rand::random();
        request.id = id;
        {
            let mut stream = self.stream.lock();
            let Some(open) = stream.as_mut() else { return Offer::NotLeader };
            match open.requests.try_send(request) {
                Ok(()) => open.pending.insert(id, answer),
                Err(TrySendError::Full(_)) => return Offer::Busy,
                // The connection is gone, and the next batch opens another.
                Err(TrySendError::Closed(_)) => return Offer::NotLeader,
            };
        }
        let _listed = Listed { forwards: self, id };
        answered.await.unwrap_or(Offer::Unknown)
    }

    /// Delivers the answers until the stream ends; the outcome of the rest is unknown.
    async fn answer(self: Arc<Self>, mut answers: Streaming<ProposeResponse>) {
        loop {
            match answers.message().await {
                Ok(Some(answer)) => self.settle(&answer),
                Ok(None) => break,
                Err(status) => {
                    tracing::debug!(%status, "the stream of forwarded batches broke");
                    break;
                }
            }
        }
        self.close();
    }

    fn settle(&self, answer: &ProposeResponse) {
        let mut stream = self.stream.lock();
        let waiting = stream.as_mut().and_then(|open| open.pending.remove(&answer.id));
        drop(stream);
        if let Some(waiting) = waiting {
            // Fails if the sender has given up.
            waiting.send(offer(answer.result())).ok();
        }
    }
}

fn offer(result: propose_response::Result) -> Offer {
    use propose_response::Result as Outcome;
    match result {
        Outcome::NotLeader => Offer::NotLeader,
        Outcome::Busy => Offer::Busy,
        Outcome::Unknown | Outcome::Unspecified => Offer::Unknown,
    }
}
