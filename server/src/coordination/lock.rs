//! The lock service.

use conclave_proto::internal::{self, command::Command as Message};
use conclave_proto::{etcdserverpb as etcd, v1};
use conclave_raft_store::{Reader, command};
use conclave_state_machine::locks::{check, queue};
use conclave_state_machine::response::{LockResponse, Response as Answer};
use conclave_state_machine::room;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use v1::lock_service_server::LockService;

use super::{acquire, broken, checked, inspect, sorted};
use crate::api::context::{Context, mismatch};
use crate::api::{check as api_check, convert, limits};
use crate::auth::{RightsCheck, caller_of};
use crate::metrics::Method;
use crate::status;

/// Longest reason for breaking a lock, in bytes.
const REASON_BYTES_MAX: usize = 1_024;

/// Answers lock calls.
#[derive(Clone)]
pub(super) struct LockApi {
    pub(super) context: Context,
}

impl LockApi {
    async fn answer_acquire(
        &self,
        request: Request<v1::AcquireRequest>,
    ) -> Result<ReceiverStream<Result<v1::AcquireResponse, Status>>, Status> {
        self.context.check_metadata(request.metadata())?;
        let caller = caller_of(request.extensions());
        let request = request.into_inner();
        self.context.check_size(&request)?;
        let names: usize = request.names.iter().map(limits::key_cost).sum();
        let is_known = |reader: &Reader| {
            let v1::AcquireRequest { names, session, request_id, .. } = &request;
            room::is_placed(reader, names, *session, request_id)
        };
        self.context.check_quota_unless(names + request.note.len(), is_known).await?;
        let check =
            |message: &internal::LockAcquire| checked(&command::lock::acquire(message.clone()));
        acquire::start(self.context.clone(), caller, request, check).map(ReceiverStream::new)
    }

    async fn answer_release(
        &self,
        request: Request<v1::ReleaseRequest>,
    ) -> Result<v1::ReleaseResponse, Status> {
        self.context.check_metadata(request.metadata())?;
        let caller = caller_of(request.extensions());
        let v1::ReleaseRequest { names, session, request_id, once } = request.into_inner();
        let names = sorted(names);
        let release = internal::LockRelease { names, session, request_id, attempt: 0, once };
        checked(&command::lock::release(release.clone()))?;
        match self.context.propose(&caller, Message::LockRelease(release)).await? {
            (Answer::Lock(LockResponse::Released { was_held }), _) => {
                Ok(v1::ReleaseResponse { released: was_held })
            }
            _ => Err(mismatch()),
        }
    }

    async fn answer_convert(
        &self,
        request: Request<v1::ConvertRequest>,
    ) -> Result<v1::ConvertResponse, Status> {
        self.context.check_metadata(request.metadata())?;
        let caller = caller_of(request.extensions());
        let mut request = request.into_inner();
        (request.permits, request.limit) = acquire::share(request.permits, request.limit);
        checked(&command::lock::convert(request.clone()))?;
        match self.context.propose(&caller, Message::LockConvert(request)).await? {
            (Answer::Lock(LockResponse::Places { taken, .. }), _) => {
                Ok(v1::ConvertResponse { fence: taken.first().map_or(0, |place| place.fence) })
            }
            _ => Err(mismatch()),
        }
    }

    async fn answer_check_fence(
        &self,
        request: Request<v1::CheckFenceRequest>,
    ) -> Result<v1::CheckFenceResponse, Status> {
        self.context.check_metadata(request.metadata())?;
        let caller = caller_of(request.extensions());
        let v1::CheckFenceRequest { name, fence, key } = request.into_inner();
        self.context.read_barrier().await?;
        let reader = self.context.node.reader();
        let look = async { reader.holders(&name).map_err(|error| status::from_read(&error)) };
        let wanted = RightsCheck::queue(&name);
        let (holders, revision) = self.context.auth.checked(&caller, &wanted, look).await?;
        let held = holders.iter().any(|place| place.fence == fence && !place.is_lost());
        // The caller has the right to read this name only.
        let is_told = !held && queue::name_of(&key) == Some(&name[..]);
        let broken = if is_told { broken(&self.context, &key, fence) } else { None };
        Ok(v1::CheckFenceResponse { held, revision, broken })
    }

