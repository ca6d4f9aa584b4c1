//! Converts raft's requests and answers to `conclave.internal.v1` messages and back.

use conclave_proto::internal::{self, append_response, transfer_leader_response};
use conclave_raft_store::codec::{self, CodecError};
use conclave_raft_store::types::{LogId, TypeConfig, Vote};
use openraft::raft::{
    StreamAppendError, StreamAppendResult, TransferLeaderError, TransferLeaderRequest,
    TransferLeaderResponse,
};

pub(crate) type AppendEntriesRequest = openraft::raft::AppendEntriesRequest<TypeConfig>;
pub(crate) type AppendEntriesResponse = openraft::raft::AppendEntriesResponse<TypeConfig>;
pub(crate) type VoteRequest = openraft::raft::VoteRequest<TypeConfig>;
pub(crate) type VoteResponse = openraft::raft::VoteResponse<TypeConfig>;

fn required<T>(
    field: Option<T>,
    message: &'static str,
    name: &'static str,
) -> Result<T, CodecError> {
    field.ok_or(CodecError::Missing { message, field: name })
}

fn log_id_message(id: Option<&LogId>) -> Option<internal::LogId> {
    id.map(codec::log_id_message)
}

fn log_id(message: Option<&internal::LogId>) -> Option<LogId> {
    message.map(codec::log_id)
}

/// `acknowledged` tells whether the receiver is known to have acknowledged the entry before the
/// first one.
pub(crate) fn append_message(
    sender: internal::Sender,
    request: &AppendEntriesRequest,
    acknowledged: impl FnOnce(Vote, LogId) -> bool,
) -> internal::AppendRequest {
    internal::AppendRequest {
        sender: Some(sender),
        vote: Some(codec::vote_message(&request.vote)),
        prev_log_id: log_id_message(request.prev_log_id.as_ref()),
        leader_commit: log_id_message(request.leader_commit.as_ref()),
        entries: request.entries.iter().map(codec::entry_message).collect(),
        prev_is_acknowledged: request.prev_log_id.is_some_and(|id| acknowledged(request.vote, id)),
        quiet: false,
        needed_from: 0,
    }
}

/// The entry before those of an append, if the sender knows that the receiver acknowledged it.
pub(crate) fn acknowledged(message: &internal::AppendRequest) -> Option<LogId> {
    log_id(message.prev_log_id.as_ref()).filter(|_| message.prev_is_acknowledged)
}

pub(crate) fn append(message: internal::AppendRequest) -> Result<AppendEntriesRequest, CodecError> {
    let vote = required(message.vote, "AppendRequest", "vote")?;
    Ok(AppendEntriesRequest {
        vote: codec::vote(&vote),
        prev_log_id: log_id(message.prev_log_id.as_ref()),
        leader_commit: log_id(message.leader_commit.as_ref()),
        entries: message.entries.into_iter().map(codec::entry).collect::<Result<_, _>>()?,
    })
}

pub(crate) fn append_result_message(
    result: &StreamAppendResult<TypeConfig>,
) -> internal::AppendResponse {
    use append_response::Result as Message;
    let result = match result {
        Ok(_) => Message::Success(internal::AppendSuccess {}),
        Err(StreamAppendError::Conflict(_)) => Message::Conflict(true),
        Err(StreamAppendError::HigherVote(vote)) => Message::HigherVote(codec::vote_message(vote)),
    };
    internal::AppendResponse { result: Some(result) }
}

pub(crate) fn append_answer_message(answer: &AppendEntriesResponse) -> internal::AppendResponse {
    use append_response::Result as Message;
    let result = match answer {
        AppendEntriesResponse::Success | AppendEntriesResponse::PartialSuccess(None) => {
            Message::Success(internal::AppendSuccess {})
        }
        AppendEntriesResponse::PartialSuccess(Some(id)) => {
            Message::Partial(codec::log_id_message(id))
        }
        AppendEntriesResponse::Conflict => Message::Conflict(true),
        AppendEntriesResponse::HigherVote(vote) => Message::HigherVote(codec::vote_message(vote)),
    };
    internal::AppendResponse { result: Some(result) }
}

