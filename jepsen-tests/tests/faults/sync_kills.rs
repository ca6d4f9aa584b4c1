//! Killed while it syncs: at each of the first 200 fdatasyncs or fsyncs of a thread, by strace.
//!
//! A kill is no power cut: what was written before it survives. What these tests find is an answer given before
//! its record was written, an order of files and renames that cannot be opened again, and a state ahead of its log.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::Command;

use conclave_benches::cluster::Program;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::support::{Nodes, START_TIMEOUT, Writers, is_long, skipped};

const SYNCS: u32 = 200;
const WRITERS: usize = 4;
const SIGKILL: i32 = 9;
/// Alone, a node elects itself at once.
const ALONE: [&str; 2] = ["--heartbeat-interval=20", "--election-timeout=200"];

/// `program` under strace, which does `what` instead of a sync of any of its threads.
pub(crate) fn traced(program: &Program, what: &str) -> Program {
    let inject = format!("inject=fdatasync,fsync:{what}");
    let tracer = ["-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync,fsync", "-e"];
    let mut verb: Vec<String> = tracer.map(str::to_owned).into();
    verb.push(inject);
    // Whoever kills strace kills what it traces.
    verb.extend(["setpriv", "--pdeathsig", "KILL", "--"].map(str::to_owned));
    verb.push(program.path.display().to_string());
    verb.extend(program.verb.iter().cloned());
    Program {
        path: PathBuf::from("strace"),
        verb,
        flags: program.flags.clone(),
        is_tls: program.is_tls,
    }
}

pub(crate) fn can_trace(test: &str) -> bool {
    let traced = Command::new("strace").args(["-qq", "-o", "/dev/null", "true"]).status();
    let can = traced.is_ok_and(|status| status.success());
    if !can {
        skipped(test, "strace does not run here (apt-get install strace; ptrace must be allowed)");
    }
    can
}

/// All of the first [`SYNCS`], or one from each of `count` equal parts of them.
fn numbers(count: u32) -> Vec<u32> {
    if is_long() {
        return (1..=SYNCS).collect();
    }
    let seed = rand::random();
    let mut rng = StdRng::seed_from_u64(seed);
    let part = SYNCS / count;
    let numbers = (0..count).map(|at| at * part + rng.random_range(1..=part)).collect();
    eprintln!("killed at the syncs {numbers:?}");
    numbers
}

/// What was acknowledged, and the newest revision seen.
#[derive(Default)]
struct Ledger {
    acknowledged: BTreeMap<String, i64>,
    newest: i64,
}

impl Ledger {
    /// Starts a node to be killed at its `nth` sync, writes through `endpoints` until then, starts it again and
    /// looks for everything that was ever acknowledged.
    async fn round(&mut self, nodes: &mut Nodes, victim: usize, nth: u32, endpoints: &[String]) {
        let name = format!("k{}-{nth}", self.acknowledged.len());
        let program = traced(nodes.cluster.program(), &format!("signal=SIGKILL:when={nth}"));
        nodes.cluster.start_as(victim, &program).expect("strace starts");
        let writers = Writers::start(&name, endpoints, WRITERS);
        let ended =
            tokio::task::block_in_place(|| nodes.cluster.wait_for_end(victim, START_TIMEOUT));
        let status = ended.expect("a process").unwrap_or_else(|| panic!("no sync number {nth}"));
        assert_eq!(status.signal(), Some(SIGKILL), "sync {nth}: {status}");
        self.acknowledged.append(&mut writers.stop().await);
        nodes.cluster.start(victim).expect("the program starts");
        nodes.serves(victim).await;
        self.verify(nodes, victim, nth).await;
    }

    async fn verify(&mut self, nodes: &Nodes, node: usize, nth: u32) {
        let newest = self.acknowledged.values().copied().max().unwrap_or(0).max(self.newest);
        let (revision, keys) = nodes.client(node).await.keys("k").await.expect("an answer");
        assert!(revision >= newest, "sync {nth}: revision {revision} after {newest}");
        let lost: Vec<_> = self
            .acknowledged
            .iter()
            .filter(|(key, revision)| keys.get(*key) != Some(revision))
            .collect();
        assert!(lost.is_empty(), "sync {nth}: {} acknowledged puts are lost: {lost:?}", lost.len());
        self.newest = revision;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_node_killed_at_any_sync_starts_again_with_all_it_acknowledged() {
    if !can_trace("a_new_node_killed_at_any_sync") {
        return;
    }
    for nth in numbers(4) {
        let mut nodes = Nodes::create(1, &ALONE);
        let endpoints = nodes.cluster.endpoints();
        Ledger::default().round(&mut nodes, 0, nth, &endpoints).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_killed_at_a_sync_again_and_again_loses_nothing() {
    if !can_trace("a_node_killed_at_a_sync_again_and_again") {
        return;
    }
    // The state is flushed and the log cut while it runs, too.
    let flags = [&ALONE[..], &["--snapshot-count=50", "--snapshot-catchup-entries=10"]].concat();
    let mut nodes = Nodes::create(1, &flags);
    let endpoints = nodes.cluster.endpoints();
    let mut ledger = Ledger::default();
    for nth in numbers(4) {
        ledger.round(&mut nodes, 0, nth, &endpoints).await;
        nodes.cluster.kill(0).expect("it can be killed");
    }
    println!("{} puts acknowledged, none lost", ledger.acknowledged.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_killed_at_a_sync_in_turn_lose_nothing() {
    if !can_trace("members_killed_at_a_sync_in_turn") {
        return;
    }
    let mut nodes = Nodes::serving(3, &[]).await;
    let endpoints = nodes.cluster.endpoints();
    let mut ledger = Ledger::default();
    for (turn, nth) in numbers(3).into_iter().enumerate() {
        let victim = turn % 3;
        nodes.cluster.kill(victim).expect("it can be killed");
        ledger.round(&mut nodes, victim, nth, &endpoints).await;
    }
    println!("{} puts acknowledged, none lost", ledger.acknowledged.len());
}
