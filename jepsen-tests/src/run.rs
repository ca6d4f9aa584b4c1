//! One run: start nodes, load and watch them through faults, heal, wait for everybody to see the end, check.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use conclave_benches::cluster::{Cluster, Program};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::history::{
    History, Operation, Outcome, Range, Request, Revision, WatchSession, in_range,
};
use crate::load::{Client, KEY_COUNT, KEYS_END, KEYS_START, Stage, key_name};
use crate::members;
use crate::nemesis::{Adversary, Nemesis};
use crate::verdict::{Fault, Violation};
use crate::watcher::{Habit, Watcher};
use crate::{Findings, check};

const NODES: usize = 3;
const CLIENTS: u32 = 8;
const PINNED_CLIENTS: u32 = 6;
const WATCHERS: u32 = 12;
/// The client that speaks before and after the load.
const NARRATOR: u32 = 99;
const HEAL_TIMEOUT: Duration = Duration::from_secs(60);
const FINISH_TIMEOUT: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(50);
/// Below this many answers per second of its planned time the run has shown nothing.
const OK_PER_SECOND_MIN: f64 = 20.0;
/// Where servers are slow it goes on until it has shown enough, at most for so many times the planned time.
const EXTENSION_MAX: u32 = 5;

/// What to run.
#[derive(Clone, Debug, Args)]
pub struct Plan {
    /// The server program; one named `conclave…` is started with its `server` verb, others with etcd's flags alone.
    #[arg(long)]
    pub binary: PathBuf,
    /// How long the load and the faults go on: `90s`, `5m`.
    #[arg(long, default_value = "60s", value_parser = duration)]
    pub duration: Duration,
    /// Decides requests, watchers and faults; random by default.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Faults to do.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "kill,kill-leader,kill-majority,kill-all,pause,pause-leader,pause-all,restart"
    )]
    pub nemesis: Vec<Nemesis>,
    /// Requests per second over all clients, as far as the servers keep up.
    #[arg(long, default_value_t = 400)]
    pub rate: u32,
    /// Patience with one request, in milliseconds.
    #[arg(long, default_value_t = 1000)]
    pub timeout_ms: u64,
    /// Let some watchers ask for progress notices.
    #[arg(long)]
    pub progress: bool,
    /// Further flags for every node, separated by spaces.
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    pub flags: String,
    /// Keep data, logs and history here even if the run passes.
    #[arg(long)]
    pub keep: Option<PathBuf>,
}

/// Parses `90s`, `5m` or plain seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = match text.strip_suffix('m') {
        Some(minutes) => (minutes, 60),
        None => (text.strip_suffix('s').unwrap_or(text), 1),
    };
    let number: u64 = number.parse().map_err(|error| format!("{text}: {error}"))?;
    Ok(Duration::from_secs(number * unit))
}

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
    cluster.start_all()?;
    let mut adversary = Adversary::new(plan.nemesis.clone(), seed);
    let (history, mut violations) = perform(plan, seed, &mut cluster, &mut adversary).await?;
    history.save(&dir.join("history.jsonl"))?;
    let mut findings = check(&history);
    findings.violations.append(&mut violations);
    let counts = counts(&history.operations);
    findings.violations.extend(coverage(plan, counts.0, &adversary));
    drop(cluster);
    let is_wrong = !findings.violations.is_empty();
    let kept = if plan.keep.is_some() { Some(dir) } else { is_wrong.then(|| home.keep()) };
    let faults = adversary.done().iter().map(|(&kind, &count)| (kind, count)).collect();
    Ok(Report { seed, counts, findings, faults, kept })
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
    // A fault takes about 3.5 s on average; each kind comes once before any comes twice.
    let expected =
        plan.nemesis.len().min(usize::try_from(plan.duration.as_secs() / 8).unwrap_or(usize::MAX));
    if adversary.done().len() < expected {
        missing.push(format!("only these faults were done: {:?}", adversary.done()));
    }
    missing.into_iter().map(|detail| Violation::new(Fault::Inconclusive, detail)).collect()
}