/// Log ids before and at the end of an append, which its answer refers to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    pub(crate) vote: Vote,
    prev: Option<LogId>,
    last: Option<LogId>,
}

impl Sent {
    pub(crate) fn of(request: &AppendEntriesRequest) -> Self {
        let prev = request.prev_log_id;
        Self {
            vote: request.vote,
            prev,
            last: request.entries.last().map(|entry| entry.log_id).or(prev),
        }
    }

    pub(crate) fn result(
        self,
        message: internal::AppendResponse,
    ) -> Result<StreamAppendResult<TypeConfig>, CodecError> {
        use append_response::Result as Message;
        Ok(match required(message.result, "AppendResponse", "result")? {
            Message::Success(_) => Ok(self.last),
            Message::Partial(id) => Ok(Some(codec::log_id(&id))),
            Message::HigherVote(vote) => Err(StreamAppendError::HigherVote(codec::vote(&vote))),
            Message::Conflict(_) => {
                // Nothing can conflict before the first entry, so the answer is malformed.
                let prev = required(self.prev, "AppendResponse", "conflicting log id")?;
                Err(StreamAppendError::Conflict(prev))
            }
        })
    }
}

pub(crate) fn vote_message(
    sender: internal::Sender,
    request: &VoteRequest,
) -> internal::VoteRequest {
    internal::VoteRequest {
        sender: Some(sender),
        vote: Some(codec::vote_message(&request.vote)),
        last_log_id: log_id_message(request.last_log_id.as_ref()),
        leadership_transfer: request.leadership_transfer,
    }
}

pub(crate) fn vote(message: &internal::VoteRequest) -> Result<VoteRequest, CodecError> {
    let vote = required(message.vote.as_ref(), "VoteRequest", "vote")?;
    let mut request = VoteRequest::new(codec::vote(vote), log_id(message.last_log_id.as_ref()));
    request.leadership_transfer = message.leadership_transfer;
    Ok(request)
}

pub(crate) fn vote_answer_message(answer: &VoteResponse) -> internal::VoteResponse {
    internal::VoteResponse {
        vote: Some(codec::vote_message(&answer.vote)),
        granted: answer.vote_granted,
        last_log_id: log_id_message(answer.last_log_id.as_ref()),
    }
}

pub(crate) fn vote_answer(message: &internal::VoteResponse) -> Result<VoteResponse, CodecError> {
    let vote = codec::vote(required(message.vote.as_ref(), "VoteResponse", "vote")?);
    Ok(VoteResponse::new(vote, log_id(message.last_log_id.as_ref()), message.granted))
}

pub(crate) fn transfer_message(
    sender: internal::Sender,
    request: &TransferLeaderRequest<TypeConfig>,
) -> internal::TransferLeaderRequest {
    internal::TransferLeaderRequest {
        sender: Some(sender),
        from_leader: Some(codec::vote_message(request.from_leader())),
        to_member: *request.to_node_id(),
        last_log_id: log_id_message(request.last_log_id()),
    }
}

pub(crate) fn transfer(
    message: &internal::TransferLeaderRequest,
) -> Result<TransferLeaderRequest<TypeConfig>, CodecError> {
    let from = required(message.from_leader.as_ref(), "TransferLeaderRequest", "from_leader")?;
    let last = log_id(message.last_log_id.as_ref());
    Ok(TransferLeaderRequest::new(codec::vote(from), message.to_member, last))
}

pub(crate) fn transfer_answer_message(
    answer: &TransferLeaderResponse<TypeConfig>,
) -> internal::TransferLeaderResponse {
    use transfer_leader_response::Rejection;
    let rejection = answer.as_ref().err().map(|error| match error {
        TransferLeaderError::VoteChanged { actual, .. } => {
            Rejection::VoteChanged(codec::vote_message(actual))
        }
        TransferLeaderError::LogNotFlushed { actual, .. } => {
            Rejection::LogNotFlushed(internal::LogNotFlushed {
                last_log_id: log_id_message(actual.as_ref()),
            })
        }
    });
    internal::TransferLeaderResponse { rejection }
}

