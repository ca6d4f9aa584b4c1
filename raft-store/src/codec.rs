//! Converts raft's own values to and from `conclave.internal.v1` messages.
//!
//! openraft's serde formats change between releases, so they are never stored or sent: log records,
//! the state's meta rows, snapshots and peer messages all use these conversions.
//!
//! A log id carries only the term of its leader (one leader per term), so `LogId.leader` stays 0.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use conclave_proto::internal;
use openraft::vote::RaftLeaderId;
use prost::Message;

use crate::types::{
    Batch, CommittedLeaderId, Entry, EntryPayload, LogId, MemberNode, Membership, SnapshotMeta,
    StoredMembership, TypeConfig, Vote,
};

type LeaderId = openraft::type_config::alias::LeaderIdOf<TypeConfig>;

/// Why bytes or a message are not a valid value of raft.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The bytes are not a valid message.
    #[error("not a valid message: {0}")]
    Protobuf(#[from] prost::DecodeError),
    /// A required field is absent.
    #[error("{message} without {field}")]
    Missing {
        /// Name of the message.
        message: &'static str,
        /// Name of the absent field.
        field: &'static str,
    },
    /// A membership that raft's own rules reject, such as a voter without a node.
    #[error("impossible membership: {reason}")]
    Membership {
        /// Raft's error.
        reason: String,
    },
}

impl From<CodecError> for std::io::Error {
    fn from(error: CodecError) -> Self {
        Self::new(std::io::ErrorKind::InvalidData, error)
    }
}

/// Converts a log id to its message.
#[must_use]
pub fn log_id_message(id: &LogId) -> internal::LogId {
    internal::LogId { term: id.leader_id.term, leader: 0, index: id.index }
}

/// Converts a message to a log id.
#[must_use]
pub fn log_id(message: &internal::LogId) -> LogId {
    LogId::new(CommittedLeaderId::new(message.term), message.index)
}

/// Converts a vote to its message.
#[must_use]
pub fn vote_message(vote: &Vote) -> internal::Vote {
    internal::Vote {
        term: vote.leader_id.term,
        leader: vote.leader_id.voted_for,
        committed: vote.committed,
    }
}

/// Converts a message to a vote.
#[must_use]
pub fn vote(message: &internal::Vote) -> Vote {
    Vote { leader_id: LeaderId::new(message.term, message.leader), committed: message.committed }
}

/// Converts a membership to its message.
#[must_use]
pub fn membership_message(membership: &Membership) -> internal::Membership {
    let configs = membership.get_joint_config().iter();
    let members = membership.nodes().map(|(id, node)| internal::Member {
        id: *id,
        name: node.name.clone(),
        peer_urls: node.peer_urls.clone(),
        to_vote: node.is_to_vote,
    });
    internal::Membership {
        configs: configs
            .map(|voters| internal::VoterSet { ids: voters.iter().copied().collect() })
            .collect(),
        members: members.collect(),
    }
}

/// Converts a message to a membership.
///
/// # Errors
/// [`CodecError::Membership`] if raft's own rules reject it.
pub fn membership(message: &internal::Membership) -> Result<Membership, CodecError> {
    let configs: Vec<BTreeSet<u64>> =
        message.configs.iter().map(|voters| voters.ids.iter().copied().collect()).collect();
    let node = |member: &internal::Member| MemberNode {
        name: member.name.clone(),
        peer_urls: member.peer_urls.clone(),
        is_to_vote: member.to_vote,
    };
    let nodes: BTreeMap<u64, MemberNode> =
        message.members.iter().map(|member| (member.id, node(member))).collect();
    Membership::new(configs, nodes)
        .map_err(|error| CodecError::Membership { reason: error.to_string() })
}

/// Converts a snapshot's metadata to its message.
#[must_use]
pub fn snapshot_meta_message(meta: &SnapshotMeta) -> internal::SnapshotMeta {
    internal::SnapshotMeta {
        last_log_id: meta.last_log_id.as_ref().map(log_id_message),
        membership_log_id: meta.last_membership.log_id().as_ref().map(log_id_message),
        membership: Some(membership_message(meta.last_membership.membership())),
    }
}

/// Converts a message to a snapshot's metadata.
///
/// # Errors
/// [`CodecError::Missing`] without a membership; [`CodecError::Membership`] if it is invalid.
pub fn snapshot_meta(message: &internal::SnapshotMeta) -> Result<SnapshotMeta, CodecError> {
    let stored = message
        .membership
        .as_ref()
        .ok_or(CodecError::Missing { message: "SnapshotMeta", field: "membership" })?;
    Ok(SnapshotMeta {
        last_log_id: message.last_log_id.as_ref().map(log_id),
        last_membership: StoredMembership::new(
            message.membership_log_id.as_ref().map(log_id),
            membership(stored)?,
        ),
    })
}

