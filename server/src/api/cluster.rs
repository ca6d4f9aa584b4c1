//! The Cluster service: lists members. Changing them comes later.

use conclave_proto::etcdserverpb as etcd;
use etcd::cluster_server::Cluster;
use tonic::{Request, Response, Status};

use super::context::Context;
use crate::metrics::Method;
use crate::status;

/// Answers cluster calls.
#[derive(Clone)]
pub(crate) struct ClusterService {
    pub(crate) context: Context,
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
        // As in etcd the header of this service states no revision.
        let header = Some(self.context.header(0));
        let members = self.context.node.members().map_err(|_halt| status::halted())?;
        let members = members.into_iter().map(|member| etcd::Member {
            id: member.id,
            name: member.name,
            peer_ur_ls: member.peer_urls,
            client_ur_ls: member.client_urls,
            is_learner: member.is_learner,
        });
        Ok(etcd::MemberListResponse { header, members: members.collect() })
    }
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn member_add(
        &self,
        _: Request<etcd::MemberAddRequest>,
    ) -> Result<Response<etcd::MemberAddResponse>, Status> {
        self.context.metrics.refuse(Method::MemberAdd, status::not_yet("changing members"))
    }

    async fn member_remove(
        &self,
        _: Request<etcd::MemberRemoveRequest>,
    ) -> Result<Response<etcd::MemberRemoveResponse>, Status> {
        self.context.metrics.refuse(Method::MemberRemove, status::not_yet("changing members"))
    }

    async fn member_update(
        &self,
        _: Request<etcd::MemberUpdateRequest>,
    ) -> Result<Response<etcd::MemberUpdateResponse>, Status> {
        self.context.metrics.refuse(Method::MemberUpdate, status::not_yet("changing members"))
    }

    async fn member_list(
        &self,
        request: Request<etcd::MemberListRequest>,
    ) -> Result<Response<etcd::MemberListResponse>, Status> {
        self.context.metrics.call(Method::MemberList, self.answer_member_list(request)).await
    }

    async fn member_promote(
        &self,
        _: Request<etcd::MemberPromoteRequest>,
    ) -> Result<Response<etcd::MemberPromoteResponse>, Status> {
        self.context.metrics.refuse(Method::MemberPromote, status::not_yet("changing members"))
    }
}
