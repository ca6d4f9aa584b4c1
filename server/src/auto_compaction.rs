//! Compaction without anybody asking: by time (`periodic`) or by number of revisions.
//!
//! As in etcd every member takes samples, so that a new leader knows what the old one knew; the leader
//! alone compacts.

use std::collections::VecDeque;
use std::time::Duration;

use conclave_proto::etcdserverpb::CompactionRequest;
use conclave_proto::internal::command::Command;
use conclave_raft_store::Reader;
use conclave_raft_store::command::auth::inside;
use openraft::ServerState;
use openraft::async_runtime::WatchReceiver;
use tokio::time::MissedTickBehavior;

use crate::config::AutoCompaction;
use crate::propose::{Haste, Proposer};
use crate::raft::Raft;

/// Longest time between two compactions by time.
const PERIOD_MAX: Duration = Duration::from_secs(60 * 60);
/// Shortest time between two samples, however short the period.
const TICK_MIN: Duration = Duration::from_millis(100);
/// Samples between two compactions by time.
const TICKS: u32 = 10;
/// Time between two compactions by number.
const REVISION_INTERVAL: Duration = Duration::from_secs(5 * 60);

/// Compacts while this member leads, until raft stops.
pub(crate) async fn run(mode: AutoCompaction, raft: Raft, reader: Reader, proposer: Proposer) {
    let mut periodic = match mode {
        AutoCompaction::Off => return,
        AutoCompaction::Periodic { period } => Some(Periodic::new(period)),
        AutoCompaction::Revision { .. } => None,
    };
    let pause = periodic.as_ref().map_or(REVISION_INTERVAL, |periodic| periodic.tick);
    let mut tick = tokio::time::interval(pause);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if raft.metrics().borrow_watched().running_state.is_err() {
            return;
        }
        let head = reader.head();
        let due = match (&mut periodic, mode) {
            (Some(periodic), _) => periodic.look(head.revision),
            (None, AutoCompaction::Revision { kept }) => Some(head.revision.saturating_sub(kept)),
            (None, AutoCompaction::Periodic { .. } | AutoCompaction::Off) => None,
        };
        let is_leader = raft.server_metrics().borrow_watched().state == ServerState::Leader;
        if let Some(revision) = due.filter(|revision| *revision > head.compacted.max(0))
            && is_leader
        {
            let request = CompactionRequest { revision, physical: false };
            let command = inside(Command::Compact(request));
            match proposer.propose(command, Haste::Prompt).await {
                Ok(_) => tracing::info!(revision, "finished auto compaction"),
                Err(error) => tracing::warn!(revision, %error, "failed auto compaction"),
            }
        }
    }
}

/// Which revision was current one period ago.
#[derive(Debug)]
struct Periodic {
    tick: Duration,
    /// Samples of one period, the oldest first.
    samples: VecDeque<i64>,
    samples_max: usize,
    /// Until the next compaction.
    ticks_left: u32,
}

impl Periodic {
    fn new(period: Duration) -> Self {
        let tick = (period.min(PERIOD_MAX) / TICKS).max(TICK_MIN);
        let ticks = period.as_nanos() / tick.as_nanos();
        let samples_max = usize::try_from(ticks).unwrap_or(usize::MAX).saturating_add(1);
        Self { tick, samples: VecDeque::new(), samples_max, ticks_left: 0 }
    }

    /// Takes a sample; returns what may be compacted, if that is due.
    fn look(&mut self, revision: i64) -> Option<i64> {
        self.samples.push_back(revision);
        if self.samples.len() < self.samples_max {
            return None;
        }
        while self.samples.len() > self.samples_max {
            self.samples.pop_front();
        }
        if self.ticks_left > 0 {
            self.ticks_left -= 1;
            return None;
        }
        self.ticks_left = TICKS - 1;
        self.samples.front().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The ticks at which something is due, and what, if the revision is the number of the tick.
    fn due(period: Duration, ticks: i64) -> Vec<(i64, i64)> {
        let mut periodic = Periodic::new(period);
        (0..ticks).filter_map(|tick| Some((tick, periodic.look(tick)?))).collect()
    }

    #[test]
    fn a_short_period_compacts_once_a_period_what_is_a_period_old() {
        assert_eq!(Periodic::new(Duration::from_secs(600)).tick, Duration::from_secs(60));
        assert_eq!(due(Duration::from_secs(600), 35), [(10, 0), (20, 10), (30, 20)]);
    }

    #[test]
    fn the_shortest_period_has_a_time_between_its_samples() {
        let shortest = Duration::from_nanos(1);
        assert_eq!(Periodic::new(shortest).tick, TICK_MIN);
        assert_eq!(due(shortest, 12), [(0, 0), (10, 10)]);
    }

    #[test]
    fn a_period_without_end_never_compacts() {
        let period = Duration::from_secs(u64::MAX);
        assert_eq!(Periodic::new(period).tick, PERIOD_MAX / 10);
        assert_eq!(due(period, 1_000), []);
    }

    #[test]
    fn a_long_period_compacts_once_an_hour() {
        let period = 3 * PERIOD_MAX;
        assert_eq!(Periodic::new(period).tick, PERIOD_MAX / 10);
        assert_eq!(due(period, 55), [(30, 0), (40, 10), (50, 20)]);
    }
}
