//! What the parts of a node count and time themselves; clones share the values.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use conclave_raft_store::AppliedEntry;
use conclave_state_machine::members::rules::MemberRefusal;
use conclave_state_machine::response::{
    LeaseChange, OpResponse, Response, TxnResponse, WriteAnswer, WriteResponse,
};
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::Labels;
use super::applies::Applies;
use super::duration::BySuccess;
use super::tls::TlsCounts;

/// Members that are told apart because they call; far more than a cluster has.
const CALLERS_MAX: usize = 64;

/// Counters and durations of one node.
#[derive(Clone)]
pub(crate) struct Counts {
    kv: Kv,
    /// Range reads, also those inside transactions.
    pub(crate) ranges: Counter,
    /// Transactions of more than one operation.
    txns: Counter,
    /// Events sent to watchers.
    pub(crate) watch_events: Counter,
    leases_granted: Counter,
    leases_revoked: Counter,
    leases_expired: Counter,
    lease_ttl: Histogram,
    /// Keep-alives that this member answered as the leader.
    pub(crate) leases_renewed: Counter,
    pub(crate) proposals_pending: Gauge,
    pub(crate) proposals_failed: Counter,
    pub(crate) applies: Applies,
    /// Reads of ranges, when it is known that they may be read: failed and well.
    range_reads: BySuccess,
    pub(crate) slow_read_indexes: Counter,
    pub(crate) failed_read_indexes: Counter,
    /// Syncs of the raft log.
    pub(crate) log_syncs: Histogram,
    /// Writes of the raft log.
    pub(crate) log_writes: Histogram,
    /// Snapshots received, and the last step of that: what came is synced and verified.
    pub(crate) snapshot_saves: Histogram,
    pub(crate) snapshot_syncs: Histogram,
    pub(crate) promotions: Promotions,
    /// Snapshots that are being installed.
    pub(crate) snapshots_installing: Gauge,
    pub(crate) peers: Peers,
    pub(crate) tls: TlsCounts,
    /// Connections that did not begin to speak in time, by port.
    silent: Family<Labels<1>, Counter>,
}

#[derive(Clone, Default)]
struct Kv {
    puts: Counter,
    deletes: Counter,
}

/// Operations of the entries that are being counted.
#[derive(Default)]
struct Tally {
    puts: u64,
    deletes: u64,
    ranges: u64,
    txns: u64,
}

impl Counts {
    /// Beginning with zero; `slow_apply` is what [`Applies::new`] asks for.
    pub(crate) fn new(slow_apply: Duration) -> Self {
        Self {
            kv: Kv::default(),
            ranges: Counter::default(),
            txns: Counter::default(),
            watch_events: Counter::default(),
            leases_granted: Counter::default(),
            leases_revoked: Counter::default(),
            leases_expired: Counter::default(),
            lease_ttl: Histogram::new(exponential_buckets(1.0, 2.0, 24)),
            leases_renewed: Counter::default(),
            proposals_pending: Gauge::default(),
            proposals_failed: Counter::default(),
            applies: Applies::new(slow_apply),
            range_reads: BySuccess::default(),
            slow_read_indexes: Counter::default(),
            failed_read_indexes: Counter::default(),
            log_syncs: Histogram::new(exponential_buckets(0.001, 2.0, 14)),
            log_writes: Histogram::new(exponential_buckets(0.001, 2.0, 14)),
            snapshot_saves: Histogram::new(exponential_buckets(0.1, 2.0, 10)),
            snapshot_syncs: Histogram::new(exponential_buckets(0.001, 2.0, 14)),
            promotions: Promotions::default(),
            snapshots_installing: Gauge::default(),
            peers: Peers::default(),
            tls: TlsCounts::default(),
            silent: Family::default(),
        }
    }

    /// Connections to a port that did not begin to speak in time, beginning with zero.
    pub(crate) fn silent(&self, port: &'static str) -> Counter {
        self.silent.get_or_create(&[("port", port)]).clone()
    }

