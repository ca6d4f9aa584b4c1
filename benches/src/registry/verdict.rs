//! The result of the drill, and whether it is what issue 3 promises.

use std::time::Instant;

use anyhow::{Result, ensure};
use serde::Serialize;

use super::drill::Gone;

/// Within this time, 99 of 100 watchers must have been told of a change.
const CHANGE_MS_MAX: f64 = 100.0;
/// Dead instances must be gone this long after their TTL.
const GRACE_SECONDS: f64 = 1.0;

/// What a new leader adds to the TTL when it restarts every session's deadline: by default one
/// election timeout.
const ELECTION_SECONDS: f64 = 1.0;

/// How long the dead instances of a wave stayed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wave {
    /// Since they died.
    pub(super) seconds: f64,
    /// Since the cluster served again after that.
    pub(super) seconds_led: f64,
}

impl Wave {
    /// The times of a wave that died at `begun`.
    pub(super) fn new(begun: Instant, Gone { served, at }: Gone) -> Self {
        let seconds = |since| at.duration_since(since).as_secs_f64();
        Self { seconds: seconds(begun), seconds_led: seconds(served) }
    }
}

/// The measured values.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Found {
    pub(super) instances: usize,
    pub(super) sessions: usize,
    pub(super) fill_seconds: f64,
    pub(super) watchers: usize,
    pub(super) changes: usize,
    pub(super) change_to_watcher_p50_ms: f64,
    pub(super) change_to_watcher_p99_ms: f64,
    pub(super) change_to_watcher_max_ms: f64,
    pub(super) ttl_seconds: u64,
    /// Number of instances whose sessions died, in each wave.
    pub(super) dead: [usize; 2],
    pub(super) gone_seconds: f64,
    pub(super) gone_with_leader_killed_seconds: f64,
    /// Since the new leader served.
    pub(super) gone_after_new_leader_seconds: f64,
    pub(super) live_removed: usize,
    pub(super) live_sessions_lost: usize,
}

impl Found {
    /// Fails if a live instance or session was lost, and, if `is_timed`, if something took longer
    /// than allowed.
    pub(super) fn judge(&self, is_timed: bool) -> Result<()> {
        let mut broken = self.lost();
        if is_timed {
            broken.extend(self.late());
        }
        ensure!(broken.is_empty(), "does not hold: {}", broken.join("; "));
        Ok(())
    }

    fn lost(&self) -> Vec<String> {
        let Found { live_removed, live_sessions_lost, .. } = self;
        let lost = [
            (*live_removed, "times a watcher saw an instance go that lives"),
            (*live_sessions_lost, "sessions were lost whose process lives"),
        ];
        let lost = lost.into_iter().filter(|(count, _)| *count > 0);
        lost.map(|(count, what)| format!("{count} {what}")).collect()
    }

    fn late(&self) -> Vec<String> {
        #[expect(clippy::cast_precision_loss, reason = "no TTL has so many seconds")]
        let gone_max = self.ttl_seconds as f64 + GRACE_SECONDS;
        let limits = [
            ("p99 of a change to all watchers in ms", self.change_to_watcher_p99_ms, CHANGE_MS_MAX),
            ("seconds until the dead were gone", self.gone_seconds, gone_max),
            (
                "seconds until the dead were gone after the new leader began",
                self.gone_after_new_leader_seconds,
                gone_max + ELECTION_SECONDS,
            ),
        ];
        let late = limits.into_iter().filter(|(_, found, limit)| found > limit);
        late.map(|(what, found, limit)| format!("{what}: {found:.3}, at most {limit}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_hold_is_named() {
        let good = Found { ttl_seconds: 10, gone_seconds: 10.9, ..Found::default() };
        good.judge(true).unwrap();
        let late = Found { gone_after_new_leader_seconds: 12.5, ..good.clone() };
        late.judge(false).unwrap();
        let text = late.judge(true).unwrap_err().to_string();
        let wanted =
            "seconds until the dead were gone after the new leader began: 12.500, at most 12";
        assert_eq!(text, format!("does not hold: {wanted}"));
        let lost = Found { live_removed: 3, change_to_watcher_p99_ms: 130.0, ..good };
        assert!(
            lost.judge(false)
                .unwrap_err()
                .to_string()
                .ends_with("3 times a watcher saw an instance go that lives")
        );
        assert!(lost.judge(true).unwrap_err().to_string().contains("p99 of a change"));
    }
}
