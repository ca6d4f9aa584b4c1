//! Raft between the members: the network, the peer service, bootstrap and log compaction.
//!
//! ```text
//! openraft ─► network ─► link ══ one connection per member and purpose ══► service ─► openraft
//!                 wire: requests and answers as internal messages
//! bootstrap: who am I        route: where is the leader       compactor: what of the log is kept
//! change: who is a member    standing: what this one is       hand_over: who leads next
//! corruption: do all have the same state               contradicted: an old tail that the state outlived
//! ```
//!
//! | module | what |
//! |---|---|
//! | `bootstrap`, `discover`, `force` | how a member begins: from its directory, flags or DNS, or alone after losing its quorum |
//! | `network`, `link`, `port`, `service` | calls to the other members, and their calls to this one |
//! | `wire`, `traffic` | messages, and how many bytes were sent and received |
//! | `forward`, `rounds`, `route` | proposals on their way to the leader and into its log |
//! | `snapshot_send`, `snapshot_receive`, `pace` | sending a snapshot to a member that lags, and at which rate |
//! | `compactor`, `needed` | how much of the log is kept, and from which entry on other members need it |
//! | `change`, `standing` | who is a member, and what this one is |
//! | `heard`, `quorum`, `hand_over` | whether the leader is reachable, whether it has its quorum, who leads next |
//! | `loss`, `contradicted`, `corruption` | a member that lost acknowledged entries, has an outdated log tail, or a different state |

use std::time::Duration;

use conclave_raft_store::apply::StateMachine;
use conclave_raft_store::types::TypeConfig;
use openraft::{Config, ConfigError, SnapshotPolicy};

pub(crate) mod bootstrap;
pub(crate) mod change;
pub(crate) mod compactor;
pub(crate) mod contradicted;
pub(crate) mod corruption;
pub(crate) mod discover;
pub(crate) mod force;
mod forward;
pub(crate) mod hand_over;
pub(crate) mod heard;
pub(crate) mod link;
pub(crate) mod loss;
pub(crate) mod needed;
pub(crate) mod network;
mod pace;
pub(crate) mod port;
pub(crate) mod quorum;
pub(crate) mod rounds;
pub(crate) mod route;
pub(crate) mod service;
pub(crate) mod snapshot_receive;
pub(crate) mod snapshot_send;
pub(crate) mod standing;
pub(crate) mod traffic;
pub(crate) mod wire;

pub use bootstrap::BootstrapError;
pub use change::{ChangeError, Denial};

/// Raft with this store's types.
pub(crate) type Raft = openraft::Raft<TypeConfig, StateMachine>;

/// Entries of one append. Their bytes are bounded by the log's own limit on a read.
const PAYLOAD_ENTRIES_MAX: u64 = 2048;
/// Commands raft may queue for the state machine before it waits: a stalled disk must not stop
/// heartbeats.
const STATE_MACHINE_QUEUE: u64 = 65_536;
/// Notifications that raft's tasks may queue for its core.
const NOTIFICATION_QUEUE: u64 = 262_144;

/// openraft's settings for etcd's two timing flags.
///
/// etcd elects after one to two election timeouts without a leader. openraft waits for the lease
/// (its `election_timeout_max`) and then for a random time of `min..max`: 0.6 + 0.3..0.6 of etcd's
/// timeout.
pub(crate) fn config(heartbeat: Duration, election: Duration) -> Result<Config, ConfigError> {
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let (heartbeat, election) = (ms(heartbeat), ms(election));
    let (min, max) = (election * 3 / 10, election * 6 / 10);
    // No member may campaign between two heartbeats, nor while a single one is missing. Heartbeats
    // are sent at one of openraft's ticks, hence the margin.
    let late = heartbeat + (heartbeat * 13 / 64).max(1) + 1;
    let (min, max) = (min.max(late), max.max(late + 1));
    Config {
        cluster_name: "conclave".to_owned(),
        heartbeat_interval: heartbeat,
        // Replication answers count as heartbeats: under load none are sent in addition.
        heartbeat_min_interval: Some(heartbeat.min(min - late)),
        election_timeout_min: min,
        election_timeout_max: max,
        // openraft's remedy silences a leader too soon; `quorum` does it instead.
        quorum_loss_probe_interval: None,
        // An isolated member must not disturb a working leader when it returns.
        enable_pre_vote: Some(true),
        // A restarted leader would serve before its state has caught up.
        enable_leader_restore: Some(false),
        // A follower that lost acknowledged log entries is broken and stops itself (`loss`).
        allow_log_reversion: None,
        max_payload_entries: PAYLOAD_ENTRIES_MAX,
        state_machine_channel_size: Some(STATE_MACHINE_QUEUE),
        notification_channel_size: Some(NOTIFICATION_QUEUE),
        // The compactor decides.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        install_snapshot_timeout: 60_000,
        ..Config::default()
    }
    .validate()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_timing_that_etcd_takes_is_one_of_ours() {
        for heartbeat in [1, 2, 3, 5, 10, 20, 50, 99, 100, 101, 250, 500, 1_000, 5_000, 10_000] {
            for election in [5 * heartbeat, 5 * heartbeat + 1, 10 * heartbeat, 50_000] {
                let made =
                    config(Duration::from_millis(heartbeat), Duration::from_millis(election));
                assert!(made.is_ok(), "{heartbeat} of {election} ms: {made:?}");
            }
        }
        let usual = config(Duration::from_millis(100), Duration::from_secs(1)).unwrap();
        assert_eq!(usual.heartbeat_min_interval, Some(100));
        assert_eq!((usual.election_timeout_min, usual.election_timeout_max), (300, 600));
    }
}
