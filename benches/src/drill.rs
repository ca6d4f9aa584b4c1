//! Measurements other than a steady load: many keys and a restart, the death of a leader, the
//! number of fdatasyncs, the cost of a heartbeat.

use std::fmt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use conclave_proto::etcdserverpb::kv_client::KvClient;
use conclave_proto::etcdserverpb::{PutRequest, RangeRequest};
use serde::Serialize;

use crate::access::Access;
use crate::cluster::Cluster;
use crate::compare::{Comparison, Side};
use crate::connection::Connection;
use crate::heartbeats;
use crate::options::{Load, Workload};
use crate::process::Usage;
use crate::runner::{self, Target};
use crate::security;
use crate::table::median;
use crate::worker::Material;

const READY_TIMEOUT: Duration = Duration::from_secs(120);
const STOP_TIMEOUT: Duration = Duration::from_secs(60);
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);
const PROBE_PAUSE: Duration = Duration::from_millis(2);
const SETTLE: Duration = Duration::from_secs(3);
const TRACED_SECONDS: f64 = 5.0;
const MEGABYTE: u64 = 1 << 20;

/// A special measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Drill {
    /// Loads many keys; memory, disk, and the time from a restart to the first linearizable read.
    Restart,
    /// Kills the leader again and again; the gap between acknowledged writes.
    Failover,
    /// Counts fdatasync and fsync calls of each node under puts (needs strace).
    Syncs,
    /// Puts without rights and TLS, with users and rights, with certificates on both ports.
    Security,
    /// Sessions kept alive per second of server CPU, by sessions of one process.
    Heartbeats,
}

/// Result of a drill.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Finding {
    Restart {
        keys: usize,
        load_seconds: f64,
        rss_mb: u64,
        rss_anon_mb: u64,
        disk_mb: u64,
        written_per_key: u64,
        all_restart_ms: u64,
        one_restart_ms: u64,
        rss_after_restart_mb: u64,
    },
    Failover {
        gaps_ms: Vec<u64>,
        p50_ms: u64,
        max_ms: u64,
    },
    Syncs {
        clients: usize,
        puts: u64,
        /// Number of calls of each node.
        syncs: Vec<u64>,
    },
    Security(security::Finding),
    Heartbeats(Vec<heartbeats::Cost>),
}