/// Converts a log entry to its message; a batch is shared, not copied.
#[must_use]
pub fn entry_message(entry: &Entry) -> internal::Entry {
    use internal::entry::Payload;
    let payload = match &entry.payload {
        EntryPayload::Blank => None,
        EntryPayload::Normal(batch) => Some(Payload::Batch(batch.bytes.clone())),
        EntryPayload::Membership(m) => Some(Payload::Membership(membership_message(m))),
    };
    internal::Entry { log_id: Some(log_id_message(&entry.log_id)), payload }
}

/// Converts a message to a log entry.
///
/// # Errors
/// [`CodecError::Missing`] without a log id; [`CodecError::Membership`] for an invalid membership.
pub fn entry(message: internal::Entry) -> Result<Entry, CodecError> {
    use internal::entry::Payload;
    let id = message.log_id.ok_or(CodecError::Missing { message: "Entry", field: "log_id" })?;
    let payload = match message.payload {
        None => EntryPayload::Blank,
        Some(Payload::Batch(bytes)) => EntryPayload::Normal(Batch { bytes }),
        Some(Payload::Membership(m)) => EntryPayload::Membership(membership(&m)?),
    };
    Ok(Entry { log_id: log_id(&id), payload })
}

/// Encodes a log entry, in the same form for disk and network.
#[must_use]
pub fn encode_entry(entry: &Entry) -> Bytes {
    entry_message(entry).encode_to_vec().into()
}

/// Decodes a log entry; its batch is a slice of `bytes`, not a copy.
///
/// # Errors
/// Any [`CodecError`].
pub fn decode_entry(bytes: Bytes) -> Result<Entry, CodecError> {
    entry(internal::Entry::decode(bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(term: u64, index: u64) -> LogId {
        LogId::new(CommittedLeaderId::new(term), index)
    }

    fn joint() -> Membership {
        let node = |n: u64| MemberNode {
            name: format!("n{n}"),
            peer_urls: vec![format!("http://127.0.0.1:{n}"), "http://x".into()],
            is_to_vote: n == 2,
        };
        let nodes: BTreeMap<u64, MemberNode> = (1..=4).map(|n| (n, node(n))).collect();
        Membership::new(vec![BTreeSet::from([1, 2]), BTreeSet::from([2, 3])], nodes).unwrap()
    }

    #[test]
    fn every_payload_returns_from_its_bytes() {
        let payloads = [
            EntryPayload::Blank,
            EntryPayload::Normal(Batch { bytes: Bytes::from_static(b"batch") }),
            EntryPayload::Normal(Batch::default()),
            EntryPayload::Membership(joint()),
            EntryPayload::Membership(Membership::default()),
        ];
        for payload in payloads {
            let entry = Entry { log_id: id(u64::MAX, u64::MAX), payload };
            assert_eq!(decode_entry(encode_entry(&entry)).unwrap(), entry);
        }
    }

    #[test]
    fn a_batch_is_decoded_without_a_copy() {
        let payload = EntryPayload::Normal(Batch { bytes: Bytes::from(vec![7; 1000]) });
        let bytes = encode_entry(&Entry { log_id: id(1, 1), payload });
        let EntryPayload::Normal(batch) = decode_entry(bytes.clone()).unwrap().payload else {
            panic!("not a batch");
        };
        assert!(bytes.as_ptr_range().contains(&batch.bytes.as_ptr()));
    }

    #[test]
    fn votes_and_snapshot_meta_return_from_their_messages() {
        let voted = Vote { leader_id: LeaderId::new(3, 9), committed: true };
        assert_eq!(vote(&vote_message(&voted)), voted);

        let meta = SnapshotMeta {
            last_log_id: Some(id(2, 7)),
            last_membership: StoredMembership::new(Some(id(1, 3)), joint()),
        };
        assert_eq!(snapshot_meta(&snapshot_meta_message(&meta)).unwrap(), meta);
        let fresh = SnapshotMeta::default();
        assert_eq!(snapshot_meta(&snapshot_meta_message(&fresh)).unwrap(), fresh);
    }

    #[test]
    fn what_has_no_meaning_is_refused() {
        assert!(matches!(decode_entry(Bytes::new()), Err(CodecError::Missing { .. })));
        assert!(matches!(decode_entry(Bytes::from_static(&[0xff])), Err(CodecError::Protobuf(_))));
        let voter_without_node = internal::Membership {
            configs: vec![internal::VoterSet { ids: vec![1] }],
            members: vec![],
        };
        assert!(matches!(membership(&voter_without_node), Err(CodecError::Membership { .. })));
    }
}
