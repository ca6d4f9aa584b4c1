//! Three real nodes under every fault for a minute (`CONCLAVE_JEPSEN_SECONDS`), with everything checked: once under those
//! of processes, and once under those of the network between members.
//!
//! The server is `conclave` beside the test's own binaries (`cargo build --bin conclave`), or `CONCLAVE_BINARY`.

use std::time::Duration;

use clap::Parser;
use conclave_jepsen_tests::members;
use conclave_jepsen_tests::run::{Plan, run};

#[derive(Parser)]
struct Options {
    #[command(flatten)]
    plan: Plan,
}

/// For so many seconds if nobody says otherwise.
const SECONDS: u64 = 60;

/// Runs with these faults, and finds nothing wrong. What was done.
async fn survives(nemesis: &str) -> String {
    let mut plan =
        Options::parse_from(["it", "--progress", "--binary", "conclave", "--nemesis", nemesis])
            .plan;
    plan.binary = members::program();
    let seconds = std::env::var("CONCLAVE_JEPSEN_SECONDS");
    let seconds = seconds.map(|seconds| seconds.parse().expect("a number of seconds"));
    plan.duration = Duration::from_secs(seconds.unwrap_or(SECONDS));
    let report = run(&plan).await.expect("the run can be made");
    let seed = report.seed;
    let violations = &report.findings.violations;
    assert!(
        violations.is_empty(),
        "{violations:#?}\nhistory, logs and data: {:?}\nagain: conclave-jepsen --binary {} --duration {}s \
         --progress --nemesis {nemesis} --seed {seed}",
        report.kept,
        plan.binary.display(),
        plan.duration.as_secs(),
    );
    let (counts, faults) = (report.counts, report.faults);
    format!("seed {seed}: {counts:?} answered, refused, unknown; faults {faults:?}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_writes_survive_and_every_watcher_sees_everything_once_in_order() {
    let kinds = "kill,kill-leader,kill-majority,kill-all,pause,pause-leader,pause-all,restart";
    println!("{}", survives(kinds).await);
}

/// Clients stay connected to every member, also to those that hear no quorum.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn they_do_so_too_when_members_do_not_hear_each_other() {
    let kinds = "isolate,isolate-leader,mute-leader,deafen-leader,bridge,kill-leader";
    println!("{}", survives(kinds).await);
}