impl Finding {
    /// One side's result as a multiple of the other's; `None` if there is no single figure.
    pub(crate) fn times(&self, other: &Self) -> Option<String> {
        match (self, other) {
            (Self::Heartbeats(ours), Self::Heartbeats(theirs)) => {
                Some(heartbeats::ratios(ours, theirs))
            }
            _ => None,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}

/// Runs one drill on a fresh cluster of one side.
pub(crate) fn run(drill: Drill, comparison: &Comparison, side: Side) -> Result<Finding> {
    let on_cluster = |measure: &dyn Fn(&mut Cluster, &Path) -> Result<Finding>| {
        let (mut cluster, scratch) = comparison.cluster(side)?;
        measure(&mut cluster, scratch.path())
    };
    let finding = match drill {
        Drill::Restart => on_cluster(&|cluster, dir| restart(cluster, comparison, dir)),
        Drill::Failover => on_cluster(&|cluster, _| failover(cluster, comparison.failovers)),
        Drill::Syncs => on_cluster(&|cluster, dir| syncs(cluster, &comparison.load, dir)),
        // Every kind of protection gets its own cluster.
        Drill::Security => {
            let program = comparison.program(side);
            let (dir, load, rounds) = (&comparison.dir, &comparison.load, comparison.drill_rounds);
            let setting = security::Setting { program: &program, dir, load, rounds };
            security::measure(&setting).map(Finding::Security)
        }
        Drill::Heartbeats => on_cluster(&|cluster, _| {
            heartbeats::costs(cluster, &comparison.load).map(Finding::Heartbeats)
        }),
    };
    finding.with_context(|| format!("{drill:?} on {side:?}"))
}

pub(crate) fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// Waits until every endpoint answers a linearizable read.
///
/// # Errors
/// If an endpoint does not answer in time.
pub(crate) fn wait_until_serving(endpoints: &[String]) -> Result<()> {
    wait_until_serving_by(endpoints, &Access::default())
}

/// As [`wait_until_serving`], with `access`.
///
/// # Errors
/// If an endpoint does not answer in time.
pub(crate) fn wait_until_serving_by(endpoints: &[String], access: &Access) -> Result<()> {
    runtime()?.block_on(async {
        for endpoint in endpoints {
            first_read(endpoint, access).await?;
        }
        Ok(())
    })
}

/// Repeats a linearizable read until it is answered.
async fn first_read(endpoint: &str, access: &Access) -> Result<()> {
    let deadline = Instant::now() + READY_TIMEOUT;
    loop {
        let answer = tokio::time::timeout(PROBE_TIMEOUT, read(endpoint, access)).await;
        if matches!(answer, Ok(Ok(()))) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{endpoint} does not serve: {answer:?}");
        tokio::time::sleep(PROBE_PAUSE).await;
    }
}

async fn read(endpoint: &str, access: &Access) -> Result<()> {
    let connection = Connection::open_by(endpoint, access).await?;
    let origin = connection.origin();
    let request = RangeRequest { key: "probe".into(), ..Default::default() };
    KvClient::with_origin(connection, origin).range(request).await?;
    Ok(())
}

fn restart(cluster: &mut Cluster, comparison: &Comparison, dir: &Path) -> Result<Finding> {
    let keys = comparison.drill_keys;
    let mut target = Target::of(cluster);
    target.leader_first()?;
    let before = Usage::of_all(&target.pids)?;
    let begin = Instant::now();
    let material = Arc::new(Material::new(&Load { keys, ..comparison.load.clone() }));
    runner::preload(&target, &material)?;
    let load_seconds = begin.elapsed().as_secs_f64();
    std::thread::sleep(SETTLE);
    let loaded = Usage::of_all(&target.pids)?;
    let disk_mb = disk_bytes(dir)? / MEGABYTE;
    for node in 0..cluster.nodes().len() {
        cluster.terminate(node, STOP_TIMEOUT)?;
    }
    let begin = Instant::now();
    cluster.start_all()?;
    wait_until_serving(&cluster.endpoints())?;
    let all_restart_ms = millis(begin);
    cluster.terminate(0, STOP_TIMEOUT)?;
    let begin = Instant::now();
    cluster.start(0)?;
    wait_until_serving(&cluster.endpoints()[..1])?;
    let one_restart_ms = millis(begin);
    Ok(Finding::Restart {
        keys,
        load_seconds,
        rss_mb: loaded.rss_bytes / MEGABYTE,
        rss_anon_mb: loaded.rss_anon_bytes / MEGABYTE,
        disk_mb,
        written_per_key: (loaded.write_bytes - before.write_bytes) / keys.max(1) as u64,
        all_restart_ms,
        one_restart_ms,
        rss_after_restart_mb: Usage::of_all(&cluster.pids())?.rss_bytes / MEGABYTE,
    })
}

fn millis(begin: Instant) -> u64 {
    u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX)
}

fn disk_bytes(dir: &Path) -> Result<u64> {
    let output = Command::new("du").args(["-s", "--block-size=1"]).arg(dir).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split_whitespace().next().context("du prints a size")?.parse().context("size")
}

fn failover(cluster: &mut Cluster, times: usize) -> Result<Finding> {
    let mut gaps_ms = Vec::new();
    for _ in 0..times {
        let mut target = Target::of(cluster);
        target.leader_first()?;
        let leader =
            cluster.endpoints().iter().position(|endpoint| *endpoint == target.endpoints[0]);
        let leader = leader.context("a leader")?;
        runtime()?.block_on(put(&target.endpoints[1]))?;
        let begin = Instant::now();
        cluster.kill(leader)?;
        runtime()?.block_on(next_write(&target.endpoints[1..]))?;
        gaps_ms.push(millis(begin));
        cluster.start(leader)?;
        wait_until_serving(&cluster.endpoints())?;
        std::thread::sleep(SETTLE);
    }
    let p50_ms = median(gaps_ms.iter().map(|&gap| gap as f64).collect()) as u64;
    let max_ms = gaps_ms.iter().copied().max().unwrap_or(0);
    Ok(Finding::Failover { gaps_ms, p50_ms, max_ms })
}

async fn put(endpoint: &str) -> Result<()> {
    let connection = Connection::open(endpoint).await?;
    let origin = connection.origin();
    let request = PutRequest { key: "probe".into(), value: "v".into(), ..Default::default() };
    KvClient::with_origin(connection, origin).put(request).await?;
    Ok(())
}

/// Sends puts to the surviving members, several in flight, until one is acknowledged.
async fn next_write(survivors: &[String]) -> Result<()> {
    let deadline = Instant::now() + READY_TIMEOUT;
    let mut tasks = tokio::task::JoinSet::new();
    let mut turn = 0;
    loop {
        let endpoint = survivors[turn % survivors.len()].clone();
        turn += 1;
        tasks.spawn(
            async move { tokio::time::timeout(Duration::from_secs(5), put(&endpoint)).await },
        );
        let pause = tokio::time::sleep(Duration::from_millis(20));
        tokio::select! {
            Some(done) = tasks.join_next() => {
                if matches!(done, Ok(Ok(Ok(())))) {
                    return Ok(());
                }
            }
            () = pause => {}
        }
        ensure!(Instant::now() < deadline, "no write after {READY_TIMEOUT:?}");
    }
}

/// Attaches strace to every node and counts its syncs during a run of puts.
fn syncs(cluster: &Cluster, load: &Load, dir: &Path) -> Result<Finding> {
    let mut target = Target::of(cluster);
    target.leader_first()?;
    let load = Load { seconds: TRACED_SECONDS, warmup: 0.0, ..load.clone() };
    let mut tracers: Vec<Child> = Vec::new();
    for pid in cluster.pids() {
        let output = dir.join(format!("strace-{pid}"));
        let mut command = Command::new("strace");
        command
            .args(["-f", "-c", "-e", "trace=fdatasync,fsync", "-p", &pid.to_string(), "-o"])
            .arg(output);
        tracers.push(command.stderr(Stdio::null()).spawn().context("start strace")?);
    }
    std::thread::sleep(Duration::from_secs(1));
    let report = runner::run(Workload::Put, &load, &target)?;
    let mut syncs = Vec::new();
    for (mut tracer, pid) in tracers.into_iter().zip(cluster.pids()) {
        // SIGINT makes strace detach and write its summary.
        Command::new("kill").args(["-INT", &tracer.id().to_string()]).status()?;
        tracer.wait()?;
        let summary = std::fs::read_to_string(dir.join(format!("strace-{pid}")))?;
        syncs.push(calls(&summary));
    }
    Ok(Finding::Syncs { clients: load.clients, puts: report.ops, syncs })
}

/// Sums the calls in strace's summary: the fourth column of the lines that name a call.
fn calls(summary: &str) -> u64 {
    let lines = summary.lines().filter(|line| line.ends_with("sync"));
    lines.filter_map(|line| line.split_whitespace().nth(3)?.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_read_from_a_summary() {
        let summary = "% time     seconds  usecs/call     calls    errors syscall\n\
            ------ ----------- ----------- --------- --------- ----------------\n\
             99.00    0.005000          50       100           fdatasync\n\
              1.00    0.000100         100         1           fsync\n\
            ------ ----------- ----------- --------- --------- ----------------\n\
            100.00    0.005100                   101           total\n";
        assert_eq!(calls(summary), 101);
    }
}
