//! Counters and durations that the parts of a node update; clones share the values.

use std::time::Duration;

use conclave_raft_store::AppliedEntry;
use conclave_state_machine::response::{
    Event, EventKind, LeaseChange, OpResponse, Response, TxnResponse, WriteAnswer, WriteResponse,
};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::Labels;
use super::applies::Applies;
use super::duration::BySuccess;
use super::peers::Peers;
use super::promotions::Promotions;
use super::tls::TlsCounts;

/// Counters and durations of one node.
#[derive(Clone)]
pub(crate) struct Counts {
    kv: Kv,
    /// Range reads, including those inside transactions.
    pub(crate) ranges: Counter,
    /// Transactions of more than one operation.
    txns: Counter,
    /// Events sent to watchers.
    pub(crate) watch_events: Counter,
    leases_granted: Counter,
    leases_revoked: Counter,
    leases_expired: Counter,
    /// Leases that were not granted, by the limit that refused them.
    leases_refused: Family<Labels<1>, Counter>,
    lease_ttl: Histogram,
    /// Keep-alives that this member answered as leader.
    pub(crate) leases_renewed: Counter,
    pub(crate) proposals_pending: Gauge,
    pub(crate) proposals_failed: Counter,
    pub(crate) applies: Applies,
    /// Durations of range reads, without the wait for a quorum; by success.
    range_reads: BySuccess,
    pub(crate) slow_read_indexes: Counter,
    pub(crate) failed_read_indexes: Counter,
    /// Syncs of the raft log.
    pub(crate) log_syncs: Histogram,
    /// Writes of the raft log.
    pub(crate) log_writes: Histogram,
    /// Bytes written; a gauge in etcd.
    pub(crate) log_bytes: Gauge,
    /// Durations of receiving a snapshot, and of its last step, syncing and verifying.
    pub(crate) snapshot_saves: Histogram,
    pub(crate) snapshot_syncs: Histogram,
    pub(crate) promotions: Promotions,
    /// Snapshots being installed.
    pub(crate) snapshots_installing: Gauge,
    pub(crate) peers: Peers,
    pub(crate) tls: TlsCounts,
    /// Connections that sent nothing in time, by port.
    silent: Family<Labels<1>, Counter>,
    /// Connections refused because their address has too many, by port.
    crowded: Family<Labels<1>, Counter>,
}

#[derive(Clone, Default)]
struct Kv {
    puts: Counter,
    deletes: Counter,
    /// Bytes of keys and values that were put; a gauge in etcd.
    put_bytes: Gauge,
}

/// Operations found in the entries being counted.
#[derive(Default)]
struct Tally {
    puts: u64,
    deletes: u64,
    ranges: u64,
    txns: u64,
    put_bytes: usize,
}

impl Counts {
    /// All zero; `slow_apply` is passed to [`Applies::new`].
    pub(crate) fn new(slow_apply: Duration) -> Self {
        Self {
            kv: Kv::default(),
            ranges: Counter::default(),
            txns: Counter::default(),
            watch_events: Counter::default(),
            leases_granted: Counter::default(),
            leases_revoked: Counter::default(),
            leases_expired: Counter::default(),
            leases_refused: Family::default(),
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
            log_bytes: Gauge::default(),
            snapshot_saves: Histogram::new(exponential_buckets(0.1, 2.0, 10)),
            snapshot_syncs: Histogram::new(exponential_buckets(0.001, 2.0, 14)),
            promotions: Promotions::default(),
            snapshots_installing: Gauge::default(),
            peers: Peers::default(),
            tls: TlsCounts::default(),
            silent: Family::default(),
            crowded: Family::default(),
        }
    }

    /// Counter of connections to a port that sent nothing in time; exported from the first call on.
    pub(crate) fn silent(&self, port: &'static str) -> Counter {
        self.silent.get_or_create(&[("port", port)]).clone()
    }

    /// Counter of connections to a port refused because their address has too many; exported from
    /// the first call on.
    pub(crate) fn crowded(&self, port: &'static str) -> Counter {
        self.crowded.get_or_create(&[("port", port)]).clone()
    }

