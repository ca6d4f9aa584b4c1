//! etcd's Lock service: a queue whose first contender holds the lock.

use std::sync::Arc;

use bytes::Bytes;
use conclave_proto::v3lockpb as pb;
use pb::lock_server::Lock;
use tonic::{Request, Response, Status};

use super::queue::{Contender, Queue, answer_in_time};
use crate::metrics::Method;

/// The error text of etcd's own recipe when a waiter's key is deleted before its turn.
const LOST: &str = "mutex: session is expired";

/// Answers lock calls.
#[derive(Clone)]
pub(crate) struct LockService {
    pub(super) queue: Arc<Queue>,
}

impl LockService {
    async fn answer_lock(
        &self,
        request: Request<pb::LockRequest>,
    ) -> Result<pb::LockResponse, Status> {
        let (caller, deadline, request) = self.queue.accept(request)?;
        let pb::LockRequest { name, lease } = request;
        let contender = Contender { name, lease, value: Bytes::new() };
        let locked = async {
            let waiter = self.queue.enter(&caller, contender).await?;
            let (place, revision) = waiter.first(LOST).await?;
            let header = self.queue.context().header(revision);
            Ok(pb::LockResponse { header: Some(header), key: place.key })
        };
        answer_in_time(deadline, locked).await
    }

    async fn answer_unlock(
        &self,
        request: Request<pb::UnlockRequest>,
    ) -> Result<pb::UnlockResponse, Status> {
        let (caller, deadline, pb::UnlockRequest { key }) = self.queue.accept(request)?;
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