    /// Counts what was applied; `own` is this member.
    pub(crate) fn applied(&self, entries: &[AppliedEntry], own: Option<u64>) {
        let mut tally = Tally::default();
        for entry in entries {
            for applied in &entry.results {
                match &applied.outcome {
                    Ok(Response::Put(_)) => tally.puts += 1,
                    Ok(Response::DeleteRange(_)) => tally.deletes += 1,
                    Ok(Response::Txn(txn)) => tally.txn(txn),
                    // One that came again changes nothing.
                    Ok(Response::Write(WriteResponse {
                        answer: WriteAnswer::Done(txn), ..
                    })) if !applied.events.is_empty() => {
                        tally.txn(txn);
                    }
                    Ok(Response::LeaseExpire { ended }) if Some(entry.proposer) == own => {
                        self.leases_expired.inc_by(*ended as u64);
                    }
                    _ => {}
                }
                applied.leases.iter().for_each(|change| self.lease(change));
            }
        }
        for (counter, count) in [
            (&self.kv.puts, tally.puts),
            (&self.kv.deletes, tally.deletes),
            (&self.ranges, tally.ranges),
            (&self.txns, tally.txns),
        ] {
            if count > 0 {
                counter.inc_by(count);
            }
        }
    }

    fn lease(&self, change: &LeaseChange) {
        match change {
            LeaseChange::Granted { ttl, .. } => {
                self.leases_granted.inc();
                self.lease_ttl.observe(*ttl as f64);
            }
            LeaseChange::Ended { .. } => {
                self.leases_revoked.inc();
            }
        }
    }

    /// Counts a transaction that was only read.
    pub(crate) fn read_txn(&self, txn: &TxnResponse) {
        let mut tally = Tally::default();
        tally.txn(txn);
        self.ranges.inc_by(tally.ranges);
        self.txns.inc_by(tally.txns);
    }

    /// Notes how long reading a range took.
    pub(crate) fn range_read(&self, took: Duration, is_success: bool) {
        self.range_reads.observe(took, is_success);
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        self.tls.register(registry);
        registry.register(
            "conclave_rpc_silent_connections",
            "Connections that were closed because nothing came on them that a request could begin with, by port",
            self.silent.clone(),
        );
        for (name, help, counter) in [
            ("etcd_mvcc_put", "Puts applied, also inside transactions", &self.kv.puts),
            ("etcd_mvcc_delete", "Deletes applied, also inside transactions", &self.kv.deletes),
            ("etcd_mvcc_range", "Ranges read, also inside transactions", &self.ranges),
            ("etcd_mvcc_txn", "Transactions of several operations, read or applied", &self.txns),
            ("etcd_debugging_mvcc_events", "Events sent to watchers", &self.watch_events),
            ("etcd_debugging_lease_granted", "Leases granted", &self.leases_granted),
            ("etcd_debugging_lease_revoked", "Leases revoked or expired", &self.leases_revoked),
            ("etcd_debugging_lease_renewed", "Keep-alives answered", &self.leases_renewed),
            (
                "etcd_debugging_server_lease_expired",
                "Leases that this member let expire",
                &self.leases_expired,
            ),
            ("etcd_server_proposals_failed", "Proposals that failed", &self.proposals_failed),
            (
                "etcd_server_slow_read_indexes",
                "Confirmations of reads that took over 500 ms",
                &self.slow_read_indexes,
            ),
            (
                "etcd_server_read_indexes_failed",
                "Linearizable reads that could not be confirmed",
                &self.failed_read_indexes,
            ),
            (
                "etcd_server_heartbeat_send_failures",
                "Heartbeats that failed",
                &self.peers.failed_heartbeats,
            ),
        ] {
            registry.register(name, help, counter.clone());
        }
        for (name, help, gauge) in [
            ("etcd_server_proposals_pending", "Proposals in flight", &self.proposals_pending),
            (
                "etcd_server_snapshot_apply_in_progress_total",
                "Whether a snapshot is being installed",
                &self.snapshots_installing,
            ),
        ] {
            registry.register(name, help, gauge.clone());
        }
        self.register_durations(registry);
        self.applies.register(registry);
        self.promotions.register(registry);
        self.peers.register(registry);
    }

