//! How raft reaches the other members.

use std::sync::Arc;
use std::time::{Duration, Instant};

use conclave_proto::internal;
use conclave_raft_store::codec::CodecError;
use conclave_raft_store::types::{MemberNode, NodeId, TypeConfig};
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, Stream, StreamExt};
use openraft::error::{NetworkError, RPCError, Timeout, Unreachable};
use openraft::network::{
    Backoff, NetBackoff, NetStreamAppend, NetTransferLeader, NetVote, RPCOption, RPCTypes,
    RaftNetworkFactory,
};
use openraft::raft::{StreamAppendResult, TransferLeaderRequest, TransferLeaderResponse};
use tokio::sync::mpsc;
use tonic::{Code, Response, Status, Streaming};

use super::link::{Link, Links, Purpose};
use super::needed::Needed;
use super::wire::{self, AppendEntriesRequest, Sent, VoteRequest, VoteResponse};

pub(crate) type AppendResult = Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>;

/// Appends in flight to one follower: enough to cover a round trip and an fsync; also openraft's
/// own bound on the receiving side.
const APPEND_WINDOW: usize = 64;
/// Unanswered heartbeats in a row after which a member is logged as gone.
const MISSED_HEARTBEATS: u32 = 10;
/// Shortest and longest pause before an unreachable member is tried again. The longest bounds how
/// long a restarted follower waits for the leader.
const BACKOFF_MIN: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_millis(320);

/// Creates a [`Network`] for each member and purpose.
#[derive(Clone, Debug)]
pub(crate) struct NetworkFactory {
    links: Arc<Links>,
    needed: Arc<Needed>,
    /// Longest wait for an answer that is due.
    stall_timeout: Duration,
}

/// The connection to one member for one purpose.
#[derive(Debug)]
pub(crate) struct Network {
    pub(super) links: Arc<Links>,
    needed: Arc<Needed>,
    pub(super) link: Arc<Link>,
    pub(super) target: NodeId,
    pub(super) purpose: Purpose,
    pub(super) stall_timeout: Duration,
}

impl NetworkFactory {
    /// `needed` is sent along with heartbeats and appends.
    pub(crate) fn new(links: Arc<Links>, needed: Arc<Needed>, stall_timeout: Duration) -> Self {
        Self { links, needed, stall_timeout }
    }

    fn network(&self, target: NodeId, node: &MemberNode, purpose: Purpose) -> Network {
        let link = self.links.get(target, node, purpose);
        let (links, needed) = (self.links.clone(), self.needed.clone());
        Network { links, needed, link, target, purpose, stall_timeout: self.stall_timeout }
    }
}

impl RaftNetworkFactory<TypeConfig> for NetworkFactory {
    type Network = Network;

    async fn new_client(&mut self, target: NodeId, node: &MemberNode) -> Network {
        self.network(target, node, Purpose::Append)
    }

    async fn new_heartbeat_client(&mut self, target: NodeId, node: &MemberNode) -> Network {
        self.network(target, node, Purpose::Heartbeat)
    }

    async fn new_snapshot_client(&mut self, target: NodeId, node: &MemberNode) -> Network {
        self.network(target, node, Purpose::Snapshot)
    }
}

impl Network {
    pub(super) fn sender(&self) -> internal::Sender {
        self.links.sender(self.target)
    }

    pub(super) fn timed_out(&self, action: RPCTypes, timeout: Duration) -> RPCError<TypeConfig> {
        let id = self.links.member_id();
        RPCError::Timeout(Timeout { action, id, target: self.target, timeout })
    }

    /// Makes one call and waits up to `ttl` for its answer.
    async fn call<T>(
        &self,
        action: RPCTypes,
        ttl: Duration,
        answer: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, RPCError<TypeConfig>> {
        match tokio::time::timeout(ttl, answer).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(self.refused(&status)),
            Err(_elapsed) => Err(self.timed_out(action, ttl)),
        }
    }

    /// A heartbeat: one append and its answer, without a stream.
    async fn append_once(&self, request: AppendEntriesRequest, ttl: Duration) -> AppendResult {
        let sent = Sent::of(&request);
        // openraft's heartbeats start at the last entry that the member acknowledged.
        let mut message = wire::append_message(self.sender(), &request, |_, _| true);
        message.needed_from = self.needed.own();
        let mut client = self.link.client().map_err(|status| refused(&status))?;
        let began = Instant::now();
        let answer = self.call(RPCTypes::AppendEntries, ttl, client.append(message)).await;
        match &answer {
            Ok(_) => self.link.peer().round_trips.observe(began.elapsed().as_secs_f64()),
            Err(_) => _ = self.link.peer().failed_heartbeats.inc(),
        }
        self.tell_health(answer.as_ref().err());
        sent.result(answer?).map_err(malformed)
    }

