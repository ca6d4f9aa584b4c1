//! etcd's Lock service: a queue whose first one holds the lock.

use bytes::Bytes;
use conclave_proto::v3lockpb as pb;
use pb::lock_server::Lock;
use tonic::{Request, Response, Status};

use super::context;
use super::queue::{Caller, Contender, Queue, answer_in_time};
use crate::metrics::Method;

/// The text of etcd's recipe for a waiter whose key went before its turn came.
const LOST: &str = "mutex: session is expired";

/// Answers lock calls.
#[derive(Clone)]
pub(crate) struct LockService {
    pub(super) queue: Queue,
}

impl LockService {
    async fn answer_lock(
        &self,
        request: Request<pb::LockRequest>,
    ) -> Result<pb::LockResponse, Status> {
        let context = self.queue.context();
        context.check_metadata(request.metadata())?;
        let deadline = context::deadline(request.metadata());
        let (caller, pb::LockRequest { name, lease }) = Caller::of(request);
        let contender = Contender { name, lease, value: Bytes::new() };
        let locked = async {
            let waiter = self.queue.enter(&caller, contender).await?;
            let (place, revision) = waiter.first(LOST).await?;
            Ok(pb::LockResponse { header: Some(context.header(revision)), key: place.key })
        };
        answer_in_time(deadline, locked).await
    }

    async fn answer_unlock(
        &self,
        request: Request<pb::UnlockRequest>,
    ) -> Result<pb::UnlockResponse, Status> {
        self.queue.context().check_metadata(request.metadata())?;
        let deadline = context::deadline(request.metadata());
        let (caller, pb::UnlockRequest { key }) = Caller::of(request);
        let deleted = answer_in_time(deadline, self.queue.delete(&caller, key)).await?;
        Ok(pb::UnlockResponse { header: deleted.header })
    }
}

#[tonic::async_trait]
impl Lock for LockService {
    async fn lock(
        &self,
        request: Request<pb::LockRequest>,
    ) -> Result<Response<pb::LockResponse>, Status> {
        self.queue.context().metrics.call(Method::Lock, self.answer_lock(request)).await
    }

    async fn unlock(
        &self,
        request: Request<pb::UnlockRequest>,
    ) -> Result<Response<pb::UnlockResponse>, Status> {
        self.queue.context().metrics.call(Method::Unlock, self.answer_unlock(request)).await
    }
}