pub(crate) fn transfer_answer(
    request: &TransferLeaderRequest<TypeConfig>,
    message: &internal::TransferLeaderResponse,
) -> TransferLeaderResponse<TypeConfig> {
    use transfer_leader_response::Rejection;
    match &message.rejection {
        None => Ok(()),
        Some(Rejection::VoteChanged(vote)) => Err(TransferLeaderError::VoteChanged {
            expected: *request.from_leader(),
            actual: codec::vote(vote),
        }),
        Some(Rejection::LogNotFlushed(lack)) => Err(TransferLeaderError::LogNotFlushed {
            expected: request.last_log_id().copied(),
            actual: log_id(lack.last_log_id.as_ref()),
        }),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use conclave_raft_store::types::{Batch, CommittedLeaderId, Entry, EntryPayload};

    use super::*;

    fn id(term: u64, index: u64) -> LogId {
        LogId::new(CommittedLeaderId::new(term), index)
    }

    fn request(prev: Option<LogId>, indexes: &[u64]) -> AppendEntriesRequest {
        let payload = EntryPayload::Normal(Batch { bytes: Bytes::from_static(b"x") });
        AppendEntriesRequest {
            vote: Vote::new_committed(7, 3),
            prev_log_id: prev,
            leader_commit: Some(id(6, 1)),
            entries: indexes
                .iter()
                .map(|i| Entry { log_id: id(7, *i), payload: payload.clone() })
                .collect(),
        }
    }

    #[test]
    fn appends_return_from_their_messages() {
        for sent in [request(None, &[]), request(Some(id(6, 4)), &[5, 6])] {
            let message = append_message(internal::Sender::default(), &sent, |_, _| true);
            assert_eq!(acknowledged(&message), sent.prev_log_id);
            let back = append(message).unwrap();
            assert_eq!(format!("{back:?}"), format!("{sent:?}"));
            let unknown = append_message(internal::Sender::default(), &sent, |_, _| false);
            assert_eq!(acknowledged(&unknown), None);
        }
        assert!(append(internal::AppendRequest::default()).is_err());
    }

    #[test]
    fn an_answer_is_meant_relative_to_what_was_sent() {
        let sent = Sent::of(&request(Some(id(6, 4)), &[5, 6]));
        let cases = [
            Ok(Some(id(7, 6))),
            Err(StreamAppendError::Conflict(id(6, 4))),
            Err(StreamAppendError::HigherVote(Vote::new(9, 1))),
        ];
        for result in cases {
            assert_eq!(sent.result(append_result_message(&result)).unwrap(), result);
        }
        let heartbeat = Sent::of(&request(None, &[]));
        let conflict = append_result_message(&Err(StreamAppendError::Conflict(id(1, 1))));
        assert!(heartbeat.result(conflict).is_err());
    }

    #[test]
    fn votes_and_transfers_return_from_their_messages() {
        let mut asked = VoteRequest::new(Vote::new(3, 9), Some(id(2, 2)));
        asked.leadership_transfer = true;
        assert_eq!(vote(&vote_message(internal::Sender::default(), &asked)).unwrap(), asked);
        let answer = VoteResponse::new(Vote::new(3, 9), None, true);
        assert_eq!(vote_answer(&vote_answer_message(&answer)).unwrap(), answer);

        let request = TransferLeaderRequest::new(Vote::new_committed(3, 9), 4, Some(id(3, 8)));
        let message = transfer_message(internal::Sender::default(), &request);
        assert_eq!(transfer(&message).unwrap(), request);
        let refused = Err(TransferLeaderError::LogNotFlushed {
            expected: Some(id(3, 8)),
            actual: Some(id(3, 5)),
        });
        assert_eq!(transfer_answer(&request, &transfer_answer_message(&refused)), refused);
        assert_eq!(transfer_answer(&request, &transfer_answer_message(&Ok(()))), Ok(()));
    }
}