async fn perform(
    plan: &Plan,
    seed: u64,
    cluster: &mut Cluster,
    adversary: &mut Adversary,
) -> Result<(History, Vec<Violation>)> {
    let stage = Arc::new(Stage {
        endpoints: cluster.endpoints(),
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
    harass(cluster, adversary, (plan, &stage), &mut violations).await?;
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
    note_deaths(cluster, &mut violations)?;
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
    cluster: &mut Cluster,
    adversary: &mut Adversary,
    (plan, stage): (&Plan, &Stage),
    violations: &mut Vec<Violation>,
) -> Result<()> {
    let begun = Instant::now();
    loop {
        tokio::time::sleep(adversary.calm()).await;
        note_deaths(cluster, violations)?;
        let answered = stage.answered.load(Ordering::Relaxed);
        let is_enough = || coverage(plan, answered, adversary).is_empty();
        let gone = begun.elapsed();
        if gone >= plan.duration && (gone >= plan.duration * EXTENSION_MAX || is_enough()) {
            break;
        }
        if let Err(error) = adversary.strike(cluster).await {
            violations.push(Violation::new(Fault::NodeDied, format!("{error:#}")));
        }
    }
    for node in 0..cluster.nodes().len() {
        cluster.resume(node)?;
        cluster.start(node)?;
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

/// The last changes of a run: what a watcher has to have seen in the end.
struct Last {
    /// Revision of the deletion of every key.
    delete: Revision,
    /// Revision of the put of each key after that.
    puts: Vec<Revision>,
    /// The last of them.
    put: Revision,
}

impl Last {
    /// The last revision that `session` has to deliver.
    fn wanted_by(&self, session: &WatchSession) -> Revision {
        if session.no_puts {
            return self.delete;
        }
        let keys = (0..KEY_COUNT)
            .filter(|&index| in_range(&key_name(index), &session.start, &session.end));
        keys.map(|index| self.puts[index]).max().unwrap_or(0)
    }
}

/// With everything healed: puts every key, deletes them all, puts them again, and reads them from every member.
async fn finale(stage: &Arc<Stage>, seed: u64) -> (Vec<Operation>, Last) {
    let mut narrator = Client::new(stage.clone(), NARRATOR, 0, true, seed);
    let mut revisions = Vec::new();
    for round in 0..2 {
        for index in 0..KEY_COUNT {
            let put =
                Request::Put { key: key_name(index), value: format!("final-{round}-{index}") };
            revisions.push(insist(&mut narrator, put).await);
        }
        if round == 0 {
            let delete = Request::Delete { start: KEYS_START.into(), end: KEYS_END.into() };
            revisions.push(insist(&mut narrator, delete).await);
        }
    }
    let mut operations = narrator.into_operations();
    for node in 0..stage.endpoints.len() {
        let mut reader = Client::new(stage.clone(), NARRATOR + 1 + node as u32, node, false, seed);
        for serializable in [false, true] {
            let (start, end) = (KEYS_START.to_owned(), KEYS_END.to_owned());
            insist(
                &mut reader,
                Request::Range(Range { start, end, revision: 0, limit: 0, serializable }),
            )
            .await;
        }
        operations.append(&mut reader.into_operations());
    }
    let puts = revisions.split_off(KEY_COUNT + 1);
    let put = puts.last().copied().unwrap_or(0);
    (operations, Last { delete: revisions[KEY_COUNT], puts, put })
}

/// Sends a request until it is answered. A repeated put is a new change with the same value: only the first
/// unknown one could be confused, so values carry the attempt.
async fn insist(client: &mut Client, request: Request) -> Revision {
    let deadline = Instant::now() + FINISH_TIMEOUT;
    let mut attempt = 0;
    while Instant::now() < deadline {
        let request = match request.clone() {
            Request::Put { key, value } => {
                Request::Put { key, value: format!("{value}-{attempt}") }
            }
            other => other,
        };
        if let Some(Outcome::Ok { revision, .. }) = client.perform(request).await {
            return revision;
        }
        attempt += 1;
        tokio::time::sleep(POLL).await;
    }
    0
}

/// The watchers of a run.
struct Watchers {
    tasks: JoinSet<Vec<WatchSession>>,
    stop: watch::Sender<bool>,
    /// Those that have to see the end: how far they are, and what they watch.
    awaited: Vec<(Arc<AtomicI64>, WatchSession)>,
}

impl Watchers {
    fn spawn(stage: &Arc<Stage>, progress: bool, seed: u64) -> Self {
        let (stop, stopped) = watch::channel(false);
        let mut watchers = Self { tasks: JoinSet::new(), stop, awaited: Vec::new() };
        for id in 0..WATCHERS {
            let habit = match id {
                0..6 => Habit::Pinned,
                6..9 => Habit::Roaming,
                _ => Habit::Wandering,
            };
            let asks_progress = progress && id % 2 == 0;
            let watcher =
                Watcher::new(stage.clone(), id, habit, asks_progress, mix(seed, 1000 + id));
            if watcher.must_finish() {
                watchers.awaited.push(watcher.position());
            }
            watchers.tasks.spawn(watcher.run(stopped.clone()));
        }
        watchers
    }

    /// Waits until everybody has seen the last change it wants.
    async fn wait(&self, last: &Last, violations: &mut Vec<Violation>) {
        let deadline = Instant::now() + FINISH_TIMEOUT;
        for (next, session) in &self.awaited {
            let wanted = last.wanted_by(session);
            while next.load(Ordering::Relaxed) <= wanted && Instant::now() < deadline {
                tokio::time::sleep(POLL).await;
            }
            let next = next.load(Ordering::Relaxed);
            if next <= wanted {
                let detail = format!(
                    "watcher {} on node {} got to revision {} of {wanted}",
                    session.watcher,
                    session.node,
                    next - 1
                );
                violations.push(Violation::new(Fault::Incomplete, detail));
            }
        }
    }

    async fn stop(mut self) -> Result<Vec<WatchSession>> {
        self.stop.send_replace(true);
        let mut sessions = Vec::new();
        while let Some(recorded) = self.tasks.join_next().await {
            sessions.append(&mut recorded?);
        }
        Ok(sessions)
    }
}

/// Watches everything from the first revision on every member: the whole history as the store tells it.
async fn read_back(
    stage: &Arc<Stage>,
    last: &Last,
    seed: u64,
    violations: &mut Vec<Violation>,
) -> Result<Vec<WatchSession>> {
    let (stop, stopped) = watch::channel(false);
    let mut readers = Watchers { tasks: JoinSet::new(), stop, awaited: Vec::new() };
    for node in 0..stage.endpoints.len() {
        let reader = Watcher::new(
            stage.clone(),
            node as u32,
            Habit::Pinned,
            false,
            mix(seed, 2000 + node as u32),
        );
        readers.awaited.push(reader.position());
        readers.tasks.spawn(reader.run(stopped.clone()));
    }
    readers.wait(last, violations).await;
    readers.stop().await
}