    /// Counter of leases refused because of a limit; exported from the first call on.
    pub(crate) fn refused_grants(&self, limit: &'static str) -> Counter {
        self.leases_refused.get_or_create(&[("limit", limit)]).clone()
    }

    /// Counts what was applied; `own` is this member's id.
    pub(crate) fn applied(&self, entries: &[AppliedEntry], own: Option<u64>) {
        let mut tally = Tally::default();
        for entry in entries {
            for applied in &entry.results {
                match &applied.outcome {
                    Ok(Response::Put(_)) => tally.puts += 1,
                    Ok(Response::DeleteRange(_)) => tally.deletes += 1,
                    Ok(Response::Txn(txn)) => tally.txn(txn),
                    // A repeated write changes nothing and is not counted.
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
                tally.events(&applied.events);
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
        if tally.put_bytes > 0 {
            self.kv.put_bytes.inc_by(i64::try_from(tally.put_bytes).unwrap_or(i64::MAX));
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

    /// Counts a read-only transaction.
    pub(crate) fn read_txn(&self, txn: &TxnResponse) {
        let mut tally = Tally::default();
        tally.txn(txn);
        self.ranges.inc_by(tally.ranges);
        self.txns.inc_by(tally.txns);
    }

    /// Records the duration of a range read.
    pub(crate) fn range_read(&self, took: Duration, is_success: bool) {
        self.range_reads.observe(took, is_success);
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        self.tls.register(registry);
        self.register_refusals(registry);
        for (name, help, counter) in [
            ("etcd_mvcc_put", "Puts applied, also inside transactions", &self.kv.puts),
            ("etcd_mvcc_delete", "Deletes applied, also inside transactions", &self.kv.deletes),
            ("etcd_mvcc_range", "Ranges read, also inside transactions", &self.ranges),
            ("etcd_mvcc_txn", "Transactions of several operations, read or applied", &self.txns),
            // Names of etcd 3.4.
            ("etcd_debugging_mvcc_put", "Puts applied, as etcd_mvcc_put_total", &self.kv.puts),
            (
                "etcd_debugging_mvcc_delete",
                "Deletes applied, as etcd_mvcc_delete_total",
                &self.kv.deletes,
            ),
            ("etcd_debugging_mvcc_range", "Ranges read, as etcd_mvcc_range_total", &self.ranges),
            ("etcd_debugging_mvcc_txn", "Transactions, as etcd_mvcc_txn_total", &self.txns),
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
                "etcd_debugging_mvcc_total_put_size_in_bytes",
                "Bytes of the keys and values that were put",
                &self.kv.put_bytes,
            ),
            ("etcd_disk_wal_write_bytes_total", "Bytes written to the raft log", &self.log_bytes),
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

    /// Registers what is refused, by port or limit.
    fn register_refusals(&self, registry: &mut Registry) {
        registry.register(
            "conclave_rpc_refused_connections",
            "Connections that were closed because their address had too many, by port",
            self.crowded.clone(),
        );
        registry.register(
            "conclave_lease_grants_refused",
            "Leases that were not granted because there are too many (count), or too many were asked for in a second (rate)",
            self.leases_refused.clone(),
        );
        registry.register(
            "conclave_rpc_silent_connections",
            "Connections that were closed because nothing came on them that a request could begin with, by port",
            self.silent.clone(),
        );
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

impl Tally {
    /// Counts the bytes of put events, whichever command caused them.
    fn events(&mut self, events: &[Event]) {
        let puts = events.iter().filter(|event| event.kind == EventKind::Put);
        self.put_bytes += puts.map(|put| put.kv.key.len() + put.kv.value.len()).sum::<usize>();
    }

    /// Counts a transaction; as in etcd only one with several operations, including nested ones.
    fn txn(&mut self, txn: &TxnResponse) {
        let before = self.operations();
        self.tree(txn);
        if self.operations() > before + 1 {
            self.txns += 1;
        }
    }

    // Recursion is bounded by the depth of the request, which its decoder limits.
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

/// Increments a gauge until it is dropped.
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
