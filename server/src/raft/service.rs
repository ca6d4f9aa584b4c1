//! What the other members may call. Every call names the cluster and both members, and is refused if
//! they do not fit: a member of another cluster, or a new one on an old address, must not be heard.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use conclave_proto::internal::peer_server::Peer;
use conclave_proto::internal::{self, propose_response, snapshot_chunk};
use conclave_raft_store::codec::{self, CodecError};
use conclave_raft_store::reader::Reader;
use conclave_raft_store::types::{LogId, TypeConfig};
use conclave_state_machine::members;
use futures::future;
use futures::stream::{self, Stream, StreamExt};
use openraft::async_runtime::WatchReceiver;
use openraft::error::Fatal;
use openraft::raft::{StreamAppendError, StreamAppendResult};
use parking_lot::Mutex;
use tonic::{Request, Response, Status, Streaming};

use super::change::Changer;
use super::corruption::{Comparer, Point};
use super::forward::FORWARDS_MAX;
use super::loss::Loss;
use super::route::{Leader, Offer, Route};
use super::snapshot_receive::SnapshotReceiver;
use super::standing::{self, REMOVED, Standing};
use super::wire;
use crate::lessor::Lessor;
use crate::propose::Proposer;
use crate::read_index::ReadIndex;

/// The answer to a member of another cluster.
const OTHER_CLUSTER: &str = "cluster ID mismatch";
/// How long a caller may take from opening a snapshot call to its header.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a member that knows a leader may take to learn what is committed, before it answers one that
/// begins; less than that one waits.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(1);

/// What calls are answered with once this member has started.
pub(crate) struct Serving {
    pub(crate) route: Route,
    pub(crate) reader: Reader,
    pub(crate) proposer: Proposer,
    pub(crate) read_index: ReadIndex,
    pub(crate) lessor: Lessor,
    pub(crate) snapshots: SnapshotReceiver,
    pub(crate) loss: Arc<Loss>,
    pub(crate) comparer: Comparer,
    pub(crate) standing: Arc<Standing>,
    pub(crate) changer: Arc<Changer>,
}

impl Serving {
    /// Applies all that a quorum has committed by now; `false` if that cannot be known soon.
    async fn catch_up(&self) -> bool {
        if !self.route.has_leader() {
            return false;
        }
        let applied = async {
            let index = self.read_index.confirm().await.ok()?;
            self.reader.wait_applied(index).await;
            Some(())
        };
        matches!(tokio::time::timeout(CONFIRM_TIMEOUT, applied).await, Ok(Some(())))
    }
}

/// The peer service; before [`PeerService::serve`] it only tells that it is starting.
#[derive(Clone, Default)]
pub(crate) struct PeerService {
    serving: Arc<OnceLock<Serving>>,
    /// Whether this member has found its directory empty, which is all that there is to know of it.
    is_founding: Arc<AtomicBool>,
}

impl PeerService {
    /// Tells peers from now on that this member begins with nothing.
    pub(crate) fn found(&self) {
        self.is_founding.store(true, Ordering::Release);
    }

    /// Begins to answer.
    pub(crate) fn serve(&self, serving: Serving) {
        if self.serving.set(serving).is_err() {
            unreachable!("a member starts once");
        }
    }

    fn serving(&self) -> Result<&Serving, Status> {
        self.serving.get().ok_or_else(|| Status::unavailable("this member is starting"))
    }

    /// Refuses callers of another cluster, those that were removed from this one, and calls meant for
    /// another member. Who is not known (yet) is heard: it may lead before this member knows of it.
    fn check(&self, sender: Option<&internal::Sender>) -> Result<&Serving, Status> {
        let serving = self.serving()?;
        let sender = sender.ok_or_else(|| Status::invalid_argument("a call without sender"))?;
        let links = &serving.route.links;
        if sender.cluster_id != links.cluster_id() {
            return Err(Status::failed_precondition(OTHER_CLUSTER));
        }
        if sender.to != links.member_id() {
            return Err(Status::failed_precondition("member ID mismatch"));
        }
        if sender.from == links.member_id() {
            return Err(Status::failed_precondition("another member uses this member's ID"));
        }
        if serving.standing.is_removed(sender.from) {
            return Err(Status::failed_precondition(REMOVED));
        }
        Ok(serving)
    }

