//! The drill of the registry: many instances in many sessions, watchers that are told of a single
//! change, sessions that die together, and a leader that is killed meanwhile.
//!
//! ```text
//! conclave-bench registry --binary target/release/conclave --assert
//! ```
//! A tenth of the sessions dies together. When these are gone another tenth dies, and the leader is
//! killed before their TTL is over. The drill prints one JSON line. It fails if a live instance
//! disappears; with `--assert` also if something takes longer than issue 3 promises.

mod audit;
mod drill;
mod verdict;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use tokio::runtime::Runtime;

use self::drill::{Drill, Filled, Watching};
use self::verdict::{Found, Wave};
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
    /// Sessions that hold them; a tenth dies together, twice.
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
    /// Fail, and say why, if a change or the end of the dead takes longer than it may.
    #[arg(long)]
    assert: bool,
}

/// Runs the drill and prints its result.
///
/// # Errors
/// If something that must happen does not, or the cluster does not start.
pub fn run(flags: &Registry, out: &mut dyn std::io::Write) -> Result<()> {
    let scratch = Scratch::create(&flags.dir)?;
    let mut cluster = Cluster::create(Program::new(&flags.binary), scratch.path(), NODES)?;
    cluster.start_all()?;
    wait_until_serving(&cluster.endpoints())?;
    let runtime = Runtime::new()?;
    // Sessions on these runtimes die with them, without telling the cluster.
    let [calm, killed] = [Runtime::new()?, Runtime::new()?];
    let mut drill = Drill { flags: flags.clone(), endpoints: cluster.endpoints() };
    let doomed = [calm.handle().clone(), killed.handle().clone()];
    let filled = runtime.block_on(drill.fill(doomed))?;
    let watching = runtime.block_on(drill.watch())?;
    let spread = runtime.block_on(drill.change(&filled, &watching))?;
    let left = filled.live - filled.doomed[0];
    let begun = die(calm);
    let calm = Wave::new(begun, runtime.block_on(drill.until_live(left))?);
    let left = left - filled.doomed[1];
    let begun = die(killed);
    // So that the leader is killed while the dead sessions are still there.
    std::thread::sleep(Duration::from_secs(flags.ttl) / 2);
    cluster.kill(leader(&cluster)?)?;
    let killed = Wave::new(begun, runtime.block_on(drill.until_live(left))?);
    // By then, whatever a new leader forgot would be gone.
    runtime.block_on(drill.hold(left, Duration::from_secs(flags.ttl * 2)))?;
    let found = found(flags, (&filled, &watching), spread, [calm, killed]);
    serde_json::to_writer(&mut *out, &found)?;
    writeln!(out)?;
    drop(filled);
    found.judge(flags.assert)
}

/// Kills everything that runs on `doomed`. Returns when.
fn die(doomed: Runtime) -> Instant {
    doomed.shutdown_background();
    Instant::now()
}

fn found(
    flags: &Registry,
    (filled, watching): (&Filled, &Watching),
    spread: hdrhistogram::Histogram<u64>,
    [calm, killed]: [Wave; 2],
) -> Found {
    let ms = |percentile: f64| {
        let found = Duration::from_micros(spread.value_at_percentile(percentile));
        found.as_secs_f64() * 1_000.0
    };
    Found {
        instances: filled.live,
        sessions: flags.sessions,
        fill_seconds: filled.seconds,
        watchers: flags.watchers,
        changes: flags.changes,
        change_to_watcher_p50_ms: ms(50.0),
        change_to_watcher_p99_ms: ms(99.0),
        change_to_watcher_max_ms: ms(100.0),
        ttl_seconds: flags.ttl,
        dead: filled.doomed,
        gone_seconds: calm.seconds,
        gone_with_leader_killed_seconds: killed.seconds,
        gone_after_new_leader_seconds: killed.seconds_led,
        live_removed: watching.audit.wrongly_removed(),
        live_sessions_lost: filled.sessions.iter().filter(|session| session.is_lost()).count(),
    }
}

fn leader(cluster: &Cluster) -> Result<usize> {
    let endpoints = cluster.endpoints();
    let mut target = Target::of(cluster);
    target.leader_first()?;
    let leader = endpoints.iter().position(|endpoint| *endpoint == target.endpoints[0]);
    leader.context("a leader")
}
