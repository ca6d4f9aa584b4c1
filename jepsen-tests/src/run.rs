//! One run: start nodes, load and watch them through faults, heal, wait for everybody to see the end, check.
//!
//! | module | what |
//! |---|---|
//! | `plan` | what is asked for |
//! | `watchers` | who watches |
//! | `finale` | changes that everybody has to see |

mod finale;
mod plan;
mod watchers;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use conclave_benches::cluster::{Cluster, Node, Program};
use tokio::task::JoinSet;

use self::finale::finale;
use self::watchers::{Watchers, read_back};
use crate::disk::Disk;
use crate::history::{History, Operation, Outcome};
use crate::load::{Client, Stage};
use crate::nemesis::{Adversary, Nemesis, Targets};
use crate::network::Network;
use crate::verdict::{Fault, Violation};
use crate::{Findings, check, members};

pub use plan::Plan;

const NODES: usize = 3;
const CLIENTS: u32 = 8;
const PINNED_CLIENTS: u32 = 6;
/// Room for the segments that a log keeps, and the state.
const DISK_MEGABYTES: u64 = 400;
const HEAL_TIMEOUT: Duration = Duration::from_secs(60);
const FINISH_TIMEOUT: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(50);
/// Time for one fault, the calm before it included: mostly 3.5 s, of a partition 6 s.
const FAULT_TIME_MAX: Duration = Duration::from_secs(7);
/// Below this many answers per second of its planned time the run has shown nothing.
const OK_PER_SECOND_MIN: f64 = 20.0;
/// Where servers are slow it goes on until it has shown enough, at most for so many times the planned time.
const EXTENSION_MAX: u32 = 5;

/// What one run came to.
#[derive(Debug)]
pub struct Report {
    /// The seed of the run.
    pub seed: u64,
    /// Requests answered, refused, of unknown outcome.
    pub counts: (usize, usize, usize),
    /// What the checkers say, faults of the run itself included.
    pub findings: Findings,
    /// How often each fault was done.
    pub faults: Vec<(Nemesis, u32)>,
    /// Where data, logs and history are, if kept.
    pub kept: Option<PathBuf>,
}

/// Runs and checks; keeps the evidence if something is wrong.
///
/// # Errors
/// If nodes cannot be started or the cluster never serves.
pub async fn run(plan: &Plan) -> Result<Report> {
    let seed = plan.seed.unwrap_or_else(rand::random);
    let home = tempfile::Builder::new().prefix("conclave-jepsen-").tempdir()?;
    let dir = plan.keep.clone().unwrap_or_else(|| home.path().to_owned());
    std::fs::create_dir_all(&dir)?;
    let flags: Vec<String> = plan.flags.split_whitespace().map(str::to_owned).collect();
    let mut cluster = Cluster::create(Program::new(&plan.binary).with_flags(&flags), &dir, NODES)?;
    let is_cut = plan.nemesis.iter().any(|kind| kind.is_partition());
    let network = if is_cut { Some(Network::between(&mut cluster).await?) } else { None };
    let loses_power = plan.nemesis.iter().any(|kind| kind.is_power_cut());
    let disks = if loses_power { disks(&cluster)? } else { Vec::new() };
    cluster.start_all()?;
    let mut adversary = Adversary::new(plan.nemesis.clone(), seed);
    let mut targets = Targets { cluster: &mut cluster, network, disks };
    let performed = perform(plan, seed, &mut targets, &mut adversary).await;
    let disks = targets.disks;
    // Before its disks, which are unmounted also after an error.
    drop(cluster);
    drop(disks);
    let (history, mut violations) = performed?;
    history.save(&dir.join("history.jsonl"))?;
    let mut findings = check(&history);
    findings.violations.append(&mut violations);
    let counts = counts(&history.operations);
    findings.violations.extend(coverage(plan, counts.0, &adversary));
    let is_wrong = !findings.violations.is_empty();
    let kept = if plan.keep.is_some() { Some(dir) } else { is_wrong.then(|| home.keep()) };
    let faults = adversary.done().iter().map(|(&kind, &count)| (kind, count)).collect();
    Ok(Report { seed, counts, findings, faults, kept })
}

/// A disk that can lose power under the directory of every node.
fn disks(cluster: &Cluster) -> Result<Vec<Disk>> {
    let disk = |node: &Node| {
        let home = node.data_dir().with_file_name("disk");
        Disk::create(&home, node.data_dir(), DISK_MEGABYTES)
    };
    cluster.nodes().iter().map(disk).collect()
}

fn counts(operations: &[Operation]) -> (usize, usize, usize) {
    let count = |wanted: fn(&Outcome) -> bool| {
        operations.iter().filter(|operation| wanted(&operation.outcome)).count()
    };
    (
        count(|outcome| matches!(outcome, Outcome::Ok { .. })),
        count(|outcome| matches!(outcome, Outcome::Failed(_))),
        count(|outcome| matches!(outcome, Outcome::Unknown(_))),
    )
}

/// A run that did little shows little: that is a failure, not a pass.
fn coverage(plan: &Plan, answered: usize, adversary: &Adversary) -> Vec<Violation> {
    let mut missing = Vec::new();
    if (answered as f64) < OK_PER_SECOND_MIN * plan.duration.as_secs_f64() {
        missing.push(format!("only {answered} requests were answered in {:?}", plan.duration));
    }
    if adversary.done().len() < kinds_due(plan) {
        missing.push(format!("only these faults were done: {:?}", adversary.done()));
    }
    missing.into_iter().map(|detail| Violation::new(Fault::Inconclusive, detail)).collect()
}

