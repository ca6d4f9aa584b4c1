//! Deletes what compactions made dead, in steps that no writer notices.
//!
//! A step is a command like any other, so that all members sweep alike; the leader proposes one after
//! the other with pauses between them, until nothing is left. A new leader goes on where the old one was.

use std::time::Duration;

use conclave_proto::etcdserverpb::CompactionRequest;
use conclave_proto::internal::command::Command;
use conclave_raft_store::Reader;
use conclave_raft_store::command::auth::inside;
use openraft::ServerState;
use openraft::async_runtime::WatchReceiver;
use tokio::time::{Instant, MissedTickBehavior};

use crate::propose::{Haste, Proposer};
use crate::raft::Raft;

/// How often an idle leader looks for dead rows.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// The pause after a step is as long as the step took, within these bounds: at least half of the time
/// belongs to writers.
const PAUSE_MIN: Duration = Duration::from_millis(1);
const PAUSE_MAX: Duration = Duration::from_millis(200);

/// Sweeps while this member leads, until raft stops.
pub(crate) async fn run(raft: Raft, reader: Reader, proposer: Proposer) {
    let metrics = raft.server_metrics();
    let mut look = tokio::time::interval(LOOK_INTERVAL);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        if raft.metrics().borrow_watched().running_state.is_err() {
            return;
        }
        while metrics.borrow_watched().state == ServerState::Leader && reader.head().has_dead_rows()
        {
            let began = Instant::now();
            let revision = reader.head().compacted;
            let again = CompactionRequest { revision, physical: false };
            let command = inside(Command::Compact(again));
            // The answer of an applied step is a refusal too, because nothing is left to compact.
            if let Err(error) = proposer.propose(command, Haste::Prompt).await {
                tracing::debug!(%error, "a step of the sweep was not applied");
                break;
            }
            tokio::time::sleep(began.elapsed().clamp(PAUSE_MIN, PAUSE_MAX)).await;
        }
    }
}
