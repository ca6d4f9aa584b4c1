//! Watches raft's leader: logs changes, and silences a leader that has lost its quorum.
//!
//! A leader whose messages arrive but whose answers are lost (a link broken in one direction) would
//! keep its followers quiet for ever and serve nobody. openraft's own remedy silences it as soon as
//! the lease has run out; since answers wait for the follower's disk, one slow sync would cost an
//! election. Here it takes several election timeouts.

use std::time::Duration;

use conclave_raft_store::types::TypeConfig;
use openraft::async_runtime::{Instant as _, WatchReceiver};
use openraft::error::Fatal;
use openraft::{RaftMetrics, ServerState};
use tokio::sync::watch;

use super::Raft;

/// Election timeouts without a quorum after which a leader stops its heartbeats.
const SILENT_AFTER: u32 = 5;
/// Election timeouts for which it stays silent: enough for the others to elect.
const SILENT_FOR: u32 = 3;

/// Silences a leader that has long lost its quorum, so that others may elect; runs until raft
/// stops.
pub(crate) async fn guard(raft: Raft, election_timeout: Duration) {
    let metrics = raft.metrics();
    let mut interval = tokio::time::interval(election_timeout);
    loop {
        interval.tick().await;
        let is_lost = {
            let now = metrics.borrow_watched();
            if now.running_state.is_err() {
                return;
            }
            has_lost_quorum(&now, election_timeout * SILENT_AFTER)
        };
        if is_lost {
            tracing::warn!("this leader hears no quorum; it falls silent so that others may elect");
            raft.runtime_config().heartbeat(false);
            tokio::time::sleep(election_timeout * SILENT_FOR).await;
            raft.runtime_config().heartbeat(true);
            // A leader that still has no quorum sends heartbeats for this long before it is
            // silenced again.
            tokio::time::sleep(election_timeout * SILENT_AFTER).await;
        }
    }
}

fn has_lost_quorum(now: &RaftMetrics<TypeConfig>, limit: Duration) -> bool {
    now.state == ServerState::Leader
        && now.membership_config.membership().voter_ids().nth(1).is_some()
        && now.last_quorum_acked.is_some_and(|at| at.elapsed() > limit)
}

/// Logs every change of the leader; when raft has failed for good, sends the reason to `failed`.
pub(crate) async fn observe(raft: Raft, failed: watch::Sender<Option<String>>) {
    let mut metrics = raft.server_metrics();
    let mut last = None;
    loop {
        let (leader, term) = {
            let now = metrics.borrow_and_update();
            (now.current_leader, now.vote.leader_id.term)
        };
        if leader != last {
            match leader {
                Some(id) => {
                    tracing::info!(leader = %format_args!("{id:x}"), term, "leader changed")
                }
                None => tracing::info!(term, "no leader"),
            }
            last = leader;
        }
        // The channel closes when raft ends.
        if metrics.changed().await.is_err() {
            break;
        }
    }
    let state = raft.metrics().borrow_watched().running_state.clone();
    let reason = match state {
        // Stopped on request.
        Err(Fatal::Stopped) => return,
        Err(fatal) => fatal.to_string(),
        Ok(()) => "raft ended without a reason".to_owned(),
    };
    failed.send_replace(Some(reason));
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::sync::Arc;

    use conclave_raft_store::types::{MemberNode, Membership, StoredMembership};
    use openraft::TokioInstant;
    use openraft::metrics::SerdeInstant;

    use super::*;

    #[test]
    fn only_a_leader_of_others_that_hears_none_for_long_has_lost_its_quorum() {
        let limit = Duration::from_secs(5);
        let members = |ids: &[u64]| {
            let nodes: BTreeMap<u64, MemberNode> =
                ids.iter().map(|id| (*id, MemberNode::default())).collect();
            let voters: BTreeSet<u64> = ids.iter().copied().collect();
            let membership = Membership::new(vec![voters], nodes).unwrap();
            Arc::new(StoredMembership::new(None, membership))
        };
        let heard = |ago| Some(SerdeInstant::new(TokioInstant::now() - Duration::from_secs(ago)));
        let mut now = RaftMetrics::<TypeConfig>::new_initial(1);
        now.state = ServerState::Leader;
        now.membership_config = members(&[1, 2, 3]);
        now.last_quorum_acked = heard(6);
        assert!(has_lost_quorum(&now, limit));
        now.last_quorum_acked = heard(4);
        assert!(!has_lost_quorum(&now, limit), "a slow disk is not a lost quorum");
        now.last_quorum_acked = heard(6);
        now.membership_config = members(&[1]);
        assert!(!has_lost_quorum(&now, limit), "alone it is its own quorum");
        now.membership_config = members(&[1, 2, 3]);
        now.state = ServerState::Follower;
        assert!(!has_lost_quorum(&now, limit));
    }
}
