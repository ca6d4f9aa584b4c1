//! Decides when the state is flushed and the log is cut.
//!
//! openraft's own policy is off: it cuts the log at snapshots alone, so a live follower that is a
//! moment behind would need a snapshot, which is slow and which openraft handles worst. Here the
//! log is kept for every reachable member, however far behind, and within bounds for unreachable
//! ones. The leader decides, because it knows how far the members are, and tells the others, any of
//! which may lead next.

use std::time::Duration;

use conclave_raft_store::log::LogStore;
use conclave_raft_store::types::TypeConfig;
use openraft::async_runtime::{Instant as _, WatchReceiver};
use openraft::{RaftMetrics, ServerState};

use super::route::Route;

/// How often the log is checked.
const INTERVAL: Duration = Duration::from_millis(250);
/// A member heard from within this time is reachable.
const REACHABLE_WITHIN: Duration = Duration::from_secs(15);
/// Log bytes written since the last flush that trigger another. Bounds the replay at a start and
/// the number of segments in use (a segment is zero-filled once and then reused).
const FLUSH_LOG_BYTES: u64 = 32 * 1024 * 1024;
/// Below this many log bytes the default entry count does not trigger a flush: many small files
/// would cost more than replaying the entries.
const FLUSH_LOG_BYTES_MIN: u64 = 16 * 1024 * 1024;
/// etcd's default for `--snapshot-count`; only a smaller value overrides `FLUSH_LOG_BYTES_MIN`.
const SNAPSHOT_COUNT_DEFAULT: u64 = 10_000;
/// Most log bytes kept behind a flush for `catchup_entries`: entries are batches and may be large.
const CATCHUP_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// How much log is kept for an unreachable member, and by a follower for any member.
const UNREACHABLE_SEGMENTS_MAX: u64 = 128;
const UNREACHABLE_ENTRIES_MAX: u64 = 2_000_000;
/// Log segments that a follower keeps in any case.
const FOLLOWER_SEGMENTS_MAX: u64 = 4;

/// Retention settings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Retention {
    /// Applied entries after which the state is flushed.
    pub(crate) snapshot_count: u64,
    /// Entries kept behind a flush.
    pub(crate) catchup_entries: u64,
}

/// Flushes and cuts until raft stops.
pub(crate) async fn run(route: Route, log: LogStore, retention: Retention) {
    let Route { raft, needed, .. } = route;
    let metrics = raft.metrics();
    let mut written_at_flush = log.stats().written_bytes_total;
    let mut interval = tokio::time::interval(INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        let now = metrics.borrow_watched().clone();
        if now.running_state.is_err() {
            return;
        }
        let stats = log.stats();
        let written = stats.written_bytes_total - written_at_flush;
        if is_flush_due(&now, written, retention) {
            written_at_flush = stats.written_bytes_total;
            if raft.trigger().snapshot().await.is_err() {
                return;
            }
        }
        let flushed = now.snapshot.map_or(0, |id| id.index);
        let kept = log.tail_start(flushed + 1, retention.catchup_entries, CATCHUP_BYTES_MAX);
        let is_leader = now.state == ServerState::Leader;
        let own = is_leader.then(|| needed_from(&now, stats.segments));
        needed.set_own(own);
        if let Some(upto) = purge_upto(&now, stats.segments, kept, own.or_else(|| needed.told()))
            && raft.trigger().purge_log(upto).await.is_err()
        {
            return;
        }
    }
}

type Metrics = RaftMetrics<TypeConfig>;

fn is_flush_due(now: &Metrics, written_bytes: u64, retention: Retention) -> bool {
    let applied = now.last_applied.map_or(0, |id| id.index);
    let flushed = now.snapshot.map_or(0, |id| id.index);
    let entries = applied.saturating_sub(flushed);
    let is_small =
        written_bytes < FLUSH_LOG_BYTES_MIN && retention.snapshot_count >= SNAPSHOT_COUNT_DEFAULT;
    entries > 0
        && (written_bytes >= FLUSH_LOG_BYTES || (entries >= retention.snapshot_count && !is_small))
}

