//! Measures applying the log, by kind of command, and what compactions delete.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use conclave_raft_store::{Operation, Report};
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::Labels;
use super::duration::Durations;
use crate::sparse::Sparse;

/// Counters and durations of apply; clones share the values.
#[derive(Clone)]
pub(crate) struct Applies {
    family: Family<Labels<3>, Durations>,
    /// By kind and success; the same values as in `family`, so that apply needs no lookup.
    durations: Arc<[[Durations; 2]; Operation::ALL.len()]>,
    slow: Counter,
    /// Applying one piece of the log counts as slow if it takes longer than this.
    slow_after: Duration,
    slow_lines: Arc<Sparse>,
    state_writes: Histogram,
    flushes: Histogram,
    sweep_pauses: Histogram,
    sweeps: Histogram,
    last_sweep: Gauge,
    swept: Counter,
    /// When the sweep after the last compaction began; `None` if none is in progress.
    sweep_began: Arc<Mutex<Option<Instant>>>,
}

impl Applies {
    /// `slow_after` is etcd's `--warning-apply-duration`.
    pub(crate) fn new(slow_after: Duration) -> Self {
        let family = Family::<Labels<3>, Durations>::default();
        let of = |operation: Operation, success: &'static str| {
            let labels = [("version", "v3"), ("op", operation.name()), ("success", success)];
            family.get_or_create(&labels).clone()
        };
        let durations =
            Operation::ALL.map(|operation| [of(operation, "false"), of(operation, "true")]);
        Self {
            durations: Arc::new(durations),
            family,
            slow: Counter::default(),
            slow_after,
            slow_lines: Arc::default(),
            state_writes: Histogram::new(exponential_buckets(0.001, 2.0, 14)),
            flushes: Histogram::new(exponential_buckets(0.001, 2.0, 14)),
            sweep_pauses: Histogram::new(exponential_buckets(1.0, 2.0, 13)),
            sweeps: Histogram::new(exponential_buckets(100.0, 2.0, 14)),
            last_sweep: Gauge::default(),
            swept: Counter::default(),
            sweep_began: Arc::default(),
        }
    }

    /// Records the apply of one piece of the log. Its commands take effect together, so each of
    /// them is recorded with the duration of the whole.
    pub(crate) fn note(&self, report: &Report) {
        self.state_writes.observe(report.write.as_secs_f64());
        if report.whole > self.slow_after {
            self.slow.inc();
            if let Some(unsaid) = self.slow_lines.turn() {
                let expected = self.slow_after;
                tracing::warn!(took = ?report.whole, ?expected, unsaid, "apply took too long");
            }
        }
        for operation in Operation::ALL {
            for is_success in [false, true] {
                let count = report.operations.counted(operation, is_success);
                if count > 0 {
                    let durations = &self.durations[operation as usize][usize::from(is_success)];
                    durations.observe_many(report.whole, count);
                }
            }
        }
        if report.swept.steps > 0 {
            self.sweep(report);
        }
    }

    /// Records a step of a sweep, and the sweep itself if this was its last step.
    fn sweep(&self, report: &Report) {
        self.swept.inc_by(report.swept.events);
        self.sweep_pauses.observe(report.whole.as_secs_f64() * 1_000.0);
        let mut began = self.sweep_began.lock();
        let now = Instant::now();
        let since = *began.get_or_insert(now.checked_sub(report.whole).unwrap_or(now));
        if !report.has_dead_rows {
            *began = None;
            self.sweeps.observe((now - since).as_secs_f64() * 1_000.0);
            let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            self.last_sweep.set(super::signed(at.as_secs()));
        }
    }

    /// Records a flush of the state.
    pub(crate) fn flushed(&self, took: Duration) {
        self.flushes.observe(took.as_secs_f64());
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "etcd_server_apply_duration_seconds",
            "Durations of applying commands, each with those it was applied with",
            self.family.clone(),
        );
        for (name, help, counter) in [
            (
                "etcd_server_slow_apply",
                "Pieces of the log that took longer to apply than --warning-apply-duration",
                &self.slow,
            ),
            (
                "etcd_debugging_mvcc_db_compaction_keys",
                "Events that compactions deleted",
                &self.swept,
            ),
        ] {
            registry.register(name, help, counter.clone());
        }
        for (name, help, histogram) in [
            (
                "etcd_disk_backend_commit_duration_seconds",
                "Durations of writing applied entries to the state",
                &self.state_writes,
            ),
            (
                "etcd_snap_fsync_duration_seconds",
                "Durations of flushing the state, which is what makes a snapshot",
                &self.flushes,
            ),
            (
                "etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds",
                "How long a step of a compaction held up apply",
                &self.sweep_pauses,
            ),
            (
                "etcd_debugging_mvcc_db_compaction_total_duration_milliseconds",
                "Durations of deleting what a compaction made dead",
                &self.sweeps,
            ),
        ] {
            registry.register(name, help, histogram.clone());
        }
        registry.register(
            "etcd_debugging_mvcc_db_compaction_last",
            "When the last compaction had deleted all, in seconds since 1970",
            self.last_sweep.clone(),
        );
    }
}

#[cfg(test)]
mod tests {
    use conclave_raft_store::Operations;
    use conclave_state_machine::compaction::Swept;

    use super::*;

    #[test]
    fn only_a_long_apply_is_slow() {
        let slow_after = Duration::from_millis(100);
        let applies = Applies::new(slow_after);
        let report = Report { whole: slow_after, ..Report::default() };
        applies.note(&report);
        assert_eq!(applies.slow.get(), 0);
        applies.note(&Report { whole: slow_after + Duration::from_nanos(1), ..report });
        assert_eq!(applies.slow.get(), 1);
    }

    #[test]
    fn commands_share_the_duration_of_their_piece_and_sweeps_end_once() {
        let applies = Applies::new(Duration::from_secs(1));
        let mut operations = Operations::default();
        operations.count(Operation::Put, true);
        operations.count(Operation::Put, true);
        operations.count(Operation::Txn, false);
        let whole = Duration::from_millis(1);
        let swept = Swept { steps: 1, events: 5 };
        let step = Report { whole, operations, swept, has_dead_rows: true, ..Report::default() };
        applies.note(&step);
        assert_eq!(applies.last_sweep.get(), 0);
        applies.note(&Report { has_dead_rows: false, ..step });
        assert_eq!(applies.swept.get(), 10);
        assert!(applies.last_sweep.get() > 0 && applies.sweep_began.lock().is_none());
        let mut registry = Registry::default();
        applies.register(&mut registry);
        let mut page = String::new();
        prometheus_client::encoding::text::encode(&mut page, &registry).unwrap();
        let count = |op: &str, success: &str| {
            let labels = format!("version=\"v3\",op=\"{op}\",success=\"{success}\"");
            let name = format!("etcd_server_apply_duration_seconds_count{{{labels}}} ");
            let line = page.lines().find_map(|line| line.strip_prefix(&name));
            line.unwrap().to_owned()
        };
        assert_eq!([count("Put", "true"), count("Put", "false")], ["4", "0"]);
        assert_eq!([count("Txn", "true"), count("Txn", "false")], ["0", "2"]);
        let total = "etcd_debugging_mvcc_db_compaction_total_duration_milliseconds_count 1";
        assert!(page.lines().any(|line| line == total), "{page}");
    }
}
