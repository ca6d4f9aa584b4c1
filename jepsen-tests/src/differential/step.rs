//! One request to both servers.

use conclave_proto::etcdserverpb::{
    AuthenticateRequest, CompactionRequest, DeleteRangeRequest, LeaseGrantRequest,
    LeaseRevokeRequest, LeaseTimeToLiveRequest, PutRequest, RangeRequest, TxnRequest,
    WatchCreateRequest,
};
use conclave_proto::v3electionpb::{CampaignRequest, LeaderRequest};

use super::calls::Call;
use super::roster::Change;

/// One request to both servers.
#[derive(Clone, Debug)]
pub enum Step {
    /// KV.Put.
    Put(PutRequest),
    /// KV.DeleteRange.
    Delete(DeleteRangeRequest),
    /// KV.Range.
    Range(RangeRequest),
    /// KV.Txn.
    Txn(TxnRequest),
    /// KV.Compact.
    Compact(CompactionRequest),
    /// Lease.LeaseGrant.
    Grant(LeaseGrantRequest),
    /// Lease.LeaseRevoke.
    Revoke(LeaseRevokeRequest),
    /// One message on Lease.LeaseKeepAlive.
    KeepAlive(i64),
    /// Lease.LeaseTimeToLive.
    TimeToLive(LeaseTimeToLiveRequest),
    /// Lease.LeaseLeases.
    Leases,
    /// Watch.Watch until an event of the given revision.
    Watch(WatchCreateRequest, i64),
    /// Auth.Authenticate; the token is kept.
    Login(AuthenticateRequest),
    /// No request: from now on all carry the token of this user, or none.
    Speak(Option<&'static str>),
    /// Election.Campaign.
    Campaign(CampaignRequest),
    /// The first answer of Election.Observe.
    Observe(LeaderRequest),
    /// Maintenance.Snapshot to its end.
    Snapshot,
    /// A change of the members.
    Members(Change),
    /// Any other call.
    Call(Call),
}

impl Step {
    /// The kind of request, for counting.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Put(_) => "put",
            Self::Delete(_) => "delete",
            Self::Range(_) => "range",
            Self::Txn(_) => "txn",
            Self::Compact(_) => "compact",
            Self::Grant(_) => "grant",
            Self::Revoke(_) => "revoke",
            Self::KeepAlive(_) => "keep-alive",
            Self::TimeToLive(_) => "time-to-live",
            Self::Leases => "leases",
            Self::Watch(..) => "watch",
            Self::Login(_) => "authenticate",
            Self::Speak(_) => "speak",
            Self::Campaign(_) => "campaign",
            Self::Observe(_) => "observe",
            Self::Snapshot => "snapshot",
            Self::Members(change) => change.kind(),
            Self::Call(call) => call.kind(),
        }
    }
}
