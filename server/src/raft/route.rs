//! Finds the leader, and passes on what only the leader can do.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use conclave_proto::internal;
use conclave_raft_store::types::{Batch, NodeId, TypeConfig};
use openraft::ReadPolicy;
use openraft::async_runtime::WatchReceiver;
use openraft::error::ClientWriteError;
use openraft::impls::ProgressResponder;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::Raft;
use super::heard::Heard;
use super::link::{Link, Links, Purpose};
use super::needed::Needed;
use super::rounds::Rounds;
use crate::propose::Haste;

/// How long a forwarded proposal may stay unanswered before the stream is given up. Callers wait
/// longer only if election timeouts are seconds long.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(10);
/// Timeout of a forwarded read index or lease call, after which it is tried again.
const ASK_TIMEOUT: Duration = Duration::from_millis(1500);

/// How long a replaced leader may still answer.
const REPLACED_GRACE: Duration = Duration::from_millis(200);

/// The outcome of an offered batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Offer {
    /// It is in the leader's log, or already applied.
    Taken,
    /// It may or may not be in a log.
    Unknown,
    /// Certainly not proposed: there is no leader, or the member asked does not lead.
    NotLeader,
    /// Certainly not proposed: the leader has too much in flight.
    Busy,
    /// Certainly not proposed: this member's raft has stopped, or it is no longer a member.
    Stopped,
}

/// The leader, as far as this member knows.
pub(crate) enum Leader {
    /// No leader is known.
    Nobody,
    /// This member.
    Me,
    /// Another member, reached over this connection.
    Other(NodeId, Arc<Link>),
}

/// The way to the leader; clones are cheap.
#[derive(Clone)]
pub(crate) struct Route {
    pub(crate) raft: Raft,
    pub(crate) links: Arc<Links>,
    pub(crate) heard: Arc<Heard>,
    pub(crate) rounds: Arc<Rounds>,
    pub(crate) needed: Arc<Needed>,
    /// Cancelled once this member is removed: no leader accepts its calls any more.
    pub(crate) retired: CancellationToken,
}

impl Route {
    /// The leader, as far as this member knows.
    pub(crate) fn leader(&self) -> Leader {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        match metrics.current_leader {
            None => Leader::Nobody,
            Some(id) if id == self.links.member_id() => Leader::Me,
            Some(id) => match metrics.membership_config.membership().get_node(&id) {
                Some(node) => Leader::Other(id, self.links.get(id, node, Purpose::Forward)),
                None => Leader::Nobody,
            },
        }
    }

    /// The leader, if it has been heard from recently.
    pub(crate) fn present_leader(&self) -> Option<NodeId> {
        self.heard.leader(&self.raft.metrics().borrow_watched())
    }

    pub(crate) fn has_leader(&self) -> bool {
        self.present_leader().is_some()
    }

    pub(crate) fn term(&self) -> u64 {
        self.raft.server_metrics().borrow_watched().vote.leader_id.term
    }

