//! `conclave-jepsen`: real nodes under faults with checked histories, and two servers compared request by request.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use conclave_jepsen_tests::history::History;
use conclave_jepsen_tests::run::{self, Plan};
use conclave_jepsen_tests::{Findings, check};

/// Violations printed; the rest are counted.
const PRINTED_MAX: usize = 20;

/// Jepsen-style tests of etcd-compatible servers.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start three nodes, load them under faults, check the history.
    Run(Plan),
    /// Check a history kept from an earlier run.
    Check {
        /// The history.jsonl of the run.
        history: PathBuf,
    },
}

fn main() -> Result<ExitCode> {
    match Cli::parse().command {
        Command::Run(plan) => run_one(&plan),
        Command::Check { history } => judge(&check(&History::load(&history)?)),
    }
}

fn run_one(plan: &Plan) -> Result<ExitCode> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let report = runtime.block_on(run::run(plan))?;
    let mut out = std::io::stdout();
    let (ok, failed, unknown) = report.counts;
    writeln!(
        out,
        "seed {}: {ok} answered, {failed} refused, {unknown} unknown; faults {:?}",
        report.seed, report.faults
    )?;
    if let Some(kept) = &report.kept {
        writeln!(out, "history, logs and data: {}", kept.display())?;
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
