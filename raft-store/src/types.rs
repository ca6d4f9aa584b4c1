//! The concrete types of this cluster: openraft's generic parameters end here.

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use openraft::vote::RaftLeaderId;
use serde::{Deserialize, Serialize};

/// Application data of one log entry: an encoded `internal::Batch`, shared by log, network and apply.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// Encoded `conclave_proto::internal::Batch`.
    #[serde(skip)]
    pub bytes: Bytes,
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Batch({} bytes)", self.bytes.len())
    }
}

impl fmt::Display for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// The answer that raft returns for an applied entry: nothing. Answers reach their callers through
/// [`crate::ApplySink`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nothing;

/// A configured member, as stored in raft's membership.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberNode {
    /// Human-readable name; empty until known.
    pub name: String,
    /// URLs on which the other members reach it.
    pub peer_urls: Vec<String>,
    /// Whether it becomes a voter as soon as it has caught up. Has no meaning once it is a voter.
    pub is_to_vote: bool,
}

impl fmt::Display for MemberNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.peer_urls.join(","))
    }
}

openraft::declare_raft_types!(
    /// Raft as this cluster uses it: one leader per term, `u64` member ids.
    pub TypeConfig:
        D = Batch,
        R = Nothing,
        NodeId = u64,
        Node = MemberNode,
        LeaderId = openraft::impls::leader_id_std::LeaderId<u64, u64>,
);

/// Id of a member.
pub type NodeId = u64;
/// A vote, with its leader and whether it is committed.
pub type Vote = openraft::type_config::alias::VoteOf<TypeConfig>;
/// Term, leader and index of a log entry.
pub type LogId = openraft::type_config::alias::LogIdOf<TypeConfig>;
/// The part of a leader's identity that a log id carries.
pub type CommittedLeaderId =
    <openraft::type_config::alias::LeaderIdOf<TypeConfig> as RaftLeaderId>::Committed;
/// A log entry.
pub type Entry = openraft::type_config::alias::EntryOf<TypeConfig>;
/// Content of a log entry.
pub type EntryPayload = openraft::EntryPayload<Batch, NodeId, MemberNode>;
/// A membership configuration.
pub type Membership = openraft::Membership<NodeId, MemberNode>;
/// A membership configuration with the id of its log entry.
pub type StoredMembership = openraft::type_config::alias::StoredMembershipOf<TypeConfig>;
/// The metadata of a snapshot: the last log id and the membership.
pub type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<TypeConfig>;
/// Members by id.
pub type Nodes = BTreeMap<NodeId, MemberNode>;