    /// Logs one line when a member is gone and one when it is back; openraft itself would log ten a
    /// second.
    fn tell_health(&self, error: Option<&RPCError<TypeConfig>>) {
        let member = format_args!("{:x}", self.target);
        match error {
            Some(error) if self.link.failed() == MISSED_HEARTBEATS => {
                tracing::warn!(%member, %error, "a member does not answer heartbeats");
            }
            Some(_) => {}
            None if self.link.succeeded() >= MISSED_HEARTBEATS => {
                tracing::info!(%member, "a member answers heartbeats again");
            }
            None => {}
        }
    }

    /// Opens a stream of pipelined appends that begins with `first`; `rest` is pulled as far as the
    /// window allows.
    async fn append_pipelined(
        &self,
        first: AppendEntriesRequest,
        rest: impl Stream<Item = AppendEntriesRequest> + Send + Unpin + 'static,
    ) -> Result<Acknowledgements, RPCError<TypeConfig>> {
        let (window, sent) = mpsc::channel(APPEND_WINDOW);
        let input = stream::iter([first]).chain(rest);
        let parts = (self.link.clone(), self.needed.clone());
        let requests = requests(input, window, self.sender(), parts);
        let mut client = self.link.client().map_err(|status| refused(&status))?;
        let opened = client.stream_append(requests);
        let opened = self.call(RPCTypes::AppendEntries, self.stall_timeout, opened).await;
        let answers = opened.inspect_err(|_| self.link.reset())?;
        Ok(Acknowledgements { answers, sent })
    }

    /// The next answer of a stream, `None` once everything sent is answered and nothing more comes.
    async fn next_answer(&self, stream: &mut Acknowledgements) -> Option<AppendResult> {
        // Nothing is due while nothing is sent, however long that takes. A dead connection drops
        // the request stream, which closes `sent`.
        let sent = stream.sent.recv().await;
        let Ok(answer) = tokio::time::timeout(self.stall_timeout, stream.answers.message()).await
        else {
            return Some(Err(self.timed_out(RPCTypes::AppendEntries, self.stall_timeout)));
        };
        match (sent, answer) {
            (_, Err(status)) => Some(Err(self.refused(&status))),
            (None, Ok(None)) => None,
            (Some(_), Ok(None)) => Some(Err(malformed("the append stream ended early"))),
            (None, Ok(Some(_))) => Some(Err(malformed("an answer without a request"))),
            (Some(sent), Ok(Some(answer))) => {
                let result = sent.result(answer).map_err(malformed);
                if let Ok(Ok(Some(id))) = &result {
                    self.link.acknowledged.note(sent.vote, *id);
                }
                Some(result)
            }
        }
    }

    fn refused(&self, status: &Status) -> RPCError<TypeConfig> {
        if status.code() == Code::DataLoss {
            let member = format_args!("{:x}", self.target);
            tracing::error!(%member, reason = status.message(), "a member lost records and stops");
        }
        refused(status)
    }
}

/// The receiving half of an append stream.
struct Acknowledgements {
    answers: Streaming<internal::AppendResponse>,
    /// Appends sent and not yet answered, in order; its capacity is the window.
    sent: mpsc::Receiver<Sent>,
}

fn requests(
    input: impl Stream<Item = AppendEntriesRequest> + Send + Unpin + 'static,
    window: mpsc::Sender<Sent>,
    sender: internal::Sender,
    parts: (Arc<Link>, Arc<Needed>),
) -> impl Stream<Item = internal::AppendRequest> + Send + 'static {
    stream::unfold((input, window, parts), move |(mut input, window, parts)| async move {
        let (link, needed) = &parts;
        let slot = window.reserve().await.ok()?;
        let request = input.next().await?;
        let sent = Sent::of(&request);
        let acknowledged = |vote, id| link.acknowledged.covers(vote, id);
        let mut message = wire::append_message(sender, &request, acknowledged);
        // Under load no heartbeats are sent in addition, so appends carry it too.
        message.needed_from = needed.own();
        // Such an append only carries the commit index, to a member known to have the whole log:
        // success needs no answer.
        message.quiet = message.entries.is_empty() && message.prev_is_acknowledged;
        if message.quiet {
            drop(slot);
        } else {
            slot.send(sent);
        }
        Some((message, (input, window, parts)))
    })
}

