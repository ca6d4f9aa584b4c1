//! Compares our server with the reference: the same load on three nodes each, in turn, never both
//! running at once.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde_json::json;

use crate::access::Access;
use crate::cluster::{Cluster, Program};
use crate::drill::{self, Drill};
use crate::options::{Load, Workload};
use crate::report::Report;
use crate::runner::{self, Target};
use crate::table::Table;

pub(crate) const NODES: usize = 3;
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// A server to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Side {
    /// Our server.
    Ours,
    /// The reference.
    Theirs,
    /// The no-op server.
    Noop,
}

/// What to compare.
#[derive(Clone, Debug, Args)]
pub struct Comparison {
    /// Our server program.
    #[arg(long, default_value = "target/release/conclave")]
    pub ours: PathBuf,
    /// The reference's server program.
    #[arg(long, default_value = "/usr/bin/etcd")]
    pub theirs: PathBuf,
    /// The no-op server, the ceiling for unary loads.
    #[arg(long)]
    pub noop: Option<PathBuf>,
    /// Measure only these; both servers (and the no-op server if given) by default.
    #[arg(long, value_delimiter = ',')]
    pub only: Vec<Side>,
    /// Rounds over all workloads; in each every side has its turn.
    #[arg(long, default_value_t = 3)]
    pub rounds: usize,
    /// Workloads.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "put,txn,get,get-serializable,mixed,range,watch-fanout,keep-alive,lease-grant"
    )]
    pub workloads: Vec<Workload>,
    /// Special measurements, each in its own cluster, after the rounds.
    #[arg(long, value_delimiter = ',')]
    pub drills: Vec<Drill>,
    /// Keys of the restart drill.
    #[arg(long, default_value_t = 1_000_000)]
    pub drill_keys: usize,
    /// How often the failover drill kills the leader.
    #[arg(long, default_value_t = 10)]
    pub failovers: usize,
    /// Rounds of the security drill.
    #[arg(long, default_value_t = 3)]
    pub drill_rounds: usize,
    /// Where the nodes keep their data, in a directory that is removed afterwards.
    #[arg(long, default_value = "/tmp")]
    pub dir: PathBuf,
    /// Flags for both servers, separated by spaces.
    #[arg(long, default_value = "--quota-backend-bytes=8589934592", allow_hyphen_values = true)]
    pub flags: String,
    /// Append every result as a JSON line to this file.
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// The shape of every run.
    #[command(flatten)]
    pub load: Load,
}

impl Comparison {
    fn sides(&self) -> Vec<Side> {
        let all = [Side::Ours, Side::Theirs, Side::Noop];
        let is_wanted = |side: &Side| match side {
            Side::Noop => self.noop.is_some(),
            Side::Ours | Side::Theirs => self.only.is_empty() || self.only.contains(side),
        };
        all.into_iter().filter(is_wanted).collect()
    }

    pub(crate) fn program(&self, side: Side) -> Program {
        let path = if side == Side::Ours { &self.ours } else { &self.theirs };
        let flags: Vec<String> = self.flags.split_whitespace().map(str::to_owned).collect();
        Program::new(path).with_flags(&flags)
    }

    /// Starts a new cluster of one side in a directory of its own.
    pub(crate) fn cluster(&self, side: Side) -> Result<(Cluster, Scratch)> {
        let scratch = Scratch::create(&self.dir)?;
        let mut cluster = Cluster::create(self.program(side), scratch.path(), NODES)?;
        cluster.start_all()?;
        drill::wait_until_serving(&cluster.endpoints())?;
        Ok((cluster, scratch))
    }

    fn record(&self, line: &serde_json::Value) -> Result<()> {
        let Some(path) = &self.json else { return Ok(()) };
        let mut file = File::options().create(true).append(true).open(path)?;
        Ok(writeln!(file, "{line}")?)
    }
}

