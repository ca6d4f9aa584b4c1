//! Three real nodes under every fault for a minute (`CONCLAVE_JEPSEN_SECONDS`), with everything checked.
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_writes_survive_and_every_watcher_sees_everything_once_in_order() {
    let mut plan = Options::parse_from(["it", "--progress", "--binary", "conclave"]).plan;
    plan.binary = members::program();
    if let Ok(seconds) = std::env::var("CONCLAVE_JEPSEN_SECONDS") {
        plan.duration = Duration::from_secs(seconds.parse().expect("a number of seconds"));
    }
    let report = run(&plan).await.expect("the run can be made");
    let seed = report.seed;
    println!(
        "seed {seed}: {:?} answered, refused, unknown; faults {:?}",
        report.counts, report.faults
    );
    let violations = &report.findings.violations;
    assert!(
        violations.is_empty(),
        "{violations:#?}\nhistory, logs and data: {:?}\nagain: conclave-jepsen --binary {} --duration {}s \
         --progress --seed {seed}",
        report.kept,
        plan.binary.display(),
        plan.duration.as_secs(),
    );
}
