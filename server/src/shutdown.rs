//! Leaving in order: hand leadership over, stop raft, flush, close the log.

use std::time::Duration;

use crate::node::Node;
use crate::raft::hand_over::hand_over;

/// How long raft may take to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

impl Node {
    /// Stops taking part in the cluster. Whoever calls has stopped accepting requests before.
    pub async fn shutdown(&self) {
        self.stopping().cancel();
        self.hand_over().await;
        self.stop_raft().await;
    }

    /// Makes the most advanced reachable voter the leader, if this member leads and there is one.
    pub(crate) async fn hand_over(&self) {
        hand_over(self.route()).await;
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
