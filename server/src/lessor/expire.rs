//! The leader ends the leases whose time is over.

use std::sync::Arc;
use std::time::Duration;

use conclave_proto::internal;
use conclave_raft_store::command::auth::inside;
use openraft::ServerState;
use openraft::async_runtime::WatchReceiver;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use super::{Lessor, RETRY_PAUSE};
use crate::coordination::unix_ms;
use crate::propose::Haste;

/// Leases that one command ends.
const EXPIRE_BATCH: usize = 1000;
/// Commands that end leases in flight.
const EXPIRE_IN_FLIGHT_MAX: usize = 16;
/// After this an expired lease whose end was not applied is ended again, though no attempt has failed.
const EXPIRE_RETRY: Duration = Duration::from_secs(10);
/// Longest pause of the leader between two looks at the deadlines.
const EXPIRE_INTERVAL: Duration = Duration::from_millis(100);

impl Lessor {
    /// Follows raft: becomes active when this member leads, and ends what expires meanwhile.
    pub(super) async fn lead(self, tasks: TaskTracker) {
        let mut metrics = self.inner.route.raft.server_metrics();
        loop {
            let (state, term) = {
                let metrics = metrics.borrow_and_update();
                (metrics.state, metrics.vote.leader_id.term)
            };
            if state == ServerState::Leader {
                tokio::select! {
                    () = self.expire_while_leading(term, &tasks) => {}
                    changed = metrics.changed() => if changed.is_err() { return },
                }
            } else {
                self.inner.active.send_replace(None);
                if metrics.changed().await.is_err() {
                    return;
                }
            }
        }
    }

    async fn expire_while_leading(&self, term: u64, tasks: &TaskTracker) {
        if *self.inner.active.borrow() != Some(term) {
            // Everything earlier leaders granted must be known before anything is called unknown.
            loop {
                if let Some(index) = self.inner.route.read_index_here().await {
                    self.inner.reader.wait_applied(index).await;
                    break;
                }
                tokio::time::sleep(RETRY_PAUSE).await;
            }
            let leases = &self.inner.leases;
            leases.queue.lock().restart(leases.now(), self.inner.election_timeout);
            self.inner.active.send_replace(Some(term));
        }
        let slots = Arc::new(Semaphore::new(EXPIRE_IN_FLIGHT_MAX));
        loop {
            let Ok(slot) = slots.clone().acquire_owned().await else { return };
            let (ids, granted): (Vec<i64>, Vec<u64>) = {
                let now = self.inner.leases.now();
                let mut queue = self.inner.leases.queue.lock();
                queue.take_expired(now, EXPIRE_BATCH, EXPIRE_RETRY).into_iter().unzip()
            };
            if ids.is_empty() {
                drop(slot);
                tokio::time::sleep(self.until_next_deadline()).await;
                continue;
            }
            let expire = internal::LeaseExpire {
                term,
                ids: ids.clone(),
                now_unix_ms: unix_ms(),
                guarded: self.inner.registry.is_guarded,
                damping: self.inner.registry.is_damping,
                granted,
            };
            let expire = internal::command::Command::LeaseExpire(expire);
            let command = inside(expire);
            let (proposer, leases) = (self.inner.proposer.clone(), self.inner.leases.clone());
            tasks.spawn(async move {
                if let Err(error) = proposer.propose(command, Haste::Prompt).await {
                    tracing::warn!(%error, "expired leases were not ended yet");
                    // Keep-alives wait for their end.
                    let again = leases.now().saturating_add(EXPIRE_INTERVAL);
                    leases.queue.lock().hurry(&ids, again);
                }
                drop(slot);
            });
        }
    }

    fn until_next_deadline(&self) -> Duration {
        let leases = &self.inner.leases;
        let next = leases.queue.lock().next_deadline();
        let until = next.map_or(EXPIRE_INTERVAL, |at| at.saturating_sub(leases.now()));
        // At least a tick, so that deadlines that fall together are ended together.
        until.clamp(EXPIRE_INTERVAL / 10, EXPIRE_INTERVAL)
    }
}
