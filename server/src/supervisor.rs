//! What systemd is told about a process of `Type=notify`: that it is ready, that it lives, that it stops.
//!
//! Without systemd (no `NOTIFY_SOCKET`) nothing of it does anything. The protocol is that of sd_notify(3).

use std::time::Duration;

use sd_notify::NotifyState;

use crate::node::Node;

/// Within the time that systemd waits for a sign of life, so many are given.
const SIGNS_PER_PERIOD: u32 = 2;
/// Time between two signs at least.
const SIGN_INTERVAL_MIN: Duration = Duration::from_millis(10);

/// Says that this member serves.
pub(crate) fn ready() {
    tell(&[NotifyState::Ready]);
}

/// Says that it leaves in order, which may take longer than a sign of life may.
pub(crate) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Gives signs of life, if systemd wants any, for as long as raft takes turns: a process whose raft hangs
/// is to be started again. Returns when raft has stopped, which ends the process with its own reason.
pub(crate) async fn live(node: &Node) {
    let Some(period) = sd_notify::watchdog_enabled() else { return };
    let mut tick = tokio::time::interval((period / SIGNS_PER_PERIOD).max(SIGN_INTERVAL_MIN));
    while node.raft_lives().await {
        tell(&[NotifyState::Watchdog]);
        tick.tick().await;
    }
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "systemd cannot be told how this process is");
    }
}
