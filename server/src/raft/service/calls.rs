//! The individual calls of other members.

use std::time::Duration;

use conclave_proto::internal::peer_server::Peer;
use conclave_proto::internal::{self, propose_response, snapshot_chunk};
use conclave_raft_store::codec;
use futures::future;
use futures::stream::StreamExt;
use tonic::{Request, Response, Status, Streaming};

use super::{Answers, PeerService, malformed, stopped};
use crate::propose::Haste;
use crate::raft::corruption::Point;
use crate::raft::forward::FORWARDS_MAX;
use crate::raft::route::{Leader, Offer};
use crate::raft::{Raft, wire};

/// Longest time from opening a snapshot call to receiving its header.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

impl PeerService {
    /// Appends a forwarded batch to the log if this member leads. An applied batch needs no answer:
    /// its sender sees it in its own log.
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
        let haste = if message.is_patient { Haste::Patient } else { Haste::Prompt };
        match serving.route.append_here(message.batch, haste).await {
            Offer::Taken => Ok(None),
            Offer::Busy => answer(Outcome::Busy),
            Offer::NotLeader | Offer::Stopped => answer(Outcome::NotLeader),
            Offer::Unknown => answer(Outcome::Unknown),
        }
    }

    /// Checks and decodes a candidate's request for raft.
    async fn candidate(
        &self,
        message: &internal::VoteRequest,
    ) -> Result<(&Raft, wire::VoteRequest), Status> {
        let serving = self.check_elector(message.sender.as_ref()).await?;
        let request = wire::vote(message).map_err(|error| malformed(&error))?;
        Ok((&serving.route.raft, request))
    }
}

fn voted<E: std::fmt::Display>(
    answer: Result<wire::VoteResponse, E>,
) -> Result<Response<internal::VoteResponse>, Status> {
    let answer = answer.map_err(|error| Status::unavailable(error.to_string()))?;
    Ok(Response::new(wire::vote_answer_message(&answer)))
}

#[tonic::async_trait]
impl Peer for PeerService {
    type StreamAppendStream = Answers<internal::AppendResponse>;

    async fn stream_append(
        &self,
        request: Request<Streaming<internal::AppendRequest>>,
    ) -> Result<Response<Self::StreamAppendStream>, Status> {
        Ok(Response::new(self.append_all(request.into_inner())?))
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
        let needed_from = message.needed_from;
        let request = wire::append(message).map_err(|error| malformed(&error))?;
        let answer = route.raft.append_entries(request).await;
        let answer = answer.map_err(|error| Status::unavailable(error.to_string()))?;
        if let (wire::AppendEntriesResponse::Conflict, Some(id)) = (&answer, acknowledged) {
            return Err(serving.loss.note(leader, id).await);
        }
        if !matches!(answer, wire::AppendEntriesResponse::HigherVote(_)) {
            route.heard.note();
            route.needed.hear(needed_from);
        }
        Ok(Response::new(wire::append_answer_message(&answer)))
    }

    async fn vote(
        &self,
        request: Request<internal::VoteRequest>,
    ) -> Result<Response<internal::VoteResponse>, Status> {
        let (raft, request) = self.candidate(&request.into_inner()).await?;
        voted(raft.vote(request).await)
    }

    async fn pre_vote(
        &self,
        request: Request<internal::VoteRequest>,
    ) -> Result<Response<internal::VoteResponse>, Status> {
        let (raft, request) = self.candidate(&request.into_inner()).await?;
        voted(raft.pre_vote(request).await)
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

    type StreamProposeStream = Answers<internal::ProposeResponse>;

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
        // Shares one confirmation with this member's own readers.
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
        self.described(request.into_inner()).await.map(Response::new)
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
