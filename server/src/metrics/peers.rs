//! Traffic with the other members.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::Label;

/// Most members that get counters because they call; far more than a cluster has.
const CALLERS_MAX: usize = 64;

type Durations = Family<Label, Histogram, fn() -> Histogram>;

/// Traffic with the other members.
#[derive(Clone, Debug)]
pub(crate) struct Peers {
    pub(super) failed_heartbeats: Counter,
    sent_bytes: Family<Label, Counter>,
    received_bytes: Family<Label, Counter>,
    send_failures: Family<Label, Counter>,
    round_trips: Durations,
    snapshots_sent: Family<Label, Counter>,
    snapshots_not_sent: Family<Label, Counter>,
    snapshots_sending: Family<Label, Gauge>,
    snapshot_sending_times: Durations,
    snapshots_received: Family<Label, Counter>,
    snapshots_not_received: Family<Label, Counter>,
    snapshot_receiving_times: Durations,
    known: Arc<Mutex<BTreeMap<u64, Arc<Peer>>>>,
}

/// Traffic with one other member.
#[derive(Debug)]
pub(crate) struct Peer {
    /// Over all members together, as in etcd.
    pub(crate) failed_heartbeats: Counter,
    pub(crate) sent_bytes: Counter,
    pub(crate) received_bytes: Counter,
    pub(crate) send_failures: Counter,
    pub(crate) round_trips: Histogram,
    pub(crate) snapshots_sending: Gauge,
    snapshots_sent: Counter,
    snapshots_not_sent: Counter,
    snapshot_sending_times: Histogram,
    snapshots_received: Counter,
    snapshots_not_received: Counter,
    snapshot_receiving_times: Histogram,
}

impl Default for Peers {
    fn default() -> Self {
        let round_trip: fn() -> Histogram =
            || Histogram::new(exponential_buckets(0.000_1, 2.0, 16));
        let transfer: fn() -> Histogram = || Histogram::new(exponential_buckets(0.1, 2.0, 10));
        Self {
            failed_heartbeats: Counter::default(),
            sent_bytes: Family::default(),
            received_bytes: Family::default(),
            send_failures: Family::default(),
            round_trips: Family::new_with_constructor(round_trip),
            snapshots_sent: Family::default(),
            snapshots_not_sent: Family::default(),
            snapshots_sending: Family::default(),
            snapshot_sending_times: Family::new_with_constructor(transfer),
            snapshots_received: Family::default(),
            snapshots_not_received: Family::default(),
            snapshot_receiving_times: Family::new_with_constructor(transfer),
            known: Arc::default(),
        }
    }
}

impl Peers {
    /// The counters of a member, created on first use.
    pub(crate) fn get(&self, member: u64) -> Arc<Peer> {
        self.known.lock().entry(member).or_insert_with(|| Arc::new(self.peer(member))).clone()
    }

    /// The counters of a caller that claims to be `member`. The claim may be false, so their number
    /// is limited.
    pub(crate) fn caller(&self, member: u64) -> Option<Arc<Peer>> {
        let is_room = {
            let known = self.known.lock();
            known.contains_key(&member) || known.len() < CALLERS_MAX
        };
        is_room.then(|| self.get(member))
    }

    fn peer(&self, member: u64) -> Peer {
        let to: Label = [("To", format!("{member:x}"))];
        let from: Label = [("From", format!("{member:x}"))];
        Peer {
            failed_heartbeats: self.failed_heartbeats.clone(),
            sent_bytes: self.sent_bytes.get_or_create(&to).clone(),
            received_bytes: self.received_bytes.get_or_create(&from).clone(),
            send_failures: self.send_failures.get_or_create(&to).clone(),
            round_trips: self.round_trips.get_or_create(&to).clone(),
            snapshots_sending: self.snapshots_sending.get_or_create(&to).clone(),
            snapshots_sent: self.snapshots_sent.get_or_create(&to).clone(),
            snapshots_not_sent: self.snapshots_not_sent.get_or_create(&to).clone(),
            snapshot_sending_times: self.snapshot_sending_times.get_or_create(&to).clone(),
            snapshots_received: self.snapshots_received.get_or_create(&from).clone(),
            snapshots_not_received: self.snapshots_not_received.get_or_create(&from).clone(),
            snapshot_receiving_times: self.snapshot_receiving_times.get_or_create(&from).clone(),
        }
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        for (name, help, family) in [
            ("etcd_network_peer_sent_bytes", "Bytes sent to a member", &self.sent_bytes),
            ("etcd_network_peer_received_bytes", "Bytes from a member", &self.received_bytes),
            (
                "etcd_network_peer_sent_failures",
                "Calls of a member that could not be sent",
                &self.send_failures,
            ),
            ("etcd_network_snapshot_send_success", "Snapshots sent", &self.snapshots_sent),
            ("etcd_network_snapshot_send_failures", "Snapshots not sent", &self.snapshots_not_sent),
            (
                "etcd_network_snapshot_receive_success",
                "Snapshots received",
                &self.snapshots_received,
            ),
            (
                "etcd_network_snapshot_receive_failures",
                "Snapshots not received",
                &self.snapshots_not_received,
            ),
        ] {
            registry.register(name, help, family.clone());
        }
        registry.register(
            "etcd_network_snapshot_send_inflights_total",
            "Snapshots that are being sent",
            self.snapshots_sending.clone(),
        );
        for (name, help, family) in [
            (
                "etcd_network_peer_round_trip_time_seconds",
                "Times from a heartbeat to its answer",
                &self.round_trips,
            ),
            (
                "etcd_network_snapshot_send_total_duration_seconds",
                "Times of sending snapshots",
                &self.snapshot_sending_times,
            ),
            (
                "etcd_network_snapshot_receive_total_duration_seconds",
                "Times of receiving snapshots",
                &self.snapshot_receiving_times,
            ),
        ] {
            registry.register(name, help, family.clone());
        }
    }
}

impl Peer {
    /// Records the end of sending a snapshot.
    pub(crate) fn snapshot_sent(&self, took: Duration, is_success: bool) {
        self.snapshot_sending_times.observe(took.as_secs_f64());
        if is_success { &self.snapshots_sent } else { &self.snapshots_not_sent }.inc();
    }

    /// Records the end of receiving a snapshot.
    pub(crate) fn snapshot_received(&self, took: Duration, is_success: bool) {
        self.snapshot_receiving_times.observe(took.as_secs_f64());
        if is_success { &self.snapshots_received } else { &self.snapshots_not_received }.inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_that_invent_members_do_not_fill_the_memory() {
        let peers = Peers::default();
        let own = peers.get(1);
        let met = (2..10_000).filter(|id| peers.caller(*id).is_some()).count();
        assert_eq!(met, CALLERS_MAX - 1);
        assert!(Arc::ptr_eq(&own, &peers.caller(1).unwrap()), "one that is known stays known");
    }
}
