//! Calls that change who is a member. They name members by what they are: each cluster gives ids of its own.

use std::time::Duration;

use conclave_proto::etcdserverpb::cluster_client::ClusterClient;
use conclave_proto::etcdserverpb::{
    Member, MemberAddRequest, MemberListRequest, MemberPromoteRequest, MemberRemoveRequest,
};
use tonic::{Code, Status};

use super::session::Session;

/// A member that no cluster has.
const NOBODY: u64 = 77;
/// Where no member ever is.
const URLS: [&str; 2] = ["http://127.0.0.1:1", "http://127.0.0.1:2"];

/// etcd makes a member's id of its address and the second: one that was there in the same second could not be added.
/// Nothing tells when its second is over, so the next one is waited for.
const ID_LIFE: Duration = Duration::from_secs(1);

/// Which member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whom {
    /// One that there is not.
    Nobody,
    /// The first voter.
    Voter,
    /// The first learner.
    Learner,
}

/// A change of the members that takes no vote away, so that a cluster of one goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A learner that never starts, at one of two addresses.
    AddLearner(usize),
    /// One may vote from now on.
    Promote(Whom),
    /// The learner goes.
    RemoveLearner,
}

/// What is drawn from.
pub(super) const CHANGES: [Change; 6] = [
    Change::AddLearner(0),
    Change::AddLearner(1),
    Change::Promote(Whom::Nobody),
    Change::Promote(Whom::Voter),
    Change::Promote(Whom::Learner),
    Change::RemoveLearner,
];

impl Change {
    pub(super) fn kind(self) -> &'static str {
        match self {
            Self::AddLearner(_) => "member_add (learner)",
            Self::Promote(_) => "member_promote",
            Self::RemoveLearner => "member_remove (learner)",
        }
    }

    /// Makes the change; what must be equal of the answer.
    pub(super) async fn ask(self, session: Session) -> Result<String, Status> {
        let origin = session.origin();
        let mut cluster = ClusterClient::with_origin(session, origin);
        let (member, members) = match self {
            Self::AddLearner(url) => {
                tokio::time::sleep(ID_LIFE).await;
                let peer_ur_ls = vec![URLS[url].to_owned()];
                let request = MemberAddRequest { peer_ur_ls, is_learner: true };
                let answer = cluster.member_add(request).await?.into_inner();
                (answer.member, answer.members)
            }
            Self::Promote(whom) => {
                let id = id(&mut cluster, whom).await?.unwrap_or(NOBODY);
                let answer = cluster.member_promote(MemberPromoteRequest { id }).await?;
                (None, answer.into_inner().members)
            }
            Self::RemoveLearner => {
                // etcd 3.5.1 now and then hangs when it is to remove one that it has not.
                let Ok(Some(id)) = id(&mut cluster, Whom::Learner).await else {
                    return nobody_to_remove(&mut cluster).await;
                };
                let answer = cluster.member_remove(MemberRemoveRequest { id }).await?;
                (None, answer.into_inner().members)
            }
        };
        let mut are_learners: Vec<bool> = members.iter().map(|member| member.is_learner).collect();
        are_learners.sort_unstable();
        let member = member.map(|member| Member { id: 0, ..member });
        Ok(format!("{member:?} {are_learners:?}"))
    }
}

/// What whoever has no learner to remove is told; who may not look for one is told so by another change, for
/// etcd 3.5.1 shows members to everybody.
async fn nobody_to_remove(cluster: &mut ClusterClient<Session>) -> Result<String, Status> {
    match cluster.member_promote(MemberPromoteRequest { id: NOBODY }).await {
        Err(status) if status.code() == Code::NotFound => Ok("no learner".to_owned()),
        Err(status) => Err(status),
        Ok(_) => Ok("nobody was promoted".to_owned()),
    }
}

async fn id(cluster: &mut ClusterClient<Session>, whom: Whom) -> Result<Option<u64>, Status> {
    let request = MemberListRequest { linearizable: true };
    let members = match whom {
        Whom::Nobody => return Ok(None),
        Whom::Voter | Whom::Learner => cluster.member_list(request).await?.into_inner().members,
    };
    let is_meant = |member: &&Member| member.is_learner == (whom == Whom::Learner);
    Ok(members.iter().find(is_meant).map(|member| member.id))
}