    /// As [`PeerService::check`], for calls of those who lead or would: if this member is alone in its
    /// cluster, nobody else can have become a member without it, so whoever takes part all the same
    /// learnt of this member in a life that its directory has forgotten.
    async fn check_elector(&self, sender: Option<&internal::Sender>) -> Result<&Serving, Status> {
        let serving = self.check(sender)?;
        if !serving.standing.is_alone() {
            return Ok(serving);
        }
        let own_id = serving.route.links.member_id();
        let still = serving.route.raft.with_raft_state(move |state| {
            standing::is_alone(own_id, state.membership_state.effective().membership())
        });
        if !still.await.map_err(|fatal| stopped(&fatal))? {
            return Ok(serving);
        }
        let from = sender.map_or(0, |sender| sender.from);
        let reason = format!(
            "member {from:x} takes part in this cluster, but this member has never added it: this member \
             has been started before, and its data directory was emptied or replaced"
        );
        serving.loss.condemn(reason.clone()).await;
        Err(Status::failed_precondition(reason))
    }
}

fn malformed(error: &CodecError) -> Status {
    Status::invalid_argument(error.to_string())
}

fn stopped(fatal: &Fatal<TypeConfig>) -> Status {
    Status::unavailable(fatal.to_string())
}

fn answered(
    result: Result<StreamAppendResult<TypeConfig>, Fatal<TypeConfig>>,
) -> Result<internal::AppendResponse, Status> {
    match result {
        Ok(result) => Ok(wire::append_result_message(&result)),
        Err(fatal) => Err(stopped(&fatal)),
    }
}

/// What the requests of one append stream leave behind for its answers.
#[derive(Default)]
struct Streamed {
    /// Why a request was refused, which ends the stream.
    failure: Option<Status>,
    /// The leader, and the last entry that it knows this member to have acknowledged.
    acknowledged: Option<(u64, LogId)>,
    /// Of the requests that raft has not answered: whether success need not be told. As many as raft's
    /// own bound on appends in flight.
    quiet: VecDeque<bool>,
}

impl PeerService {
    /// Notes that this member lacks an entry that `leader` knows it to have acknowledged.
    async fn lost(&self, leader: u64, id: LogId) -> Status {
        match self.serving() {
            Ok(serving) => serving.loss.note(leader, id).await,
            Err(starting) => starting,
        }
    }

    /// The next request of an append stream; `None` at its end.
    async fn streamed(
        &self,
        requests: &mut Streaming<internal::AppendRequest>,
        streamed: &Mutex<Streamed>,
    ) -> Result<Option<wire::AppendEntriesRequest>, Status> {
        let Some(message) = requests.message().await? else { return Ok(None) };
        self.check_elector(message.sender.as_ref()).await?;
        let mut streamed = streamed.lock();
        if let (Some(id), Some(sender)) = (wire::acknowledged(&message), message.sender) {
            streamed.acknowledged = Some((sender.from, id));
        }
        streamed.quiet.push_back(message.quiet);
        wire::append(message).map(Some).map_err(|error| malformed(&error))
    }
}