impl NetStreamAppend<TypeConfig> for Network {
    fn stream_append<'s, S>(
        &'s mut self,
        mut input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, AppendResult>, RPCError<TypeConfig>>>
    where
        S: Stream<Item = AppendEntriesRequest> + Send + Unpin + 'static,
    {
        let this = &*self;
        Box::pin(async move {
            // Before anything is opened: openraft pauses in here after errors, and a member that
            // refuses the call without reading it would otherwise be called again at once, for ever.
            let Some(first) = input.next().await else {
                return Ok(stream::empty().boxed());
            };
            if this.purpose == Purpose::Heartbeat {
                // A little less than openraft's own limit, which would cancel the call before we
                // notice.
                let answer = this.append_once(first, option.hard_ttl() * 9 / 10);
                return Ok(stream::once(answer).boxed());
            }
            let acknowledgements = this.append_pipelined(first, input).await?;
            let answers = stream::unfold(Some(acknowledgements), move |state| async move {
                let mut state = state?;
                let answer = this.next_answer(&mut state).await?;
                if answer.is_err() {
                    this.link.reset();
                }
                let goes_on = matches!(answer, Ok(Ok(_)));
                Some((answer, goes_on.then_some(state)))
            });
            Ok(answers.boxed())
        })
    }
}

impl NetVote<TypeConfig> for Network {
    async fn vote(
        &mut self,
        request: VoteRequest,
        option: RPCOption,
    ) -> Result<VoteResponse, RPCError<TypeConfig>> {
        let message = wire::vote_message(self.sender(), &request);
        let mut client = self.link.client().map_err(|status| refused(&status))?;
        let answer = self.call(RPCTypes::Vote, option.hard_ttl(), client.vote(message)).await?;
        wire::vote_answer(&answer).map_err(malformed)
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest,
        option: RPCOption,
    ) -> Result<VoteResponse, RPCError<TypeConfig>> {
        let message = wire::vote_message(self.sender(), &request);
        let mut client = self.link.client().map_err(|status| refused(&status))?;
        let answer = self.call(RPCTypes::Vote, option.hard_ttl(), client.pre_vote(message)).await?;
        wire::vote_answer(&answer).map_err(malformed)
    }
}

impl NetTransferLeader<TypeConfig> for Network {
    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let message = wire::transfer_message(self.sender(), &request);
        let mut client = self.link.client().map_err(|status| refused(&status))?;
        let answer = client.transfer_leader(message);
        let answer = self.call(RPCTypes::TransferLeader, option.hard_ttl(), answer).await;
        let answer = answer.map(|answer| wire::transfer_answer(&request, &answer));
        if !matches!(answer, Ok(Ok(()))) {
            // Makes the waiting `hand_over` give up on this member.
            self.link.failed();
        }
        answer
    }
}

impl NetBackoff<TypeConfig> for Network {
    fn backoff(&self) -> Option<Backoff> {
        let pauses = std::iter::successors(Some(BACKOFF_MIN), |last| {
            Some(last.saturating_mul(2).min(BACKOFF_MAX))
        });
        Some(Backoff::new(pauses))
    }
}

/// Maps a refused call to an error; it is retried at once only where that can help.
pub(super) fn refused(status: &Status) -> RPCError<TypeConfig> {
    let text = format!("{:?}: {}", status.code(), status.message());
    match status.code() {
        Code::Cancelled | Code::DeadlineExceeded | Code::Aborted => {
            RPCError::Network(NetworkError::from_string(text))
        }
        _ => RPCError::Unreachable(Unreachable::from_string(text)),
    }
}

/// An answer that makes no sense: the connection or the member is broken.
pub(super) fn malformed(what: impl Into<Broken>) -> RPCError<TypeConfig> {
    RPCError::Unreachable(Unreachable::from_string(what.into().0))
}

/// Describes a broken answer.
pub(super) struct Broken(String);

impl From<&str> for Broken {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl From<CodecError> for Broken {
    fn from(error: CodecError) -> Self {
        Self(error.to_string())
    }
}
