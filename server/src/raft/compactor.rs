//! When the state is flushed and the log is cut.
//!
//! openraft's own policy is off: it would cut the log by snapshots alone, and a live follower that is
//! a moment behind would then need a snapshot, which is slow and which openraft handles worst. Here the
//! log is kept for every member that is reachable, however far behind, and within bounds for one that
//! is not.

use std::time::Duration;

use conclave_raft_store::log::LogStore;
use conclave_raft_store::types::TypeConfig;
use openraft::async_runtime::{Instant as _, WatchReceiver};
use openraft::{RaftMetrics, ServerState};

use super::Raft;

/// How often the log is looked at.
const INTERVAL: Duration = Duration::from_secs(1);
/// A member heard within this time is reachable.
const REACHABLE_WITHIN: Duration = Duration::from_secs(15);
/// Log bytes written since the last flush at which the state is flushed: bounds replay at a start.
const FLUSH_LOG_BYTES: u64 = 128 * 1024 * 1024;
/// Below this many log bytes the usual entry count does not flush: many small files would cost more
/// than replaying them.
const FLUSH_LOG_BYTES_MIN: u64 = 32 * 1024 * 1024;
/// etcd's default for `--snapshot-count`; only a smaller one overrides `FLUSH_LOG_BYTES_MIN`.
const SNAPSHOT_COUNT_DEFAULT: u64 = 10_000;
/// How much log is kept for an unreachable member.
const UNREACHABLE_SEGMENTS_MAX: u64 = 16;
const UNREACHABLE_ENTRIES_MAX: u64 = 2_000_000;
/// How much log a follower keeps: as leader it may have to serve others that are behind.
const FOLLOWER_SEGMENTS_MAX: u64 = 4;

/// How much log to keep, as asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Retention {
    /// Entries between two flushes.
    pub(crate) snapshot_count: u64,
    /// Entries kept behind a flush.
    pub(crate) catchup_entries: u64,
}

/// Flushes and cuts until raft stops.
pub(crate) async fn run(raft: Raft, log: LogStore, retention: Retention) {
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
        if let Some(upto) = purge_upto(&now, stats.segments, retention)
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

/// Last index that nobody needs, if there is something to cut.
fn purge_upto(now: &Metrics, segments: u64, retention: Retention) -> Option<u64> {
    let flushed = now.snapshot?.index;
    let mut upto = flushed.checked_sub(retention.catchup_entries)?;
    if now.state == ServerState::Leader {
        let last = now.last_log_index.unwrap_or(0);
        for (id, _) in now.membership_config.membership().nodes() {
            if *id == now.id {
                continue;
            }
            let matched = now.replication.as_ref().and_then(|all| *all.get(id)?);
            let matched = matched.map_or(0, |id| id.index);
            let heard = now.heartbeat.as_ref().and_then(|all| *all.get(id)?);
            let is_reachable = heard.is_some_and(|at| at.elapsed() < REACHABLE_WITHIN);
            let is_affordable = segments <= UNREACHABLE_SEGMENTS_MAX
                && last.saturating_sub(matched) <= UNREACHABLE_ENTRIES_MAX;
            if is_reachable || is_affordable {
                upto = upto.min(matched);
            }
        }
    } else if segments <= FOLLOWER_SEGMENTS_MAX {
        return None;
    }
    let purged = now.purged.map_or(0, |id| id.index);
    (upto > purged).then_some(upto)
}
