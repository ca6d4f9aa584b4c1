//! The Cluster service: lists and changes the members.

use conclave_proto::etcdserverpb as etcd;
use conclave_state_machine::command::Caller;
use conclave_state_machine::members::rules::MemberChange;
use etcd::cluster_server::Cluster;
use tonic::{Request, Response, Status};

use super::context::Context;
use crate::config;
use crate::metrics::Method;
use crate::node::MemberInfo;
use crate::status::{self, Fault};

/// Answers cluster calls.
#[derive(Clone)]
pub(crate) struct ClusterService {
    pub(crate) context: Context,
}

fn message(member: MemberInfo) -> etcd::Member {
    etcd::Member {
        id: member.id,
        name: member.name,
        peer_ur_ls: member.peer_urls,
        client_ur_ls: member.client_urls,
        is_learner: member.is_learner,
    }
}

/// Validates and sorts peer URLs.
fn peer_urls(given: &[String]) -> Result<Vec<String>, Status> {
    config::peer_urls(given).ok_or_else(|| Fault::MemberBadUrls.into())
}

impl ClusterService {
    async fn answer_member_list(
        &self,
        request: Request<etcd::MemberListRequest>,
    ) -> Result<etcd::MemberListResponse, Status> {
        self.context.check_metadata(request.metadata())?;
        if request.into_inner().linearizable {
            self.context.read_barrier().await?;
        }
        Ok(etcd::MemberListResponse { header: self.header(), members: self.members()? })
    }

    async fn answer_member_add(
        &self,
        request: Request<etcd::MemberAddRequest>,
    ) -> Result<etcd::MemberAddResponse, Status> {
        let (caller, request) = self.context.accept(request)?;
        let etcd::MemberAddRequest { peer_ur_ls, is_learner } = request;
        let peer_urls = peer_urls(&peer_ur_ls)?;
        let change = MemberChange::Add { peer_urls: peer_urls.clone(), is_learner };
        let id = self.change(&caller, &change).await?;
        let member =
            etcd::Member { id, peer_ur_ls: peer_urls, is_learner, ..etcd::Member::default() };
        let members = self.members()?;
        Ok(etcd::MemberAddResponse { header: self.header(), member: Some(member), members })
    }

    async fn answer_member_remove(
        &self,
        request: Request<etcd::MemberRemoveRequest>,
    ) -> Result<etcd::MemberRemoveResponse, Status> {
        let (caller, request) = self.context.accept(request)?;
        let id = request.id;
        self.change(&caller, &MemberChange::Remove { id }).await?;
        let mut members = self.members()?;
        // The list may still contain the removed member: it is not told about its own removal.
        members.retain(|member| member.id != id);
        Ok(etcd::MemberRemoveResponse { header: self.header(), members })
    }

    async fn answer_member_update(
        &self,
        request: Request<etcd::MemberUpdateRequest>,
    ) -> Result<etcd::MemberUpdateResponse, Status> {
        let (caller, request) = self.context.accept(request)?;
        let etcd::MemberUpdateRequest { id, peer_ur_ls } = request;
        let peer_urls = peer_urls(&peer_ur_ls)?;
        self.change(&caller, &MemberChange::Update { id, peer_urls }).await?;
        Ok(etcd::MemberUpdateResponse { header: self.header(), members: self.members()? })
    }

    async fn answer_member_promote(
        &self,
        request: Request<etcd::MemberPromoteRequest>,
    ) -> Result<etcd::MemberPromoteResponse, Status> {
        let (caller, request) = self.context.accept(request)?;
        let id = request.id;
        self.change(&caller, &MemberChange::Promote { id }).await?;
        Ok(etcd::MemberPromoteResponse { header: self.header(), members: self.members()? })
    }

    async fn change(&self, caller: &Caller, change: &MemberChange) -> Result<u64, Status> {
        self.context.node.change_members(caller, change).await.map_err(status::from_change)
    }

    fn members(&self) -> Result<Vec<etcd::Member>, Status> {
        let members = self.context.node.members().map_err(|_halt| status::halted())?;
        Ok(members.into_iter().map(message).collect())
    }

    /// As in etcd, the headers of this service have no revision.
    #[expect(clippy::unnecessary_wraps, reason = "the field of the answers is optional")]
    fn header(&self) -> Option<etcd::ResponseHeader> {
        Some(self.context.header(0))
    }
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn member_add(
        &self,
        request: Request<etcd::MemberAddRequest>,
    ) -> Result<Response<etcd::MemberAddResponse>, Status> {
        self.context.metrics.call(Method::MemberAdd, self.answer_member_add(request)).await
    }

    async fn member_remove(
        &self,
        request: Request<etcd::MemberRemoveRequest>,
    ) -> Result<Response<etcd::MemberRemoveResponse>, Status> {
        self.context.metrics.call(Method::MemberRemove, self.answer_member_remove(request)).await
    }

    async fn member_update(
        &self,
        request: Request<etcd::MemberUpdateRequest>,
    ) -> Result<Response<etcd::MemberUpdateResponse>, Status> {
        self.context.metrics.call(Method::MemberUpdate, self.answer_member_update(request)).await
    }

    async fn member_list(
        &self,
        request: Request<etcd::MemberListRequest>,
    ) -> Result<Response<etcd::MemberListResponse>, Status> {
        self.context.metrics.call(Method::MemberList, self.answer_member_list(request)).await
    }

    async fn member_promote(
        &self,
        request: Request<etcd::MemberPromoteRequest>,
    ) -> Result<Response<etcd::MemberPromoteResponse>, Status> {
        self.context.metrics.call(Method::MemberPromote, self.answer_member_promote(request)).await
    }
}
