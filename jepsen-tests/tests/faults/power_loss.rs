//! Members lose power under load, all at once or one again and again: everything acknowledged is there afterwards.
//!
//! What a member did not sync is gone (`conclave_jepsen_tests::disk`), which a kill does not take away.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Parser;
use conclave_jepsen_tests::members;
use conclave_jepsen_tests::run::{Plan, run};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::disks::{ALL, turn};
use crate::support::{HASTY, Nodes, START_TIMEOUT, Writers, is_long};
use crate::sync_kills::{can_trace, traced};

const WRITERS: usize = 12;
/// States are flushed and logs cut all the time, and a member that was away needs a snapshot.
const FLAGS: [&str; 3] = [HASTY, "--snapshot-count=50", "--snapshot-catchup-entries=10"];
/// A cut after a restart falls into its recovery, or the snapshot that it receives.
const RECOVERY_MS: u64 = 1500;
/// A machine that happens to sync all its disks hides what was not synced.
const UNSYNCED_ATTEMPTS: usize = 3;

fn seeded(test: &str) -> StdRng {
    let seed: u64 = rand::random();
    eprintln!("{test}: seed {seed}");
    StdRng::seed_from_u64(seed)
}

/// Returns after some puts through a node, so that a fault does not come at the beginning of the load.
async fn load(nodes: &Nodes, node: usize, name: &str, rng: &mut StdRng) {
    let client = nodes.client(node).await;
    for number in 0..rng.random_range(20..100) {
        client.insist(&format!("p-{name}-{number}"), b"v").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_all_lose_power_at_once() {
    let test = "all_lose_power_at_once";
    let Some(_turn) = turn(test).await else { return };
    let mut nodes = Nodes::on_disks(3, &FLAGS);
    nodes.serve().await;
    let mut rng = seeded(test);
    let mut acknowledged = BTreeMap::new();
    let cuts = if is_long() { 30 } else { 2 };
    for cut in 0..cuts {
        let name = format!("k-{cut}");
        let writers = Writers::start(&name, &nodes.cluster.endpoints(), WRITERS);
        load(&nodes, cut % 3, &name, &mut rng).await;
        nodes.cut_power(&ALL);
        acknowledged.append(&mut writers.stop().await);
        nodes.restore(&ALL);
        nodes.all_serve().await;
        nodes.must_have("k", &acknowledged).await;
        nodes.must_be_equal().await;
    }
    println!("{} puts acknowledged, the power of all cut {cuts} times", acknowledged.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_loses_power_again_and_again_costs_nothing_acknowledged() {
    let test = "a_member_that_loses_power_again_and_again";
    let Some(_turn) = turn(test).await else { return };
    let mut nodes = Nodes::on_disks(3, &FLAGS);
    nodes.serve().await;
    let mut rng = seeded(test);
    let mut acknowledged = BTreeMap::new();
    let rounds = if is_long() { 30 } else { 2 };
    for round in 0..rounds {
        let leader = nodes.leader().await;
        // The leader, then a follower.
        let victim = if round % 2 == 0 { leader } else { (leader + 1) % 3 };
        let name = format!("k-{round}");
        let writers = Writers::start(&name, &nodes.cluster.endpoints(), WRITERS);
        load(&nodes, victim, &name, &mut rng).await;
        nodes.cut_power(&[victim]);
        // The others go on, so far that their logs no longer reach back to where the victim was.
        load(&nodes, (victim + 1) % 3, &format!("{name}-others"), &mut rng).await;
        nodes.restore(&[victim]);
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..RECOVERY_MS))).await;
        nodes.cut_power(&[victim]);
        nodes.restore(&[victim]);
        nodes.all_serve().await;
        acknowledged.append(&mut writers.stop().await);
        nodes.must_have("k", &acknowledged).await;
        nodes.must_be_equal().await;
    }
    println!("{} puts acknowledged, the power of one cut {} times", acknowledged.len(), 2 * rounds);
}

#[derive(Parser)]
struct Options {
    #[command(flatten)]
    plan: Plan,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_and_event_stays_true_when_members_lose_power() {
    let Some(_turn) = turn("every_answer_and_event_stays_true").await else { return };
    let nemesis = "power-cut,power-cut-leader,power-cut-all";
    let flags = format!("--flags={}", FLAGS.join(" "));
    let words = ["faults", "--progress", "--binary", "conclave", "--nemesis", nemesis, &flags];
    let mut plan = Options::parse_from(words).plan;
    plan.binary = members::program();
    plan.duration = Duration::from_secs(if is_long() { 120 } else { 8 });
    let report = run(&plan).await.expect("the run can be made");
    let (seed, violations) = (report.seed, &report.findings.violations);
    assert!(violations.is_empty(), "seed {seed}: {violations:#?}\nkept: {:?}", report.kept);
    let (counts, faults) = (report.counts, report.faults);
    println!("seed {seed}: {counts:?} answered, refused, unknown; faults {faults:?}");
}

/// Writes while nobody syncs, cuts the power of all, and returns how much of what was acknowledged is lost; all of
/// it if a member does not start any more.
async fn lost_without_syncs(nodes: &mut Nodes, name: &str, rng: &mut StdRng) -> usize {
    let careless = traced(nodes.cluster.program(), "retval=0");
    for node in ALL {
        nodes.cluster.start_as(node, &careless).expect("strace starts");
    }
    nodes.all_serve().await;
    let writers = Writers::start(name, &nodes.cluster.endpoints(), WRITERS);
    load(nodes, 0, name, rng).await;
    nodes.cut_power(&ALL);
    let acknowledged = writers.stop().await;
    assert!(!acknowledged.is_empty(), "nothing was written");
    nodes.restore(&ALL);
    let served = members::wait_until_serving(&nodes.cluster.endpoints(), START_TIMEOUT).await;
    if let Err(error) = served {
        eprintln!("a member lost so much that it does not serve: {error:#}");
        return acknowledged.len();
    }
    let (_, keys) = nodes.client(0).await.keys(name).await.expect("an answer");
    let lost = acknowledged.iter().filter(|(key, revision)| keys.get(*key) != Some(*revision));
    let lost = lost.count();
    eprintln!("{lost} of {} acknowledged puts are lost where nobody synced", acknowledged.len());
    lost
}

/// The test of these tests: they would see a server that acknowledges what it did not sync.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_cut_takes_what_was_acknowledged_without_a_sync() {
    let test = "a_power_cut_takes_what_was_not_synced";
    let Some(_turn) = turn(test).await else { return };
    if !can_trace(test) {
        return;
    }
    let mut rng = seeded(test);
    for attempt in 0..UNSYNCED_ATTEMPTS {
        let mut nodes = Nodes::on_disks(3, &[]);
        nodes.serve().await;
        let before = nodes.client(0).await.insist("before", b"synced").await;
        nodes.cluster.kill_together(&ALL).expect("they can be killed");
        if lost_without_syncs(&mut nodes, &format!("k-{attempt}"), &mut rng).await > 0 {
            nodes.must_have("before", &BTreeMap::from([("before".to_owned(), before)])).await;
            return;
        }
    }
    panic!("what nobody synced survived {UNSYNCED_ATTEMPTS} times");
}