impl PeerService {
    /// Appends one forwarded batch to the log if this member leads. One that is applied needs no
    /// answer: its sender sees it in its own log.
    async fn propose(
        &self,
        message: internal::ProposeRequest,
    ) -> Result<Option<internal::ProposeResponse>, Status> {
        use propose_response::Result as Outcome;
        let serving = self.check(message.sender.as_ref())?;
        let id = message.id;
        let answer =
            |result: Outcome| Ok(Some(internal::ProposeResponse { result: result.into(), id }));
        if !matches!(serving.route.leader(), Leader::Me) {
            return answer(Outcome::NotLeader);
        }
        let Some(_room) = serving.proposer.reserve(message.batch.len()) else {
            return answer(Outcome::Busy);
        };
        match serving.route.append_here(message.batch).await {
            Offer::Taken => Ok(None),
            Offer::Busy => answer(Outcome::Busy),
            Offer::NotLeader | Offer::Stopped => answer(Outcome::NotLeader),
            Offer::Unknown => answer(Outcome::Unknown),
        }
    }
}

#[tonic::async_trait]
impl Peer for PeerService {
    type StreamAppendStream =
        Pin<Box<dyn Stream<Item = Result<internal::AppendResponse, Status>> + Send>>;

    async fn stream_append(
        &self,
        request: Request<Streaming<internal::AppendRequest>>,
    ) -> Result<Response<Self::StreamAppendStream>, Status> {
        let Route { raft, heard, rounds, .. } = self.serving()?.route.clone();
        let streamed: Arc<Mutex<Streamed>> = Arc::default();
        let (service, noted) = (self.clone(), streamed.clone());
        // A request that fails ends the stream: raft must never see what follows a hole.
        let requests = stream::unfold(request.into_inner(), move |mut requests| {
            let (service, noted) = (service.clone(), noted.clone());
            async move {
                match service.streamed(&mut requests, &noted).await {
                    Ok(request) => request.map(|request| (request, requests)),
                    Err(status) => {
                        noted.lock().failure = Some(status);
                        None
                    }
                }
            }
        });
        let (service, noted) = (self.clone(), streamed.clone());
        let answers = raft.stream_append(requests).filter_map(move |result| {
            let service = service.clone();
            let (known, quiet) = {
                let mut noted = noted.lock();
                (noted.acknowledged, noted.quiet.pop_front().unwrap_or(false))
            };
            if let Ok(Ok(_)) = result {
                // Under load the leader sends no heartbeats beside these.
                heard.note();
                if !quiet {
                    rounds.acknowledge();
                }
            }
            async move {
                match (&result, known) {
                    (Ok(Ok(_)), _) if quiet => None,
                    (Ok(Err(StreamAppendError::Conflict(at))), Some((leader, id))) if id >= *at => {
                        Some(Err(service.lost(leader, id).await))
                    }
                    _ => Some(answered(result)),
                }
            }
        });
        let end = stream::once(async move { streamed.lock().failure.take() })
            .filter_map(|failure| async move { failure.map(Err) });
        Ok(Response::new(Box::pin(answers.chain(end))))
    }

    async fn append(
        &self,
        request: Request<internal::AppendRequest>,
    ) -> Result<Response<internal::AppendResponse>, Status> {
        let message = request.into_inner();
        let serving = self.check_elector(message.sender.as_ref()).await?;
        let route = &serving.route;
        let leader = message.sender.map_or(0, |sender| sender.from);
        let acknowledged = wire::acknowledged(&message);
        let request = wire::append(message).map_err(|error| malformed(&error))?;
        let answer = route.raft.append_entries(request).await;
        let answer = answer.map_err(|error| Status::unavailable(error.to_string()))?;
        if let (wire::AppendEntriesResponse::Conflict, Some(id)) = (&answer, acknowledged) {
            return Err(serving.loss.note(leader, id).await);
        }
        if !matches!(answer, wire::AppendEntriesResponse::HigherVote(_)) {
            route.heard.note();
        }
        Ok(Response::new(wire::append_answer_message(&answer)))
    }

    async fn vote(
        &self,
        request: Request<internal::VoteRequest>,
    ) -> Result<Response<internal::VoteResponse>, Status> {
        let message = request.into_inner();
        let serving = self.check_elector(message.sender.as_ref()).await?;
        let request = wire::vote(&message).map_err(|error| malformed(&error))?;
        let answer = serving.route.raft.vote(request).await;
        let answer = answer.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(Response::new(wire::vote_answer_message(&answer)))
    }

