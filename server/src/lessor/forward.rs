//! Questions about leases on their way to the leader; those of many streams share a call.

use conclave_proto::internal;
use tokio::sync::{mpsc, oneshot};

use super::{Lessor, LessorError};
use crate::raft::link::Link;
use crate::raft::route::Leader;

/// Streams of this member's clients that wait for a forwarded call, and leases after which one is full.
pub(super) const RENEWALS_MAX: usize = 64 * 1024;
const RENEWALS_PER_CALL: usize = 4096;

/// Leases of one stream that wait for a forwarded call, and where their TTLs go.
pub(super) struct Waiter {
    pub(super) ids: Vec<i64>,
    pub(super) ttls: oneshot::Sender<Vec<i64>>,
}

impl Lessor {
    pub(super) async fn remaining_there(
        &self,
        leader: u64,
        link: &Link,
        ids: Vec<i64>,
    ) -> Option<Vec<(i64, i64)>> {
        let sender = Some(self.inner.route.links.sender(leader));
        let applied_index = self.applied_index();
        let request = internal::LeaseRemainingRequest { sender, ids, applied_index };
        let mut client = link.client().ok()?;
        let call = Box::pin(client.lease_remaining(request));
        let answer = self.inner.route.ask(leader, link, call).await?;
        let found = answer.ids.into_iter().zip(answer.remaining_ms);
        answer.is_leader.then(|| found.collect())
    }

    pub(super) async fn renew_there(&self, ids: &[i64]) -> Result<Option<Vec<i64>>, LessorError> {
        let (answer, ttls) = oneshot::channel();
        let waiter = Waiter { ids: ids.to_vec(), ttls: answer };
        self.inner.renewals.try_send(waiter).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => LessorError::TooManyRequests,
            mpsc::error::TrySendError::Closed(_) => LessorError::Stopped,
        })?;
        Ok(ttls.await.ok())
    }

    /// Forwards what waits, one call at a time: whatever comes meanwhile, from whichever stream, shares
    /// the next. A waiter that is dropped asks again.
    pub(super) async fn forward_renewals(self, mut waiting: mpsc::Receiver<Waiter>) {
        while let Some(first) = waiting.recv().await {
            let mut ids = first.ids.clone();
            let mut waiters = vec![first];
            while ids.len() < RENEWALS_PER_CALL
                && let Ok(next) = waiting.try_recv()
            {
                ids.extend(&next.ids);
                waiters.push(next);
            }
            let Some(ttls) = self.forward(ids).await else { continue };
            let mut ttls = ttls.into_iter();
            for Waiter { ids, ttls: answer } in waiters {
                answer.send(ttls.by_ref().take(ids.len()).collect()).ok();
            }
        }
    }

    /// Asks the leader, as long as it is that: the TTL of each lease.
    async fn forward(&self, ids: Vec<i64>) -> Option<Vec<i64>> {
        let Leader::Other(leader, link) = self.inner.route.leader() else { return None };
        let wanted = ids.len();
        let sender = Some(self.inner.route.links.sender(leader));
        let applied_index = self.applied_index();
        let request = internal::LeaseRenewRequest { sender, ids, applied_index };
        let mut client = link.client().ok()?;
        let answer = self.inner.route.ask(leader, &link, client.lease_renew(request)).await?;
        (answer.ttls.len() == wanted).then_some(answer.ttls)
    }

    fn applied_index(&self) -> u64 {
        self.inner.reader.applied().map_or(0, |id| id.index)
    }
}