/// So many kinds of faults the run has to show: each comes once before any comes twice, so that a run of the usual
/// 100 s shows them all. Where servers are slow it is extended until it has.
fn kinds_due(plan: &Plan) -> usize {
    let faults = plan.duration.as_secs() / FAULT_TIME_MAX.as_secs();
    plan.nemesis.len().min(usize::try_from(faults).unwrap_or(usize::MAX))
}

async fn perform(
    plan: &Plan,
    seed: u64,
    targets: &mut Targets<'_>,
    adversary: &mut Adversary,
) -> Result<(History, Vec<Violation>)> {
    let stage = Arc::new(Stage {
        endpoints: targets.cluster.endpoints(),
        clock: Instant::now(),
        is_over: AtomicBool::new(false),
        newest: AtomicI64::new(1),
        answered: AtomicUsize::new(0),
        request_timeout: Duration::from_millis(plan.timeout_ms),
        pause: Duration::from_secs(1) * CLIENTS / plan.rate.max(1),
    });
    members::wait_until_serving(&stage.endpoints, HEAL_TIMEOUT)
        .await
        .context("the cluster starts")?;
    let mut violations = Vec::new();
    let watchers = Watchers::spawn(&stage, plan.progress, seed);
    let mut clients = spawn_clients(&stage, seed);
    harass(targets, adversary, (plan, &stage), &mut violations).await?;
    stage.is_over.store(true, Ordering::Relaxed);
    let mut operations = Vec::new();
    while let Some(recorded) = clients.join_next().await {
        operations.append(&mut recorded?);
    }
    if let Err(error) = members::wait_until_serving(&stage.endpoints, HEAL_TIMEOUT).await {
        violations.push(Violation::new(Fault::NotHealed, format!("{error:#}")));
        return Ok((History { operations, sessions: watchers.stop().await? }, violations));
    }
    let (mut final_operations, last) = finale(&stage, seed).await;
    operations.append(&mut final_operations);
    watchers.wait(&last, &mut violations).await;
    let mut sessions = watchers.stop().await?;
    sessions.append(&mut read_back(&stage, &last, seed, &mut violations).await?);
    members::compare(&stage.endpoints, last.put, &mut violations).await;
    note_deaths(targets.cluster, &mut violations)?;
    Ok((History { operations, sessions }, violations))
}

fn spawn_clients(stage: &Arc<Stage>, seed: u64) -> JoinSet<Vec<Operation>> {
    let mut clients = JoinSet::new();
    for id in 0..CLIENTS {
        let node = id as usize % stage.endpoints.len();
        let client = Client::new(stage.clone(), id, node, id >= PINNED_CLIENTS, mix(seed, id));
        clients.spawn(client.run());
    }
    clients
}

fn mix(seed: u64, id: u32) -> u64 {
    seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(u64::from(id))
}

/// Faults for the planned time, and until that has shown enough; all healed at the end.
async fn harass(
    targets: &mut Targets<'_>,
    adversary: &mut Adversary,
    (plan, stage): (&Plan, &Stage),
    violations: &mut Vec<Violation>,
) -> Result<()> {
    let begun = Instant::now();
    loop {
        tokio::time::sleep(adversary.calm()).await;
        note_deaths(targets.cluster, violations)?;
        let answered = stage.answered.load(Ordering::Relaxed);
        let is_enough = || coverage(plan, answered, adversary).is_empty();
        let gone = begun.elapsed();
        if gone >= plan.duration && (gone >= plan.duration * EXTENSION_MAX || is_enough()) {
            break;
        }
        if let Err(error) = adversary.strike(targets).await {
            violations.push(Violation::new(Fault::NodeDied, format!("{error:#}")));
        }
    }
    for node in 0..targets.cluster.nodes().len() {
        targets.cluster.resume(node)?;
        targets.cluster.start(node)?;
    }
    Ok(())
}

/// A node that ends on its own is a fault of the server; it is started again all the same.
fn note_deaths(cluster: &mut Cluster, violations: &mut Vec<Violation>) -> Result<()> {
    for (node, status) in cluster.reap_dead()? {
        let log = cluster.nodes()[node].log_path().to_owned();
        let detail =
            format!("node {node} ended with {status}; its last words: {}", last_words(&log));
        violations.push(Violation::new(Fault::NodeDied, detail));
        cluster.start(node)?;
    }
    Ok(())
}

fn last_words(log: &Path) -> String {
    let text = std::fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let text = text.unwrap_or_default();
    let mut lines: Vec<&str> = text.lines().rev().take(3).collect();
    lines.reverse();
    lines.join(" | ")
}

#[cfg(test)]
mod tests {
    use clap::{Args as _, Command, FromArgMatches as _};

    use super::*;

    #[test]
    fn a_run_of_the_usual_time_shows_every_fault() {
        let kinds = |flags: &[&str]| {
            let words = [&["run", "--binary", "conclave"], flags].concat();
            let matches = Plan::augment_args(Command::new("run")).get_matches_from(words);
            let plan = Plan::from_arg_matches(&matches).expect("a plan");
            (kinds_due(&plan), plan.nemesis.len())
        };
        assert_eq!(kinds(&[]), (13, 13));
        assert_eq!(kinds(&["--duration", "20s"]), (2, 13));
        assert_eq!(kinds(&["--nemesis", "kill-all"]), (1, 1));
    }
}
