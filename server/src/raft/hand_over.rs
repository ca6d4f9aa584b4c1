//! Giving leadership away: before this member stops, and before it is removed.

use std::collections::BTreeSet;
use std::time::Duration;

use openraft::async_runtime::{Instant as _, WatchReceiver};
use tokio::time::Instant;

use super::link::Link;
use super::route::Route;

/// How long handing leadership over may take; longer, and an election does it.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a member that gave its leadership up waits for the next leader, which may need its vote.
const SUCCESSION_TIMEOUT: Duration = Duration::from_millis(300);
/// How often the succession is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);
/// A voter heard within this time can take over.
const HEARD_WITHIN: Duration = Duration::from_secs(2);

/// Makes the most advanced reachable voter the leader, if this member leads and there is one.
pub(crate) async fn hand_over(route: &Route) {
    let deadline = Instant::now() + TRANSFER_TIMEOUT;
    let mut refused = BTreeSet::new();
    while let Some(to) = successor(route, &refused) {
        let Some(link) = route.transfer_link(to) else { return };
        link.succeeded();
        if route.raft.trigger().transfer_leader(to).await.is_err() {
            return;
        }
        match tokio::time::timeout_at(deadline, succeeded_by(route, &link)).await {
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

fn successor(route: &Route, refused: &BTreeSet<u64>) -> Option<u64> {
    let metrics = route.raft.metrics();
    let metrics = metrics.borrow_watched();
    let (replication, heard) = (metrics.replication.as_ref()?, metrics.heartbeat.as_ref()?);
    metrics
        .membership_config
        .membership()
        .voter_ids()
        .filter(|id| *id != route.links.member_id() && !refused.contains(id))
        .filter(|id| {
            let at = heard.get(id).copied().flatten();
            at.is_some_and(|at| at.elapsed() < HEARD_WITHIN)
        })
        .max_by_key(|id| replication.get(id).copied().flatten())
}

/// Waits for another leader. `None` if the chosen one refused by `link`, or if nobody took over
/// what this member gave up: the others are then stopping too.
async fn succeeded_by(route: &Route, link: &Link) -> Option<u64> {
    let mut gave_up_at = None;
    loop {
        let leader = route.raft.server_metrics().borrow_watched().current_leader;
        let goes_on = match leader {
            Some(id) if id == route.links.member_id() => link.failures() == 0,
            Some(id) => return Some(id),
            None => gave_up_at.get_or_insert_with(Instant::now).elapsed() < SUCCESSION_TIMEOUT,
        };
        if !goes_on {
            return None;
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}