/// A directory that is removed after the measurement.
#[derive(Debug)]
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn create(below: &Path) -> Result<Self> {
        let name = format!("conclave-bench-{}-{:08x}", std::process::id(), rand::random::<u32>());
        let path = below.join(name);
        std::fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
        Ok(Self(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("could not remove {}: {error}", self.0.display());
        }
    }
}

/// Runs the comparison and prints its tables to `out`.
///
/// # Errors
/// If a server does not start or a run fails.
pub fn run(comparison: &Comparison, out: &mut impl Write) -> Result<()> {
    let mut table = Table::default();
    for round in 1..=comparison.rounds {
        for &workload in &comparison.workloads {
            for side in comparison.sides() {
                let Some(report) = one(comparison, side, workload)? else { continue };
                writeln!(out, "round {round} {side:?}: {}", report.line())?;
                for text in &report.error_texts {
                    writeln!(out, "    error: {text}")?;
                }
                let side_name = format!("{side:?}");
                comparison.record(&json!({"side": side_name, "round": round, "report": report}))?;
                table.add(workload, side, report);
            }
        }
    }
    if comparison.rounds > 0 {
        writeln!(out, "\nmedians of {} rounds:\n{table}", comparison.rounds)?;
    }
    for &drill in &comparison.drills {
        let mut findings = Vec::new();
        for side in comparison.sides().into_iter().filter(|&side| side != Side::Noop) {
            let result = drill::run(drill, comparison, side)?;
            writeln!(out, "{drill:?} {side:?}: {result}")?;
            comparison.record(&json!({"side": format!("{side:?}"), "drill": format!("{drill:?}"), "result": result}))?;
            findings.push(result);
        }
        if let [ours, theirs] = &findings[..]
            && let Some(times) = ours.times(theirs)
        {
            writeln!(out, "{drill:?} ours to theirs: {times}")?;
        }
    }
    Ok(())
}

/// Runs one workload on one side, on a new cluster; `None` if the side does not support it.
fn one(comparison: &Comparison, side: Side, workload: Workload) -> Result<Option<Report>> {
    if side == Side::Noop {
        return noop(comparison, workload);
    }
    let (mut cluster, scratch) = comparison.cluster(side)?;
    let mut target = Target::of(&cluster);
    target.leader_first()?;
    let report = runner::run(workload, &comparison.load, &target)
        .with_context(|| format!("{} on {side:?}", workload.name()))?;
    for node in 0..NODES {
        // A server that does not stop is reported, but does not invalidate the measurement.
        if let Err(error) = cluster.terminate(node, STOP_TIMEOUT) {
            eprintln!("{error:#}");
        }
    }
    drop(scratch);
    Ok(Some(report))
}

fn noop(comparison: &Comparison, workload: Workload) -> Result<Option<Report>> {
    let is_unary =
        matches!(workload, Workload::Put | Workload::Get | Workload::Range | Workload::Txn);
    let (Some(path), true) = (&comparison.noop, is_unary) else { return Ok(None) };
    let mut child = NoopServer::start(path)?;
    let (endpoints, pids) = (vec![child.endpoint()?], vec![child.0.id()]);
    let target = Target { endpoints, pids, is_empty: false, access: Access::default() };
    runner::run(workload, &comparison.load, &target).map(Some)
}

struct NoopServer(Child);

impl NoopServer {
    fn start(path: &Path) -> Result<Self> {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(path).stdout(Stdio::piped());
        Ok(Self(command.spawn().with_context(|| format!("start {}", path.display()))?))
    }

    fn endpoint(&mut self) -> Result<String> {
        let mut line = String::new();
        let stdout = self.0.stdout.take().context("a piped output")?;
        BufReader::new(stdout).read_line(&mut line)?;
        ensure!(line.starts_with("http://"), "the no-op server printed {line:?}");
        Ok(line.trim().to_owned())
    }
}

impl Drop for NoopServer {
    fn drop(&mut self) {
        if let Err(error) = self.0.kill().and_then(|()| self.0.wait()) {
            eprintln!("could not end the no-op server: {error}");
        }
    }
}