    async fn answer_commit(
        &self,
        request: Request<v1::CommitRequest>,
    ) -> Result<v1::CommitResponse, Status> {
        self.context.check_metadata(request.metadata())?;
        let caller = caller_of(request.extensions());
        let mut request = request.into_inner();
        let txn: &etcd::TxnRequest = request.txn.get_or_insert_default();
        self.context.check_quota(limits::txn_cost(txn)).await?;
        api_check::txn(txn, self.context.limits.txn_ops_max)?;
        self.context.check_size(&request)?;
        let command = command::lock::guarded_txn(request.clone());
        let command = command.map_err(|rejection| status::from_rejection(&rejection))?;
        check::guards(&command.guards).map_err(|rejection| status::from_rejection(&rejection))?;
        match self.context.propose(&caller, Message::GuardedTxn(request)).await? {
            (Answer::GuardedTxn(answer), revision) => {
                let txn = answer.map(|txn| convert::txn(self.context.header(revision), txn));
                Ok(v1::CommitResponse { held: txn.is_some(), txn })
            }
            _ => Err(mismatch()),
        }
    }

    async fn answer_force_release(
        &self,
        request: Request<v1::ForceReleaseRequest>,
    ) -> Result<v1::ForceReleaseResponse, Status> {
        self.context.check_metadata(request.metadata())?;
        let caller = caller_of(request.extensions());
        let v1::ForceReleaseRequest { name, fence, mut reason } = request.into_inner();
        reason.truncate(reason.floor_char_boundary(REASON_BYTES_MAX));
        let by = caller.user().to_owned();
        let seize = internal::LockBreak { name, fence, by, reason };
        checked(&command::lock::seize(seize.clone()))?;
        let name = seize.name.clone();
        match self.context.propose(&caller, Message::LockBreak(seize)).await? {
            (Answer::Lock(LockResponse::Seized { places, by, reason }), revision) => {
                for place in &places {
                    let key = place.key.escape_ascii();
                    let (fence, name) = (place.fence, name.escape_ascii());
                    tracing::warn!(%name, %key, fence, revision, by, reason, "lock broken by force");
                }
                let released = places.into_iter().map(acquire::held_lock).collect();
                Ok(v1::ForceReleaseResponse { released })
            }
            _ => Err(mismatch()),
        }
    }
}

#[tonic::async_trait]
impl LockService for LockApi {
    type AcquireStream = ReceiverStream<Result<v1::AcquireResponse, Status>>;

    async fn acquire(
        &self,
        request: Request<v1::AcquireRequest>,
    ) -> Result<Response<Self::AcquireStream>, Status> {
        self.context.metrics.call(Method::LockAcquire, self.answer_acquire(request)).await
    }

    async fn release(
        &self,
        request: Request<v1::ReleaseRequest>,
    ) -> Result<Response<v1::ReleaseResponse>, Status> {
        self.context.metrics.call(Method::LockRelease, self.answer_release(request)).await
    }

    async fn convert(
        &self,
        request: Request<v1::ConvertRequest>,
    ) -> Result<Response<v1::ConvertResponse>, Status> {
        self.context.metrics.call(Method::LockConvert, self.answer_convert(request)).await
    }

    async fn check_fence(
        &self,
        request: Request<v1::CheckFenceRequest>,
    ) -> Result<Response<v1::CheckFenceResponse>, Status> {
        self.context.metrics.call(Method::LockCheckFence, self.answer_check_fence(request)).await
    }

    async fn commit(
        &self,
        request: Request<v1::CommitRequest>,
    ) -> Result<Response<v1::CommitResponse>, Status> {
        self.context.metrics.call(Method::LockCommit, self.answer_commit(request)).await
    }

    async fn list(
        &self,
        request: Request<v1::LockListRequest>,
    ) -> Result<Response<v1::LockListResponse>, Status> {
        self.context.metrics.call(Method::LockList, inspect::list(&self.context, request)).await
    }

    async fn inspect(
        &self,
        request: Request<v1::InspectRequest>,
    ) -> Result<Response<v1::InspectResponse>, Status> {
        let answer = Box::pin(inspect::inspect(&self.context, request));
        self.context.metrics.call(Method::LockInspect, answer).await
    }

    async fn force_release(
        &self,
        request: Request<v1::ForceReleaseRequest>,
    ) -> Result<Response<v1::ForceReleaseResponse>, Status> {
        let answer = self.answer_force_release(request);
        self.context.metrics.call(Method::LockForceRelease, answer).await
    }
}
