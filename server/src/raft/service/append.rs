//! The stream over which a leader appends to this member's log.

use std::collections::VecDeque;
use std::sync::Arc;

use conclave_proto::internal;
use conclave_raft_store::types::{LogId, TypeConfig};
use futures::stream::{self, StreamExt};
use openraft::error::Fatal;
use openraft::raft::{StreamAppendError, StreamAppendResult};
use parking_lot::Mutex;
use tonic::{Status, Streaming};

use super::{Answers, PeerService, malformed, stopped};
use crate::raft::route::Route;
use crate::raft::wire;

/// What the requests of an append stream record for its answers.
#[derive(Default)]
struct Streamed {
    /// Why a request was refused; a refusal ends the stream.
    failure: Option<Status>,
    /// The leader, and the last entry it knows this member to have acknowledged.
    acknowledged: Option<(u64, LogId)>,
    /// One per request that raft has not answered. Bounded by raft's own limit of appends in
    /// flight.
    asked: VecDeque<Asked>,
}

/// What a request carried besides its entries.
#[derive(Clone, Copy, Default)]
struct Asked {
    /// Success need not be answered.
    quiet: bool,
    /// First entry that the leader says is still needed.
    needed_from: u64,
}

impl PeerService {
    /// Appends what a leader streams and answers in order.
    pub(super) fn append_all(
        &self,
        requests: Streaming<internal::AppendRequest>,
    ) -> Result<Answers<internal::AppendResponse>, Status> {
        let Route { raft, heard, rounds, needed, .. } = self.serving()?.route.clone();
        let streamed: Arc<Mutex<Streamed>> = Arc::default();
        let (service, noted) = (self.clone(), streamed.clone());
        // A failed request ends the stream: raft must never see what follows a gap.
        let requests = stream::unfold(requests, move |mut requests| {
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
            let (known, Asked { quiet, needed_from }) = {
                let mut noted = noted.lock();
                (noted.acknowledged, noted.asked.pop_front().unwrap_or_default())
            };
            if let Ok(Ok(_)) = result {
                // Under load the leader sends no heartbeats in addition.
                heard.note();
                needed.hear(needed_from);
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
        Ok(answers.chain(end).boxed())
    }

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
        let (quiet, needed_from) = (message.quiet, message.needed_from);
        streamed.asked.push_back(Asked { quiet, needed_from });
        wire::append(message).map(Some).map_err(|error| malformed(&error))
    }
}

fn answered(
    result: Result<StreamAppendResult<TypeConfig>, Fatal<TypeConfig>>,
) -> Result<internal::AppendResponse, Status> {
    match result {
        Ok(result) => Ok(wire::append_result_message(&result)),
        Err(fatal) => Err(stopped(&fatal)),
    }
}