    /// The connection that carries a leader transfer to `member`; it counts refusals as failures.
    pub(crate) fn transfer_link(&self, member: NodeId) -> Option<Arc<Link>> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let node = metrics.membership_config.membership().get_node(&member)?;
        Some(self.links.get(member, node, Purpose::Append))
    }

    /// Waits until the leader has changed, at most `pause`.
    pub(crate) async fn wait_for_change(&self, pause: Duration) {
        let mut metrics = self.raft.server_metrics();
        let deadline = Instant::now() + pause;
        let before = metrics.borrow_and_update().current_leader;
        while let Ok(Ok(())) = tokio::time::timeout_at(deadline, metrics.changed()).await {
            if metrics.borrow_and_update().current_leader != before {
                return;
            }
        }
        // A closed channel returns at once: pause all the same, because the caller loops.
        tokio::time::sleep_until(deadline).await;
    }

    /// Offers an encoded batch to the leader. Returns when it is applied there or refused, or when
    /// the leader has been replaced.
    pub(crate) async fn offer(&self, batch: Bytes, haste: Haste) -> Offer {
        if self.retired.is_cancelled() {
            return Offer::Stopped;
        }
        match self.leader() {
            Leader::Nobody => Offer::NotLeader,
            Leader::Me => {
                let replaced = self.replaced(self.links.member_id());
                until(replaced, self.append_here(batch, haste)).await
            }
            Leader::Other(id, link) => {
                until(self.replaced(id), self.forward(id, &link, (batch, haste))).await
            }
        }
    }

    /// Returns when a member other than `leader` leads. Times without a leader do not count: a
    /// leader that lost its quorum only for a moment may still commit what it has.
    async fn replaced(&self, leader: NodeId) {
        let mut metrics = self.raft.server_metrics();
        while metrics.borrow_and_update().current_leader.is_none_or(|id| id == leader) {
            if metrics.changed().await.is_err() {
                return;
            }
        }
        // The old leader may be alive and about to answer, which would settle the outcome.
        tokio::time::sleep(REPLACED_GRACE).await;
    }

    /// Proposes an encoded batch to this member's own raft; returns when it is applied or refused.
    pub(crate) async fn append_here(&self, bytes: Bytes, haste: Haste) -> Offer {
        self.rounds.enter(bytes, haste).await
    }

    /// Returns at the best moment to send a batch, so that it is closed no earlier: on the leader
    /// when a round may begin; elsewhere when this member acknowledges one, or at once if `idle`
    /// says that none of its batches is in flight. Cancel-safe.
    pub(crate) async fn departure(&self, idle: impl Future<Output = ()>) {
        let mut metrics = self.raft.server_metrics();
        let leader = metrics.borrow_and_update().current_leader;
        let moment = async {
            if leader == Some(self.links.member_id()) {
                self.rounds.open().await;
            } else {
                tokio::select! {
                    () = idle => {}
                    () = self.rounds.acknowledged() => {}
                }
            }
        };
        tokio::select! {
            biased;
            () = moment => {}
            // Another member may lead now.
            _ = metrics.changed() => {}
        }
    }

    async fn forward(&self, to: NodeId, link: &Link, (batch, haste): (Bytes, Haste)) -> Offer {
        let sender = Some(self.links.sender(to));
        let forwards = match link.forwards().await {
            Ok(forwards) => forwards,
            Err(status) => {
                tracing::debug!(member = %format_args!("{to:x}"), %status, "cannot forward");
                return Offer::NotLeader;
            }
        };
        let is_patient = haste == Haste::Patient;
        let request = internal::ProposeRequest { sender, batch, id: 0, is_patient };
        let sent = forwards.send(request);
        tokio::time::timeout(FORWARD_TIMEOUT, sent).await.unwrap_or_else(|_elapsed| {
            forwards.close();
            link.reset();
            Offer::Unknown
        })
    }

    /// The index up to which a linearizable read must see the log applied, confirmed by a quorum
    /// after the call began. `None` if no quorum confirms a leader; asking again does no harm.
    pub(crate) async fn read_index(&self) -> Option<u64> {
        match self.leader() {
            Leader::Nobody => None,
            Leader::Me => self.read_index_here().await,
            Leader::Other(id, link) => {
                let sender = Some(self.links.sender(id));
                let mut client = link.client().ok()?;
                let asked = client.read_index(internal::ReadIndexRequest { sender });
                let answer = self.ask(id, &link, asked).await?;
                answer.read_log_id.map(|id| id.index)
            }
        }
    }

    /// Makes a repeatable call to `leader`. `None` if it fails, or as soon as another member leads:
    /// a stopped leader never answers, and waiting for it would outlast the election.
    pub(crate) async fn ask<T>(
        &self,
        leader: NodeId,
        link: &Link,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Option<T> {
        tokio::select! {
            biased;
            answer = within(link, call) => answer.ok(),
            () = self.replaced(leader) => None,
            () = self.retired.cancelled() => None,
        }
    }

    /// Like [`Route::read_index`], but only if this member leads.
    pub(crate) async fn read_index_here(&self) -> Option<u64> {
        let linearizer = self.raft.get_read_linearizer(ReadPolicy::ReadIndex).await.ok()?;
        Some(linearizer.read_log_id().log_id().index)
    }
}

/// The outcome of an offer; unknown once the leader is replaced.
async fn until(replaced: impl Future<Output = ()>, offer: impl Future<Output = Offer>) -> Offer {
    tokio::select! {
        biased;
        outcome = offer => outcome,
        () = replaced => Offer::Unknown,
    }
}

/// Hands a batch to `raft`; returns when it is applied or refused.
pub(crate) async fn write(raft: Raft, bytes: Bytes) -> Offer {
    let (responder, done) = ProgressResponder::<TypeConfig, _>::complete_only();
    if raft.client_write_ff(Batch { bytes }, Some(responder)).await.is_err() {
        return Offer::Stopped;
    }
    match done.await {
        Ok(Ok(_)) => Offer::Taken,
        // openraft answers this only before it appends.
        Ok(Err(ClientWriteError::ForwardToLeader(_))) => Offer::NotLeader,
        Ok(Err(_)) | Err(_) => Offer::Unknown,
    }
}

/// Makes a repeatable call, within [`ASK_TIMEOUT`].
async fn within<T>(
    link: &Link,
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, Status> {
    match tokio::time::timeout(ASK_TIMEOUT, call).await {
        Ok(answer) => answer.map(tonic::Response::into_inner),
        Err(_elapsed) => {
            link.reset();
            Err(Status::deadline_exceeded("no answer from the leader"))
        }
    }
}

/// Whether a failed call certainly never left this member: the connection was refused.
pub(crate) fn is_never_sent(status: &Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<std::io::Error>() {
            return error.kind() == std::io::ErrorKind::ConnectionRefused;
        }
        source = error.source();
    }
    false
}
