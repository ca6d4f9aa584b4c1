//! `conclave-jepsen`: real nodes under faults with checked histories, and two servers compared request by request.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use conclave_jepsen_tests::differential::{self, Differential};
use conclave_jepsen_tests::history::History;
use conclave_jepsen_tests::hold::{self, Hold};
use conclave_jepsen_tests::run::{self, Plan};
use conclave_jepsen_tests::{Findings, check};

/// Violations printed; the rest are counted.
const PRINTED_MAX: usize = 20;
/// Of a long answer, characters printed, and how many of them before the first difference.
const CONTEXT_CHARS: usize = 1200;
const CONTEXT_BEFORE: usize = 400;

/// Jepsen-style tests of etcd-compatible servers: starts three nodes, loads them under faults, checks the history.
#[derive(Debug, Parser)]
#[command(version, about, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    plan: Option<Plan>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check a history kept from an earlier run.
    Check {
        /// The history.jsonl of the run.
        history: PathBuf,
    },
    /// Send the same random requests to two servers and compare the answers.
    Differential(Differential),
    /// Hold a lock and change a number under it: for tests that pause or kill the process.
    Hold(Hold),
}

fn main() -> Result<ExitCode> {
    let Cli { command, plan } = Cli::parse();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    match command {
        Some(Command::Check { history }) => judge(&check(&History::load(&history)?)),
        Some(Command::Differential(options)) => {
            compare(&runtime.block_on(differential::run(&options))?)
        }
        Some(Command::Hold(options)) => {
            runtime.block_on(hold::run(&options, &mut std::io::stdout()))?;
            // Without a word to the lock's server, like whoever crashes.
            std::process::exit(0)
        }
        None => {
            let plan = plan.context("--binary is required")?;
            report(&plan, &runtime.block_on(run::run(&plan))?)
        }
    }
}

fn report(plan: &Plan, report: &run::Report) -> Result<ExitCode> {
    let mut out = std::io::stdout();
    let (ok, failed, unknown) = report.counts;
    let seed = report.seed;
    writeln!(
        out,
        "seed {seed}: {ok} answered, {failed} refused, {unknown} unknown; faults {:?}",
        report.faults
    )?;
    if let Some(kept) = &report.kept {
        writeln!(out, "history, logs and data: {}", kept.display())?;
        let (binary, duration) = (plan.binary.display(), plan.duration.as_secs());
        writeln!(
            out,
            "again: conclave-jepsen --binary {binary} --duration {duration}s --seed {seed}"
        )?;
    }
    judge(&report.findings)
}

fn judge(findings: &Findings) -> Result<ExitCode> {
    let mut out = std::io::stdout();
    let Findings { violations, revisions, filled, events } = findings;
    writeln!(
        out,
        "{revisions} revisions replayed ({filled} of unknown outcome), {events} events compared"
    )?;
    for violation in violations.iter().take(PRINTED_MAX) {
        writeln!(out, "VIOLATION {violation}")?;
    }
    writeln!(out, "{} violations", violations.len())?;
    Ok(if violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn compare(verdict: &differential::Verdict) -> Result<ExitCode> {
    let mut out = std::io::stdout();
    let differential::Verdict { seed, requests, kinds, differences, reference_deaths } = verdict;
    writeln!(out, "seed {seed}: {requests} requests compared")?;
    for (kind, count) in kinds {
        writeln!(out, "  {count:6} {kind}")?;
    }
    for request in reference_deaths {
        writeln!(out, "the reference died of: {request}")?;
    }
    for difference in differences {
        for step in &difference.before {
            writeln!(out, "  before: {step}")?;
        }
        writeln!(out, "DIFFERENCE at request {}: {}", difference.number, difference.request)?;
        let (left, right) = (&difference.left, &difference.right);
        writeln!(out, "  left:  {}", around_difference(left, right))?;
        writeln!(out, "  right: {}", around_difference(right, left))?;
    }
    writeln!(out, "{} differences", differences.len())?;
    Ok(if differences.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The part of a long answer where it begins to differ from the other one.
fn around_difference(text: &str, other: &str) -> String {
    let same = text.chars().zip(other.chars()).take_while(|(one, two)| one == two).count();
    text.chars().skip(same.saturating_sub(CONTEXT_BEFORE)).take(CONTEXT_CHARS).collect()
}