    async fn pre_vote(
        &self,
        request: Request<internal::VoteRequest>,
    ) -> Result<Response<internal::VoteResponse>, Status> {
        let message = request.into_inner();
        let serving = self.check_elector(message.sender.as_ref()).await?;
        let request = wire::vote(&message).map_err(|error| malformed(&error))?;
        let answer = serving.route.raft.pre_vote(request).await;
        let answer = answer.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(Response::new(wire::vote_answer_message(&answer)))
    }

    async fn transfer_leader(
        &self,
        request: Request<internal::TransferLeaderRequest>,
    ) -> Result<Response<internal::TransferLeaderResponse>, Status> {
        let message = request.into_inner();
        let serving = self.check(message.sender.as_ref())?;
        let request = wire::transfer(&message).map_err(|error| malformed(&error))?;
        let answer = serving.route.raft.handle_transfer_leader(request).await;
        let answer = answer.map_err(|fatal| stopped(&fatal))?;
        Ok(Response::new(wire::transfer_answer_message(&answer)))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<internal::SnapshotChunk>>,
    ) -> Result<Response<internal::SnapshotResponse>, Status> {
        let mut pieces = request.into_inner();
        let first = tokio::time::timeout(HEADER_TIMEOUT, pieces.message())
            .await
            .map_err(|_elapsed| Status::deadline_exceeded("no snapshot header"))??;
        let Some(snapshot_chunk::Chunk::Header(header)) = first.and_then(|piece| piece.chunk)
        else {
            return Err(Status::invalid_argument("a snapshot without header"));
        };
        let serving = self.check_elector(header.sender.as_ref()).await?;
        let vote = serving.snapshots.receive(header, pieces).await?;
        Ok(Response::new(internal::SnapshotResponse { vote: Some(codec::vote_message(&vote)) }))
    }

    async fn staged_snapshot(
        &self,
        request: Request<internal::StagedSnapshotRequest>,
    ) -> Result<Response<internal::StagedSnapshotResponse>, Status> {
        let serving = self.check(request.get_ref().sender.as_ref())?;
        let files = serving.snapshots.staged()?;
        Ok(Response::new(internal::StagedSnapshotResponse { files }))
    }

    type StreamProposeStream =
        Pin<Box<dyn Stream<Item = Result<internal::ProposeResponse, Status>> + Send>>;

    async fn stream_propose(
        &self,
        request: Request<Streaming<internal::ProposeRequest>>,
    ) -> Result<Response<Self::StreamProposeStream>, Status> {
        self.serving()?;
        let service = self.clone();
        let answers = request.into_inner().map(move |message| {
            let service = service.clone();
            async move {
                match message {
                    Ok(message) => service.propose(message).await.transpose(),
                    Err(status) => Some(Err(status)),
                }
            }
        });
        let answers = answers.buffer_unordered(FORWARDS_MAX).filter_map(future::ready);
        Ok(Response::new(answers.boxed()))
    }

    async fn read_index(
        &self,
        request: Request<internal::ReadIndexRequest>,
    ) -> Result<Response<internal::ReadIndexResponse>, Status> {
        let message = request.into_inner();
        let serving = self.check(message.sender.as_ref())?;
        if !matches!(serving.route.leader(), Leader::Me) {
            return Ok(Response::new(internal::ReadIndexResponse { read_log_id: None }));
        }
        // Shares the confirmation with this member's own readers.
        let index = serving.read_index.confirm().await;
        let index = index.map_err(|error| Status::unavailable(error.to_string()))?;
        let read_log_id = Some(internal::LogId { term: 0, leader: 0, index });
        Ok(Response::new(internal::ReadIndexResponse { read_log_id }))
    }

