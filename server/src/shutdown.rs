//! Leaving in order: hand leadership over, stop raft, flush, close the log.

use std::time::Duration;

use openraft::async_runtime::{Instant as _, WatchReceiver};

use crate::node::Node;

/// How long handing leadership over may take; longer, and an election does it.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(3);
/// How long raft may take to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// A voter heard within this time can take over.
const HEARD_WITHIN: Duration = Duration::from_secs(2);

impl Node {
    /// Stops taking part in the cluster. Whoever calls has stopped accepting requests before.
    pub async fn shutdown(&self) {
        self.stopping().cancel();
        self.hand_over().await;
        self.stop_raft().await;
    }

    /// Makes the most advanced reachable voter the leader, if this member leads and there is one.
    pub(crate) async fn hand_over(&self) {
        let Some(to) = self.successor() else { return };
        match tokio::time::timeout(TRANSFER_TIMEOUT, self.transfer_leader(to)).await {
            Ok(Ok(())) => tracing::info!(to = %format_args!("{to:x}"), "handed leadership over"),
            Ok(Err(error)) => tracing::warn!(%error, "leadership was not handed over"),
            Err(_elapsed) => tracing::warn!("leadership was not handed over in time"),
        }
    }

    fn successor(&self) -> Option<u64> {
        let metrics = self.raft().metrics();
        let metrics = metrics.borrow_watched();
        let (replication, heard) = (metrics.replication.as_ref()?, metrics.heartbeat.as_ref()?);
        metrics
            .membership_config
            .membership()
            .voter_ids()
            .filter(|id| *id != self.member_id())
            .filter(|id| {
                let at = heard.get(id).copied().flatten();
                at.is_some_and(|at| at.elapsed() < HEARD_WITHIN)
            })
            .max_by_key(|id| replication.get(id).copied().flatten())
    }

    async fn stop_raft(&self) {
        match tokio::time::timeout(STOP_TIMEOUT, self.raft().shutdown()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "raft did not stop cleanly"),
            Err(_elapsed) => tracing::warn!("raft did not stop in time"),
        }
        self.stop_serving();
        let reader = self.reader().clone();
        let flushed = tokio::task::spawn_blocking(move || reader.flush()).await;
        match flushed.map_err(std::io::Error::other).flatten() {
            Ok(()) => tracing::info!("state flushed"),
            // The log replays what is missing.
            Err(error) => tracing::warn!(%error, "the state was not flushed"),
        }
    }
}
