//! The election service.

use bytes::Bytes;
use conclave_proto::internal::{self, command::Command as Message};
use conclave_proto::{etcdserverpb as etcd, v1};
use conclave_raft_store::{Reader, command};
use conclave_state_machine::locks::{check, queue};
use conclave_state_machine::response::{LockResponse, Response as Answer};
use conclave_state_machine::room;
use etcd::compare::{CompareResult, CompareTarget, TargetUnion};
use etcd::request_op::Request as Operation;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use v1::election_service_server::ElectionService;

use super::observe::{self, Leaders};
use super::{campaign, checked};
use crate::api::context::{Context, mismatch, must_have_leader};
use crate::api::{limits, stream_end};
use crate::auth::caller_of;
use crate::metrics::Method;
use crate::status;

/// Answers election calls.
#[derive(Clone)]
pub(super) struct ElectionApi {
    pub(super) context: Context,
}

impl ElectionApi {
    async fn answer_campaign(
        &self,
        request: Request<v1::CampaignRequest>,
    ) -> Result<ReceiverStream<Result<v1::CampaignResponse, Status>>, Status> {
        self.context.check_metadata(request.metadata())?;
        let caller = caller_of(request.extensions());
        let request = request.into_inner();
        self.context.check_size(&request)?;
        let cost = limits::key_cost(&request.name) + request.value.len();
        let is_known = |reader: &Reader| {
            let v1::CampaignRequest { name, session, value, resumes, .. } = &request;
            Ok(*resumes || room::is_standing(reader, name, *session, value)?)
        };
        self.context.check_quota_unless(cost, is_known).await?;
        campaign::start(self.context.clone(), caller, request).map(ReceiverStream::new)
    }

    async fn answer_proclaim(
        &self,
        request: Request<v1::ProclaimRequest>,
    ) -> Result<v1::ProclaimResponse, Status> {
        self.context.check_metadata(request.metadata())?;
        let caller = caller_of(request.extensions());
        let request = request.into_inner();
        self.context.check_size(&request)?;
        self.context.check_quota(limits::key_cost(&request.name) + request.value.len()).await?;
        let refused = |rejection| status::from_rejection(&rejection);
        check::name(&request.name).map_err(refused)?;
        check::candidate_value(&request.value).map_err(refused)?;
        match self.context.propose(&caller, Message::GuardedTxn(proclamation(request))).await? {
            (Answer::GuardedTxn(Some(txn)), revision) if txn.succeeded => {
                Ok(v1::ProclaimResponse { revision })
            }
            (Answer::GuardedTxn(_), _) => {
                Err(Status::failed_precondition("conclave: the session does not lead"))
            }
            _ => Err(mismatch()),
        }
    }

    async fn answer_resign(
        &self,
        request: Request<v1::ResignRequest>,
    ) -> Result<v1::ResignResponse, Status> {
        self.context.check_metadata(request.metadata())?;
        let caller = caller_of(request.extensions());
        let v1::ResignRequest { name, session, fence, hand_over_to: to, once } =
            request.into_inner();
        let message = if to.is_empty() {
            let leave = internal::Leave { name, session, fence, attempt: 0, once };
            checked(&command::lock::leave(leave.clone()))?;
            Message::Leave(leave)
        } else {
            let hand_over = internal::HandOver { name, fence, to, session };
            checked(&command::lock::hand_over(hand_over.clone()))?;
            Message::HandOver(hand_over)
        };
        match self.context.propose(&caller, message).await? {
            (Answer::Lock(LockResponse::Released { was_held }), _) => {
                Ok(v1::ResignResponse { resigned: was_held })
            }
            (Answer::Lock(LockResponse::HandedOver(_)), _) => {
                Ok(v1::ResignResponse { resigned: true })
            }
            _ => Err(mismatch()),
        }
    }

    async fn answer_observe(
        &self,
        request: Request<v1::ObserveRequest>,
    ) -> Result<Leaders, Status> {
        self.context.check_metadata(request.metadata())?;
        let caller = caller_of(request.extensions());
        let must_have_leader = must_have_leader(request.metadata());
        let leaders = observe::start(&self.context, caller, request.into_inner()).await?;
        Ok(stream_end::guard(&self.context, leaders, must_have_leader))
    }
}

/// A transaction that changes the leader's value if the session leads with this fence.
fn proclamation(request: v1::ProclaimRequest) -> v1::CommitRequest {
    let v1::ProclaimRequest { name, session, fence, value } = request;
    let key = queue::key(&name, session);
    let is_own = etcd::Compare {
        result: CompareResult::Equal as i32,
        target: CompareTarget::Create as i32,
        key: Bytes::clone(&key),
        target_union: Some(TargetUnion::CreateRevision(fence)),
        ..Default::default()
    };
    let put = etcd::PutRequest { key, value, lease: session, ..Default::default() };
    let put = etcd::RequestOp { request: Some(Operation::RequestPut(put)) };
    let txn = etcd::TxnRequest { compare: vec![is_own], success: vec![put], failure: Vec::new() };
    v1::CommitRequest { guards: vec![v1::Guard { name, fence }], txn: Some(txn) }
}

#[tonic::async_trait]
impl ElectionService for ElectionApi {
    type CampaignStream = ReceiverStream<Result<v1::CampaignResponse, Status>>;
    type ObserveStream = Leaders;

    async fn campaign(
        &self,
        request: Request<v1::CampaignRequest>,
    ) -> Result<Response<Self::CampaignStream>, Status> {
        self.context.metrics.call(Method::ElectionCampaign, self.answer_campaign(request)).await
    }

    async fn proclaim(
        &self,
        request: Request<v1::ProclaimRequest>,
    ) -> Result<Response<v1::ProclaimResponse>, Status> {
        self.context.metrics.call(Method::ElectionProclaim, self.answer_proclaim(request)).await
    }

    async fn resign(
        &self,
        request: Request<v1::ResignRequest>,
    ) -> Result<Response<v1::ResignResponse>, Status> {
        self.context.metrics.call(Method::ElectionResign, self.answer_resign(request)).await
    }

    async fn observe(
        &self,
        request: Request<v1::ObserveRequest>,
    ) -> Result<Response<Leaders>, Status> {
        self.context.metrics.call(Method::ElectionObserve, self.answer_observe(request)).await
    }
}
