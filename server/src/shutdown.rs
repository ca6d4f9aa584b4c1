//! Leaving in order: hand leadership over, stop raft, flush, close the log.

use std::collections::BTreeSet;
use std::time::Duration;

use openraft::async_runtime::{Instant as _, WatchReceiver};
use tokio::time::Instant;

use crate::node::Node;
use crate::raft::link::Link;

/// How long handing leadership over may take; longer, and an election does it.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a member that gave its leadership up waits for the next leader, which may need its vote.
const SUCCESSION_TIMEOUT: Duration = Duration::from_millis(300);
/// How often the succession is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);
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
        let deadline = Instant::now() + TRANSFER_TIMEOUT;
        let mut refused = BTreeSet::new();
        while let Some(to) = self.successor(&refused) {
            let Some(link) = self.route().transfer_link(to) else { return };
            link.succeeded();
            if self.raft().trigger().transfer_leader(to).await.is_err() {
                return;
            }
            match tokio::time::timeout_at(deadline, self.succeeded_by(&link)).await {
                Ok(Some(to)) => {
                    tracing::info!(to = %format_args!("{to:x}"), "handed leadership over");
                    return;
                }
                Ok(None) => {
                    tracing::warn!(to = %format_args!("{to:x}"), "leadership was not taken over");
                    refused.insert(to);
                }
                Err(_elapsed) => {
                    tracing::warn!("leadership was not handed over in time");
                    return;
                }
            }
        }
    }

    fn successor(&self, refused: &BTreeSet<u64>) -> Option<u64> {
        let metrics = self.raft().metrics();
        let metrics = metrics.borrow_watched();
        let (replication, heard) = (metrics.replication.as_ref()?, metrics.heartbeat.as_ref()?);
        metrics
            .membership_config
            .membership()
            .voter_ids()
            .filter(|id| *id != self.member_id() && !refused.contains(id))
            .filter(|id| {
                let at = heard.get(id).copied().flatten();
                at.is_some_and(|at| at.elapsed() < HEARD_WITHIN)
            })
            .max_by_key(|id| replication.get(id).copied().flatten())
    }

    /// Waits for another leader. `None` if the chosen one refused by `link`, or if nobody took over
    /// what this member gave up: the others are then stopping too.
    async fn succeeded_by(&self, link: &Link) -> Option<u64> {
        let mut gave_up_at = None;
        loop {
            let leader = self.raft().server_metrics().borrow_watched().current_leader;
            let goes_on = match leader {
                Some(id) if id == self.member_id() => link.failures() == 0,
                Some(id) => return Some(id),
                None => gave_up_at.get_or_insert_with(Instant::now).elapsed() < SUCCESSION_TIMEOUT,
            };
            if !goes_on {
                return None;
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
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
