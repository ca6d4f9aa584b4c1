//! The result of one run, as JSON and as a line of text.

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::drive::Tally;
use crate::options::{Load, Workload};
use crate::process::Usage;

/// All results of one run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The kind of load.
    pub workload: Workload,
    /// The shape of the load.
    pub load: Load,
    /// Operations answered within the window; for watch loads, events delivered.
    pub ops: u64,
    /// Operations per second.
    pub rate: f64,
    /// Puts answered within the window of a watch load.
    pub puts: u64,
    /// Requests that failed within the window.
    pub errors: u64,
    /// A few of their error texts.
    pub error_texts: Vec<String>,
    /// Time from the start (open loop: planned start) to the answer.
    pub latency: Latency,
    /// CPU time of the generator per operation.
    pub client_cpu_us_per_op: f64,
    /// What the servers used, if their process ids were given.
    pub server: Option<ServerCost>,
    /// The raft term before and after; different terms mean an election in between. 0 if the server
    /// has no raft.
    pub terms: (u64, u64),
}

/// Percentiles in microseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[expect(missing_docs, reason = "the names say all")]
pub struct Latency {
    pub mean_us: f64,
    pub p50_us: f64,
    pub p90_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub max_us: f64,
}

impl Latency {
    fn of(histogram: &Histogram<u64>) -> Self {
        let at = |quantile: f64| histogram.value_at_quantile(quantile) as f64 / 1000.0;
        Self {
            mean_us: histogram.mean() / 1000.0,
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: histogram.max() as f64 / 1000.0,
        }
    }
}

/// Sums over all server processes.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ServerCost {
    /// CPU time per operation.
    pub cpu_us_per_op: f64,
    /// Bytes written to the block layer per operation.
    pub write_bytes_per_op: f64,
    /// Number of CPU cores in use, averaged over the window.
    pub cores: f64,
    /// Resident memory at the end of the window.
    pub rss_bytes: u64,
    /// Its anonymous part.
    pub rss_anon_bytes: u64,
}

impl ServerCost {
    /// The cost of `ops` operations between two samples `seconds` apart.
    pub(crate) fn between(before: &Usage, after: &Usage, ops: u64, seconds: f64) -> Self {
        let per_op = |total: u64| total as f64 / ops.max(1) as f64;
        let cpu_us = after.cpu_us.saturating_sub(before.cpu_us);
        Self {
            cpu_us_per_op: per_op(cpu_us),
            write_bytes_per_op: per_op(after.write_bytes.saturating_sub(before.write_bytes)),
            cores: cpu_us as f64 / 1e6 / seconds,
            rss_bytes: after.rss_bytes,
            rss_anon_bytes: after.rss_anon_bytes,
        }
    }
}

impl Report {
    pub(crate) fn new(workload: Workload, load: &Load, tally: &Tally, puts: u64) -> Self {
        Self {
            workload,
            load: load.clone(),
            ops: tally.ops,
            rate: tally.ops as f64 / load.seconds,
            puts,
            errors: tally.errors,
            error_texts: tally.error_texts.clone(),
            latency: Latency::of(&tally.latency_ns),
            client_cpu_us_per_op: 0.0,
            server: None,
            terms: (0, 0),
        }
    }

    /// A line with the most important figures.
    #[must_use]
    pub fn line(&self) -> String {
        let Latency { p50_us, p99_us, p999_us, .. } = self.latency;
        let server = self.server.map_or_else(String::new, |server| {
            format!(
                "  server {:.1} us/op, {:.0} B/op, {} MB",
                server.cpu_us_per_op,
                server.write_bytes_per_op,
                server.rss_bytes >> 20
            )
        });
        let election = if self.terms.0 == self.terms.1 { "" } else { "  ELECTION" };
        let puts = if self.puts > 0 { format!("  {} puts", self.puts) } else { String::new() };
        format!(
            "{:<16} {:>9.0}/s  p50 {:.2}  p99 {:.2}  p99.9 {:.2} ms{puts}  errors {}{server}  client {:.1} us/op{election}",
            self.workload.name(),
            self.rate,
            p50_us / 1000.0,
            p99_us / 1000.0,
            p999_us / 1000.0,
            self.errors,
            self.client_cpu_us_per_op,
        )
    }
}
