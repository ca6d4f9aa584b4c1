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

/// Keep-alives in flight; one is sent only after the previous one was answered.
const REQUESTS_MAX: usize = 1;
/// Keep-alives sent within the TTL.
const KEEP_ALIVES_PER_TTL: u32 = 3;
/// Most time for a silent endpoint to answer before another one is tried.
const ANSWER_TIMEOUT_MAX: Duration = Duration::from_secs(3);

/// Sent by the guard if the keeper must not revoke the lease.
#[derive(Debug)]
pub(super) struct Released;

pub(super) struct Keeper {
    client: Client,
    id: i64,
    ttl: Duration,
    standing: Standing,
}

/// The state of the lease, shared with the guard.
pub(super) struct Standing {
    pub(super) state: Arc<watch::Sender<LeaseState>>,
    pub(super) lost: CancellationToken,
    /// The earliest moment at which the lease may end, by this process's clock.
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
        // A loss is final: a caller may have been told.
        let replace = |state: &mut LeaseState| std::mem::replace(state, new) != new;
        self.state.send_if_modified(|state| *state != LeaseState::Lost && replace(state));
    }
}

/// Publishes that a lease is lost.
pub(super) fn lose(state: &watch::Sender<LeaseState>, lost: &CancellationToken) {
    let is_news = store_news(state, LeaseState::Lost);
    lost.cancel();
    if is_news {
        tell(state);
    }
}

impl Drop for Standing {
    /// However the keeper ends, even with its runtime, the lease is no longer kept alive.
    fn drop(&mut self) {
        self.lose();
    }
}

/// A stream to one endpoint with at most one keep-alive in flight.
struct Connection {
    requests: mpsc::Sender<LeaseKeepAliveRequest>,
    answers: Streaming<LeaseKeepAliveResponse>,
}

/// Why a keep-alive did not succeed.
enum Failure {
    /// The server knows no such lease.
    Gone,
    /// No answer, or one that says nothing about the lease.
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
            // The guard was dropped. This is bounded by the client's time limit; the TTL is the
            // fallback.
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

    /// Whether the lease may have ended. Then it is lost whatever the server says: a caller may
    /// have been told so.
    fn is_over(&self) -> bool {
        self.standing.deadline().left().is_zero()
    }

    /// How long to wait for the answer to a keep-alive `sent` then: short enough to try other
    /// endpoints within the TTL. An answer after the lease may have ended does not count.
    fn patience(&self, sent: Moment) -> Duration {
        let patience = (self.ttl / (2 * KEEP_ALIVES_PER_TTL)).min(ANSWER_TIMEOUT_MAX);
        (sent + patience).min(self.standing.deadline()).left()
    }
}

impl Connection {
    /// Opens a stream and sends the first keep-alive: etcd answers the call only when it answers
    /// that one, so a silent stream would never be opened.
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