    fn register_durations(&self, registry: &mut Registry) {
        for (name, help, histogram) in [
            ("etcd_debugging_lease_ttl_total", "Seconds of granted leases", &self.lease_ttl),
            (
                "etcd_disk_wal_fsync_duration_seconds",
                "Durations of fdatasync of the raft log",
                &self.log_syncs,
            ),
            (
                "etcd_disk_wal_write_duration_seconds",
                "Durations of writing the raft log, without fdatasync",
                &self.log_writes,
            ),
            (
                "etcd_snap_db_save_total_duration_seconds",
                "Durations of receiving snapshots",
                &self.snapshot_saves,
            ),
            (
                "etcd_snap_db_fsync_duration_seconds",
                "Durations of syncing and verifying received snapshots",
                &self.snapshot_syncs,
            ),
        ] {
            registry.register(name, help, histogram.clone());
        }
        registry.register(
            "etcd_server_range_duration_seconds",
            "Durations of reading ranges, without waiting for a quorum",
            self.range_reads.family.clone(),
        );
    }
}

/// Learners that were to become voters while this member led.
#[derive(Clone, Debug)]
pub(crate) struct Promotions {
    successes: Counter,
    failures: Family<Label, Counter>,
}

impl Default for Promotions {
    fn default() -> Self {
        let promotions = Self { successes: Counter::default(), failures: Family::default() };
        // The usual reason is there before it happens.
        promotions.of(MemberRefusal::LearnerNotReady).inc_by(0);
        promotions
    }
}

impl Promotions {
    /// Notes one that was made.
    pub(crate) fn made(&self) {
        self.successes.inc();
    }

    /// Notes one that was refused.
    pub(crate) fn refused(&self, refusal: MemberRefusal) {
        self.of(refusal).inc();
    }

    fn of(&self, refusal: MemberRefusal) -> Counter {
        self.failures.get_or_create(&[("Reason", refusal.to_string())]).clone()
    }

    fn register(&self, registry: &mut Registry) {
        registry.register(
            "etcd_server_learner_promote_successes",
            "Learners promoted while this member led",
            self.successes.clone(),
        );
        registry.register(
            "etcd_server_learner_promote_failures",
            "Promotions refused while this member led",
            self.failures.clone(),
        );
    }
}

impl Tally {
    /// As in etcd a transaction counts only if it has several operations, nested ones among them.
    fn txn(&mut self, txn: &TxnResponse) {
        let before = self.operations();
        self.tree(txn);
        if self.operations() > before + 1 {
            self.txns += 1;
        }
    }

    // The depth is that of the request, which its decoder bounds.
    fn tree(&mut self, txn: &TxnResponse) {
        for (_, response) in &txn.responses {
            match response {
                OpResponse::Range(_) => self.ranges += 1,
                OpResponse::Put(_) => self.puts += 1,
                OpResponse::DeleteRange(_) => self.deletes += 1,
                OpResponse::Txn(nested) => self.tree(nested),
            }
        }
    }

    fn operations(&self) -> u64 {
        self.puts + self.deletes + self.ranges
    }
}

/// Counts one more until it is dropped.
pub(crate) struct Pending<'a>(&'a Gauge);

impl<'a> Pending<'a> {
    pub(crate) fn new(gauge: &'a Gauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

type Label = [(&'static str, String); 1];
type Durations = Family<Label, Histogram, fn() -> Histogram>;

/// Traffic with the other members.
#[derive(Clone, Debug)]
pub(crate) struct Peers {
    failed_heartbeats: Counter,
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
    /// Of all members together, as in etcd.
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
    /// The counters of a member, made when first asked for.
    pub(crate) fn get(&self, member: u64) -> Arc<Peer> {
        self.known.lock().entry(member).or_insert_with(|| Arc::new(self.peer(member))).clone()
    }

    /// The counters of a member that says it is `member`: it may lie, so there are not many of them.
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

    fn register(&self, registry: &mut Registry) {
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
                "Times of receiving and installing snapshots",
                &self.snapshot_receiving_times,
            ),
        ] {
            registry.register(name, help, family.clone());
        }
    }
}

impl Peer {
    /// Notes the end of sending a snapshot.
    pub(crate) fn snapshot_sent(&self, took: Duration, is_success: bool) {
        self.snapshot_sending_times.observe(took.as_secs_f64());
        if is_success { &self.snapshots_sent } else { &self.snapshots_not_sent }.inc();
    }

    /// Notes the end of receiving a snapshot.
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