/// Last index that can be cut, if any. `kept` is the first entry kept behind the flush; `needed` is
/// the first that members need, if known.
fn purge_upto(now: &Metrics, segments: u64, kept: u64, needed: Option<u64>) -> Option<u64> {
    let flushed = now.snapshot?.index;
    let mut upto = kept.checked_sub(1)?.min(flushed);
    let is_leader = now.state == ServerState::Leader;
    if !is_leader && segments <= FOLLOWER_SEGMENTS_MAX {
        return None;
    }
    if is_leader || segments <= UNREACHABLE_SEGMENTS_MAX {
        upto = upto.min(needed?.saturating_sub(1));
    }
    let purged = now.purged.map_or(0, |id| id.index);
    (upto > purged).then_some(upto)
}

/// The first entry that another member may need from this one, its leader: of reachable members in
/// any case, of unreachable ones within bounds.
fn needed_from(now: &Metrics, segments: u64) -> u64 {
    let last = now.last_log_index.unwrap_or(0);
    let purged = now.purged.map_or(0, |id| id.index);
    let mut needed = last + 1;
    for (id, _) in now.membership_config.membership().nodes() {
        if *id == now.id {
            continue;
        }
        let matched = now.replication.as_ref().and_then(|all| *all.get(id)?);
        // A member that has not answered this leader yet may need all that is left.
        let matched = matched.map_or(purged, |id| id.index);
        let heard = now.heartbeat.as_ref().and_then(|all| *all.get(id)?);
        let is_reachable = heard.is_some_and(|at| at.elapsed() < REACHABLE_WITHIN);
        // A member behind the purged part needs a snapshot, whatever is kept.
        let is_affordable = segments <= UNREACHABLE_SEGMENTS_MAX
            && last.saturating_sub(matched) <= UNREACHABLE_ENTRIES_MAX
            && matched >= purged;
        if is_reachable || is_affordable {
            needed = needed.min(matched + 1);
        }
    }
    needed
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::sync::Arc;

    use conclave_raft_store::types::{
        CommittedLeaderId, LogId, MemberNode, Membership, StoredMembership,
    };
    use openraft::metrics::SerdeInstant;
    use openraft::{Instant, TokioInstant};

    use super::*;

    const RETENTION: Retention = Retention { snapshot_count: 10_000, catchup_entries: 5_000 };

    /// First entry kept behind a flush at 900,000.
    const KEPT: u64 = 895_001;

    fn id(index: u64) -> LogId {
        LogId::new(CommittedLeaderId::new(1), index)
    }

    fn leader(flushed: u64, last: u64) -> Metrics {
        let nodes: BTreeMap<u64, MemberNode> =
            (1..=3).map(|id| (id, MemberNode::default())).collect();
        let membership = Membership::new(vec![BTreeSet::from([1, 2, 3])], nodes).unwrap();
        let mut metrics = Metrics::new_initial(1);
        metrics.state = ServerState::Leader;
        metrics.membership_config = Arc::new(StoredMembership::new(Some(id(0)), membership));
        metrics.snapshot = Some(id(flushed));
        metrics.last_applied = Some(id(last));
        metrics.last_log_index = Some(last);
        metrics
    }

    fn follower(metrics: &mut Metrics, member: u64, matched: u64, heard_ago: Option<Duration>) {
        let heard = heard_ago.map(|ago| SerdeInstant::new(TokioInstant::now() - ago));
        metrics.replication.get_or_insert_default().insert(member, Some(id(matched)));
        metrics.heartbeat.get_or_insert_default().insert(member, heard);
    }

    /// The result on a leader.
    fn purge_upto(now: &Metrics, segments: u64, kept: u64) -> Option<u64> {
        super::purge_upto(now, segments, kept, Some(needed_from(now, segments)))
    }

    #[test]
    fn a_reachable_follower_keeps_the_log_it_needs() {
        let mut now = leader(900_000, 5_000_000);
        follower(&mut now, 2, 890_000, Some(Duration::ZERO));
        follower(&mut now, 3, 70, Some(Duration::from_secs(1)));
        assert_eq!(purge_upto(&now, 1000, KEPT), Some(70));
    }

    #[test]
    fn an_unreachable_follower_keeps_it_within_bounds() {
        let mut now = leader(900_000, 900_100);
        follower(&mut now, 2, 900_100, Some(Duration::ZERO));
        follower(&mut now, 3, 70, Some(Duration::from_secs(60)));
        assert_eq!(purge_upto(&now, 2, KEPT), Some(70));
        assert_eq!(purge_upto(&now, UNREACHABLE_SEGMENTS_MAX + 1, KEPT), Some(895_000));
        now.last_log_index = Some(UNREACHABLE_ENTRIES_MAX + 100);
        assert_eq!(purge_upto(&now, 2, KEPT), Some(895_000));
    }

    #[test]
    fn a_member_never_heard_of_counts_as_unreachable() {
        let mut now = leader(900_000, 900_100);
        follower(&mut now, 2, 900_100, Some(Duration::ZERO));
        assert_eq!(purge_upto(&now, 2, KEPT), None, "it may still come, from the first entry");
        assert_eq!(purge_upto(&now, UNREACHABLE_SEGMENTS_MAX + 1, KEPT), Some(895_000));
    }

    #[test]
    fn a_new_leader_keeps_all_for_those_it_has_not_heard() {
        let mut now = leader(4_950_000, 5_000_000);
        now.purged = Some(id(4_900_000));
        assert_eq!(needed_from(&now, 2), 4_900_001);
        follower(&mut now, 2, 5_000_000, Some(Duration::ZERO));
        assert_eq!(needed_from(&now, 2), 4_900_001);
        follower(&mut now, 3, 4_990_000, Some(Duration::ZERO));
        assert_eq!(needed_from(&now, 2), 4_990_001);
    }

    #[test]
    fn nothing_is_kept_for_who_needs_a_snapshot_anyhow() {
        let mut now = leader(900_000, 900_100);
        now.purged = Some(id(800_000));
        follower(&mut now, 2, 900_100, Some(Duration::ZERO));
        follower(&mut now, 3, 799_999, Some(Duration::from_secs(60)));
        assert_eq!(needed_from(&now, 2), 900_101);
        follower(&mut now, 3, 800_000, Some(Duration::from_secs(60)));
        assert_eq!(needed_from(&now, 2), 800_001);
    }

    #[test]
    fn only_what_is_flushed_is_cut_and_only_once() {
        let mut now = leader(6_000, 900_000);
        follower(&mut now, 2, 900_000, Some(Duration::ZERO));
        follower(&mut now, 3, 900_000, Some(Duration::ZERO));
        assert_eq!(purge_upto(&now, 2, 1_001), Some(1_000));
        assert_eq!(purge_upto(&now, 2, KEPT), Some(6_000), "never beyond the flush");
        now.purged = Some(id(1_000));
        assert_eq!(purge_upto(&now, 2, 1_001), None);
        assert_eq!(purge_upto(&now, 2, 0), None);
        now.snapshot = None;
        assert_eq!(purge_upto(&now, 2, KEPT), None);
    }

    #[test]
    fn a_follower_keeps_what_the_leader_says_and_within_bounds() {
        let mut now = leader(900_000, 900_100);
        now.state = ServerState::Follower;
        let cut = |segments, needed| super::purge_upto(&now, segments, KEPT, needed);
        let (few, many) = (FOLLOWER_SEGMENTS_MAX, FOLLOWER_SEGMENTS_MAX + 1);
        assert_eq!(cut(few, Some(900_101)), None);
        assert_eq!(cut(many, Some(900_101)), Some(895_000));
        assert_eq!(cut(many, Some(71)), Some(70), "whoever is behind may ask this member next");
        assert_eq!(cut(many, None), None, "nobody says what is needed");
        assert_eq!(cut(UNREACHABLE_SEGMENTS_MAX + 1, None), Some(895_000));
        assert_eq!(cut(UNREACHABLE_SEGMENTS_MAX + 1, Some(71)), Some(895_000));
    }

    #[test]
    fn a_flush_is_due_by_bytes_or_by_many_entries() {
        let idle = leader(100, 100);
        assert!(!is_flush_due(&idle, u64::MAX, RETENTION), "nothing to flush");
        let busy = leader(100, 20_000);
        assert!(!is_flush_due(&busy, 1, RETENTION), "small entries are cheaper to replay");
        assert!(is_flush_due(&busy, FLUSH_LOG_BYTES_MIN, RETENTION));
        assert!(is_flush_due(&leader(100, 101), FLUSH_LOG_BYTES, RETENTION));
        let asked = Retention { snapshot_count: 50, ..RETENTION };
        assert!(is_flush_due(&leader(100, 151), 1, asked), "a smaller count is an explicit wish");
    }
}
