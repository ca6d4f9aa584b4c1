//! The drill of the registry: many instances in many sessions, watchers that hear of one change, sessions
//! that die at once, and a leader that is killed meanwhile.
//!
//! ```text
//! conclave-bench registry --binary target/release/conclave
//! ```
//! It prints one JSON line and fails if an instance that lives disappears, if a change does not arrive, or
//! if the dead do not go. Times are figures, not conditions: the machine decides.

mod drill;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use hdrhistogram::Histogram;
use tokio::runtime::Runtime;

use self::drill::Drill;
use crate::cluster::{Cluster, Program};
use crate::compare::Scratch;
use crate::drill::wait_until_serving;
use crate::runner::Target;

const NODES: usize = 3;

/// Flags of the drill.
#[derive(Clone, Debug, Args)]
pub struct Registry {
    /// The `conclave` binary.
    #[arg(long)]
    binary: PathBuf,
    /// Where the nodes keep their data; removed afterwards.
    #[arg(long, default_value = "/tmp")]
    dir: PathBuf,
    /// Instances that are registered.
    #[arg(long, default_value_t = 100_000)]
    instances: usize,
    /// Sessions that hold them; a tenth dies together.
    #[arg(long, default_value_t = 10_000)]
    sessions: usize,
    /// Services that they belong to.
    #[arg(long, default_value_t = 100)]
    services: usize,
    /// Watchers of one service.
    #[arg(long, default_value_t = 1_000)]
    watchers: usize,
    /// Changes that are measured.
    #[arg(long, default_value_t = 50)]
    changes: usize,
    /// TTL of the sessions in seconds.
    #[arg(long, default_value_t = 10)]
    ttl: u64,
}

/// Runs the drill; prints what it found.
///
/// # Errors
/// If something does not happen that must, or the cluster does not start.
pub fn run(flags: &Registry, out: &mut dyn std::io::Write) -> Result<()> {
    let scratch = Scratch::create(&flags.dir)?;
    let mut cluster = Cluster::create(Program::new(&flags.binary), scratch.path(), NODES)?;
    cluster.start_all()?;
    wait_until_serving(&cluster.endpoints())?;
    let runtime = Runtime::new()?;
    // Whoever lives on it dies with it, without a word to the cluster.
    let (first, second) = (Runtime::new()?, Runtime::new()?);
    let mut drill = Drill { flags: flags.clone(), endpoints: cluster.endpoints() };
    let filled = runtime.block_on(drill.fill([first.handle().clone(), second.handle().clone()]))?;
    let watching = runtime.block_on(drill.watch())?;
    let (spread, changes) = runtime.block_on(drill.change(&filled, &watching))?;
    let begun = Instant::now();
    first.shutdown_background();
    let gone = runtime.block_on(drill.until_live(filled.live - filled.doomed[0], begun))?;
    let calm = watching.audit.wrongly_removed();

    let leader = leader(&cluster)?;
    let begun = Instant::now();
    cluster.kill(leader)?;
    second.shutdown_background();
    let left = filled.live - filled.doomed[0] - filled.doomed[1];
    let gone_after_kill = runtime.block_on(drill.until_live(left, begun))?;
    // Whatever a new leader forgot would be gone by then.
    runtime.block_on(drill.hold(left, Duration::from_secs(flags.ttl * 2)))?;
    let removed = watching.audit.wrongly_removed();
    let lost = filled.sessions.iter().filter(|session| session.is_lost()).count();
    serde_json::to_writer(
        &mut *out,
        &serde_json::json!({
            "instances": filled.live,
            "sessions": flags.sessions,
            "fill_seconds": filled.seconds,
            "watchers": flags.watchers,
            "changes": changes,
            "change_to_watcher_ms": {
                "p50": millis(&spread, 50.0), "p99": millis(&spread, 99.0), "max": millis(&spread, 100.0),
            },
            "ttl_seconds": flags.ttl,
            "dead_gone_seconds": gone.as_secs_f64(),
            "dead_gone_with_leader_killed_seconds": gone_after_kill.as_secs_f64(),
            "live_removed": removed,
            "live_sessions_lost": lost,
        }),
    )?;
    writeln!(out)?;
    drop(filled);
    ensure!(calm == 0 && removed == 0 && lost == 0, "{removed} instances that live disappeared");
    Ok(())
}

fn millis(histogram: &Histogram<u64>, percentile: f64) -> f64 {
    Duration::from_micros(histogram.value_at_percentile(percentile)).as_secs_f64() * 1_000.0
}

fn leader(cluster: &Cluster) -> Result<usize> {
    let endpoints = cluster.endpoints();
    let mut target = Target::of(cluster);
    target.leader_first()?;
    let leader = endpoints.iter().position(|endpoint| *endpoint == target.endpoints[0]);
    leader.context("a leader")
}
