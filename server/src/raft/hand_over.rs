//! Transfers leadership before this member stops or is removed.

use std::collections::BTreeSet;
use std::time::Duration;

use openraft::Config;
use openraft::async_runtime::{Instant as _, WatchReceiver};
use tokio::time::Instant;

use super::link::Link;
use super::route::Route;

/// Minimum timeout of a leadership transfer: the votes are synced to disks, which may be slow.
const TRANSFER_TIMEOUT_MIN: Duration = Duration::from_secs(1);
/// Maximum timeout: whoever stops this member waits for it.
const TRANSFER_TIMEOUT_MAX: Duration = Duration::from_secs(5);
/// How long a member that gave up leadership waits for the next leader, which may need its vote.
const SUCCESSION_TIMEOUT: Duration = Duration::from_secs(1);
/// How often the transfer is checked.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);
/// A voter heard from within this time can take over.
const HEARD_WITHIN: Duration = Duration::from_secs(2);

/// Makes the most advanced reachable voter the leader, if this member leads and there is one.
pub(crate) async fn hand_over(route: &Route) {
    let deadline = Instant::now() + transfer_timeout(route.raft.config());
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

/// The time after which the others would elect by themselves: giving up earlier speeds up nothing.
fn transfer_timeout(config: &Config) -> Duration {
    let lease_and_wait = config.election_timeout_max.saturating_add(config.election_timeout_min);
    Duration::from_millis(lease_and_wait).clamp(TRANSFER_TIMEOUT_MIN, TRANSFER_TIMEOUT_MAX)
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

/// Waits for another leader. `None` if the chosen member refused over `link`, or if nobody took
/// over after this member gave up leadership: then the others are stopping too.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hand_over_may_take_as_long_as_an_election_would_but_a_stop_is_not_kept_for_ever() {
        let timeout = |election_ms| {
            let (heartbeat, election) =
                (Duration::from_millis(10), Duration::from_millis(election_ms));
            transfer_timeout(&crate::raft::config(heartbeat, election).unwrap()).as_millis()
        };
        assert_eq!([100, 1_000, 5_000, 50_000].map(timeout), [1_000, 1_000, 4_500, 5_000]);
    }
}
