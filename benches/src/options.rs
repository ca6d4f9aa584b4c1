//! Options of one run: what to measure.

use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::Serialize;

/// The kinds of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Workload {
    /// Put of a random key.
    Put,
    /// Linearizable read of one random key.
    Get,
    /// Serializable read of one random key.
    GetSerializable,
    /// Linearizable range of `--limit` keys.
    Range,
    /// Kubernetes' update: compare the mod revision, then put, else get.
    Txn,
    /// `--read-percent` linearizable gets, the rest puts.
    Mixed,
    /// `--watchers` watchers on one prefix, `--clients` writers; counts delivered events.
    WatchFanout,
    /// As the fan-out, but paced by `--rate`, and the time from the start of the put to the event is measured.
    WatchLatency,
    /// Keep-alives on open streams, one lease each.
    KeepAlive,
    /// Each client is a process that keeps `--sessions` sessions alive: on our session stream one message
    /// renews all of them, elsewhere each lease needs a keep-alive on one stream. Counts renewed sessions.
    Heartbeats,
    /// Grants of leases.
    LeaseGrant,
    /// Lock and unlock through the Lock service, each client a name of its own.
    Lock,
    /// The same with one name for all clients: hand-overs.
    LockContended,
    /// As `lock`, through our own service where the server has it.
    LockNative,
    /// As `lock-contended`, through our own service where the server has it.
    LockNativeContended,
}

impl Workload {
    /// Whether the run reads keys that must exist.
    pub(crate) fn needs_keys(self) -> bool {
        matches!(self, Self::Get | Self::GetSerializable | Self::Range | Self::Mixed | Self::Txn)
    }

    /// Whether the run takes locks.
    pub(crate) fn locks(self) -> bool {
        let is_native = matches!(self, Self::LockNative | Self::LockNativeContended);
        is_native || matches!(self, Self::Lock | Self::LockContended)
    }

    /// The name used on the command line.
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// The shape of one run, for any server.
#[derive(Clone, Debug, Args, Serialize)]
pub struct Load {
    /// Requests in flight: each client sends its next request when the last one is answered.
    #[arg(long, default_value_t = 64)]
    pub clients: usize,
    /// HTTP/2 connections, spread over the endpoints; 0: one per 8 clients, at least one per endpoint.
    #[arg(long, default_value_t = 0)]
    pub connections: usize,
    /// Threads of the generator, each with its own runtime and its share of the connections.
    #[arg(long, default_value_t = 1)]
    pub threads: usize,
    /// Seconds measured.
    #[arg(long, default_value_t = 10.0)]
    pub seconds: f64,
    /// Seconds of the same load before the measurement.
    #[arg(long, default_value_t = 2.0)]
    pub warmup: f64,
    /// Bytes of a value.
    #[arg(long, default_value_t = 256)]
    pub value_bytes: usize,
    /// Number of distinct keys.
    #[arg(long, default_value_t = 10_000)]
    pub keys: usize,
    /// Open loop: requests per second over all clients, latency counted from the planned start; 0: closed loop.
    #[arg(long, default_value_t = 0.0)]
    pub rate: f64,
    /// Keys of one range.
    #[arg(long, default_value_t = 100)]
    pub limit: usize,
    /// Share of reads in the mixed load.
    #[arg(long, default_value_t = 80)]
    pub read_percent: u32,
    /// Watchers of the watch loads.
    #[arg(long, default_value_t = 200)]
    pub watchers: usize,
    /// Streams the watchers are spread over.
    #[arg(long, default_value_t = 12)]
    pub streams: usize,
    /// Sessions that one client of the heartbeats holds.
    #[arg(long, default_value_t = 10)]
    pub sessions: usize,
}

impl Load {
    /// The number of connections for `endpoints` endpoints.
    pub(crate) fn connection_count(&self, endpoints: usize) -> usize {
        if self.connections > 0 {
            return self.connections;
        }
        let spread = self.clients.div_ceil(8).next_multiple_of(endpoints);
        spread.min(self.clients.max(1))
    }

    /// Duration of the measurement.
    pub(crate) fn measured(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }

    /// Duration of the same load before the measurement.
    pub(crate) fn warm(&self) -> Duration {
        Duration::from_secs_f64(self.warmup)
    }
}
