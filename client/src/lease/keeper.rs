//! The task that keeps one lease alive and owns its state.

use std::{sync::Arc, time::Duration};

use conclave_proto::etcdserverpb::{
    LeaseKeepAliveRequest, LeaseKeepAliveResponse, lease_client::LeaseClient,
};
use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;

use super::LeaseState;
use crate::{
    backoff::Backoff,
    client::Client,
    endpoint::Endpoint,
    moment::Moment,
    reliance,
    tell::{store_news, tell},
};

/// Keep-alives on the way; one is sent only after the one before was answered.
const REQUESTS_MAX: usize = 1;
/// Keep-alives are sent this many times within the TTL.
const KEEP_ALIVES_PER_TTL: u32 = 3;
/// Time for a connection that answers nothing at all before another endpoint is tried.
const ANSWER_TIMEOUT_MAX: Duration = Duration::from_secs(3);

/// Sent when the guard gave the lease up without wanting the keeper to revoke it.
#[derive(Debug)]
pub(super) struct Released;

pub(super) struct Keeper {
    client: Client,
    id: i64,
    ttl: Duration,
    standing: Standing,
}

/// What the guard sees of the lease.
pub(super) struct Standing {
    pub(super) state: Arc<watch::Sender<LeaseState>>,
    pub(super) lost: CancellationToken,
    /// When the lease may end at the earliest, by this process's clock.
    pub(super) deadline: Arc<Mutex<Moment>>,
}

impl Standing {
    fn lose(&self) {
        lose(&self.state, &self.lost);
    }

    fn deadline(&self) -> Moment {
        *self.deadline.lock()
    }

    fn set(&self, new: LeaseState) {
        // What was lost stays so: somebody may have been told.
        let replace = |state: &mut LeaseState| std::mem::replace(state, new) != new;
        self.state.send_if_modified(|state| *state != LeaseState::Lost && replace(state));
    }
}

/// Tells that a lease is lost.
pub(super) fn lose(state: &watch::Sender<LeaseState>, lost: &CancellationToken) {
    let is_news = store_news(state, LeaseState::Lost);
    lost.cancel();
    if is_news {
        tell(state);
    }
}

impl Drop for Standing {
    /// However its keeper ends, and be it with its runtime: nobody keeps the lease alive any more.
    fn drop(&mut self) {
        self.lose();
    }
}

/// A stream to one endpoint with at most one keep-alive under way.
struct Connection {
    requests: mpsc::Sender<LeaseKeepAliveRequest>,
    answers: Streaming<LeaseKeepAliveResponse>,
}

/// Why a keep-alive did not succeed.
enum Failure {
    /// The server knows no such lease.
    Gone,
    /// No answer, or an answer that says nothing about the lease.
    Unanswered,
}

impl Keeper {
    pub(super) fn new(client: Client, id: i64, ttl: Duration, standing: Standing) -> Self {
        Self { client, id, ttl, standing }
    }

    /// Runs until the lease is lost or its guard is gone.
    pub(super) async fn run(mut self, mut dropped: oneshot::Receiver<Released>) {
        let released = tokio::select! {
            () = self.keep() => {
                self.standing.lose();
                return;
            }
            released = &mut dropped => released,
        };
        self.standing.lose();
        if released.is_err() {
            // The guard was dropped. Bounded by the client's time limit; the TTL is the fallback.
            if let Err(error) = self.client.lease_revoke(self.id).await {
                tracing::debug!(lease = self.id, %error, "revoking a dropped lease failed");
            }
        }
    }

    /// Returns when the lease is lost.
    async fn keep(&mut self) {
        let mut backoff = Backoff::default();
        let mut next = Moment::now() + self.ttl / KEEP_ALIVES_PER_TTL;
        loop {
            tokio::select! {
                biased;
                () = self.standing.deadline().reached() => return,
                () = next.reached() => {}
            }
            let endpoint = self.client.endpoint();
            match self.session(&endpoint, &mut backoff).await {
                Failure::Gone => return,
                Failure::Unanswered => {
                    endpoint.failed();
                    self.standing.set(LeaseState::Suspended);
                    next = Moment::now() + backoff.next();
                }
            }
        }
    }

    /// Keeps the lease alive over one stream until that fails.
    async fn session(&mut self, endpoint: &Endpoint, backoff: &mut Backoff) -> Failure {
        let mut sent = Moment::now();
        let opened = timeout(self.patience(sent), Connection::open(endpoint, self.id)).await;
        let Ok(Some(mut connection)) = opened else {
            return Failure::Unanswered;
        };
        loop {
            let answer = timeout(self.patience(sent), connection.answer()).await;
            let Ok(Some(answer)) = answer else {
                return Failure::Unanswered;
            };
            if answer.ttl <= 0 {
                return Failure::Gone;
            }
            if self.is_over() {
                return Failure::Unanswered;
            }
            endpoint.succeeded();
            backoff.reset();
            self.ttl = Duration::from_secs(u64::try_from(answer.ttl).unwrap_or(0));
            let deadline = self.standing.deadline().max(reliance::lost_at(sent, self.ttl));
            *self.standing.deadline.lock() = deadline;
            self.standing.set(LeaseState::Alive);
            (sent + self.ttl / KEEP_ALIVES_PER_TTL).reached().await;
            sent = Moment::now();
            if self.is_over() {
                return Failure::Unanswered;
            }
            if connection.requests.try_send(LeaseKeepAliveRequest { id: self.id }).is_err() {
                return Failure::Unanswered;
            }
        }
    }

    /// Whether the lease may have ended. Then it is lost, whatever the server says: somebody may have asked already.
    fn is_over(&self) -> bool {
        self.standing.deadline().left().is_zero()
    }

    /// How long to wait for the answer to a keep-alive `sent` then: further endpoints shall have
    /// a turn within the TTL, and no answer counts that comes after the lease may have ended.
    fn patience(&self, sent: Moment) -> Duration {
        let patience = (self.ttl / (2 * KEEP_ALIVES_PER_TTL)).min(ANSWER_TIMEOUT_MAX);
        (sent + patience).min(self.standing.deadline()).left()
    }
}

impl Connection {
    /// Opens a stream with a first keep-alive on it: etcd answers the call only with the answer to
    /// that, so a stream that starts out silent would never be opened.
    async fn open(endpoint: &Endpoint, id: i64) -> Option<Self> {
        let (requests, outgoing) = mpsc::channel(REQUESTS_MAX);
        requests.try_send(LeaseKeepAliveRequest { id }).expect("invariant: a new channel has room");
        let outgoing = ReceiverStream::new(outgoing);
        match LeaseClient::new(endpoint.channel()).lease_keep_alive(outgoing).await {
            Ok(answers) => Some(Self { requests, answers: answers.into_inner() }),
            Err(status) => {
                tracing::debug!(endpoint = endpoint.address(), %status, "no keep-alive stream");
                None
            }
        }
    }

    async fn answer(&mut self) -> Option<LeaseKeepAliveResponse> {
        self.answers.message().await.ok().flatten()
    }
}
