//! Promotes a new member to voter once it has caught up with the leader.

use std::sync::Arc;
use std::time::Duration;

use conclave_state_machine::members::rules::MemberChange;
use openraft::async_runtime::WatchReceiver;
use tokio::time::MissedTickBehavior;

use super::{Changer, REACHABLE_WITHIN, View};

/// How often the leader checks for new members that have caught up. Caught up means: the member has
/// what the leader had one interval ago.
const CATCH_UP_INTERVAL: Duration = Duration::from_millis(100);

/// Promotes learners that are to vote and have caught up, while this member leads; runs until raft
/// stops.
pub(crate) async fn promote(changer: Arc<Changer>) {
    let mut tick = tokio::time::interval(CATCH_UP_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Term and last log index at the previous check.
    let mut before: Option<(u64, u64)> = None;
    loop {
        tick.tick().await;
        let (term, last_index) = {
            let metrics = changer.route.raft.metrics();
            let now = metrics.borrow_watched();
            if now.running_state.is_err() {
                return;
            }
            (now.current_term, now.last_log_index.unwrap_or(0))
        };
        let floor = before.replace((term, last_index)).filter(|(then, _)| *then == term);
        let Some((_, floor)) = floor else { continue };
        // A read failure stops the member elsewhere.
        let patience = changer.election_timeout * REACHABLE_WITHIN;
        let is_reachable = |_, silence: Option<_>| silence.is_some_and(|it| it <= patience);
        if let Ok(Some(view)) = changer.view(is_reachable)
            && let Some(id) = caught_up(&view, floor)
        {
            let _one_at_a_time = changer.busy.lock().await;
            // Raft refuses it if another change came in between; the next check decides again.
            let promotion = MemberChange::Promote { id };
            tokio::time::timeout(changer.timeout, changer.write(&view, &promotion)).await.ok();
        }
    }
}

/// A learner ready to become a voter: it has the log up to `floor` and is recorded as started, so
/// that it would be refused if it came back with an empty directory.
fn caught_up(view: &View, floor: u64) -> Option<u64> {
    let membership = view.stored.membership();
    let is_waiting = |id: u64| {
        membership.learner_ids().any(|learner| learner == id)
            && membership.get_node(&id).is_some_and(|node| node.is_to_vote)
    };
    let ready = view.roster.seats.iter().find(|seat| {
        seat.is_started && seat.is_reachable && seat.matched >= floor && is_waiting(seat.id)
    });
    ready.map(|seat| seat.id)
}