    async fn lease_renew(
        &self,
        request: Request<internal::LeaseRenewRequest>,
    ) -> Result<Response<internal::LeaseRenewResponse>, Status> {
        let message = request.into_inner();
        let serving = self.check(message.sender.as_ref())?;
        let ttls = serving.lessor.renew_here(&message.ids, message.applied_index).await;
        let is_leader = ttls.is_some();
        let ttls = ttls.unwrap_or_default();
        Ok(Response::new(internal::LeaseRenewResponse { is_leader, ttls }))
    }

    async fn lease_remaining(
        &self,
        request: Request<internal::LeaseRemainingRequest>,
    ) -> Result<Response<internal::LeaseRemainingResponse>, Status> {
        let message = request.into_inner();
        let serving = self.check(message.sender.as_ref())?;
        let found = serving.lessor.remaining_here(&message.ids, message.applied_index).await;
        let is_leader = found.is_some();
        let (ids, remaining_ms) = found.unwrap_or_default().into_iter().unzip();
        Ok(Response::new(internal::LeaseRemainingResponse { is_leader, ids, remaining_ms }))
    }

    async fn describe(
        &self,
        request: Request<internal::DescribeRequest>,
    ) -> Result<Response<internal::DescribeResponse>, Status> {
        let internal::DescribeRequest { cluster_id: asked, from, is_founding } =
            request.into_inner();
        let Some(serving) = self.serving.get() else {
            let is_starting = !self.is_founding.load(Ordering::Acquire);
            let answer = internal::DescribeResponse { is_starting, ..Default::default() };
            return Ok(Response::new(answer));
        };
        let links = &serving.route.links;
        if asked != 0 && asked != links.cluster_id() {
            return Err(Status::failed_precondition(OTHER_CLUSTER));
        }
        let is_confirmed = is_founding && serving.catch_up().await;
        let published = members::all(&serving.reader)
            .map_err(|halt| Status::internal(halt.to_string()))?
            .into_iter()
            .filter(|member| !member.client_urls.is_empty())
            .map(|member| member.id);
        let metrics = serving.route.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let is_initialised = membership.voter_ids().next().is_some();
        Ok(Response::new(internal::DescribeResponse {
            cluster_id: links.cluster_id(),
            member_id: links.member_id(),
            leader: metrics.current_leader.unwrap_or(0),
            term: metrics.current_term,
            membership: is_initialised.then(|| codec::membership_message(membership)),
            last_log_index: metrics.last_log_index.unwrap_or(0),
            published: published.collect(),
            caller_is_removed: serving.standing.is_removed(from),
            is_starting: false,
            is_confirmed,
        }))
    }

    async fn change_members(
        &self,
        request: Request<internal::ChangeMembersRequest>,
    ) -> Result<Response<internal::ChangeMembersResponse>, Status> {
        let message = request.into_inner();
        let serving = self.check(message.sender.as_ref())?;
        Ok(Response::new(serving.changer.change_here(message).await))
    }

    async fn digest(
        &self,
        request: Request<internal::DigestRequest>,
    ) -> Result<Response<internal::DigestResponse>, Status> {
        let message = request.into_inner();
        let serving = self.check(message.sender.as_ref())?;
        let point = match message.index {
            0 => Point::Revision(message.revision),
            index => Point::Compaction(index),
        };
        let answer = serving.comparer.digest(point).await;
        let answer = answer.map(|answer| internal::DigestResponse {
            is_known: true,
            digest: answer.digest,
            compacted: answer.compacted,
        });
        Ok(Response::new(answer.unwrap_or_default()))
    }

    async fn fence(
        &self,
        request: Request<internal::FenceRequest>,
    ) -> Result<Response<internal::FenceResponse>, Status> {
        let message = request.into_inner();
        let serving = self.check(message.sender.as_ref())?;
        let told_by = message.sender.map_or(0, |sender| sender.from);
        serving.comparer.stop(told_by, message.reason).await;
        Ok(Response::new(internal::FenceResponse {}))
    }
}
