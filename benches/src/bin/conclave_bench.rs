//! `conclave-bench`: generates load for any etcd-compatible endpoint, and compares our server with
//! the reference.

use std::io::Write;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use conclave_benches::access::AccessOptions;
use conclave_benches::compare::{self, Comparison};
use conclave_benches::options::{Load, Workload};
use conclave_benches::registry::{self, Registry};
use conclave_benches::runner::{self, Target};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Load generator for etcd-compatible servers.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run one workload against a running server.
    Run(Run),
    /// Run workloads against ours and the reference in turn, three nodes each.
    Compare(Comparison),
    /// Fill a registry on three nodes, let sessions die and kill the leader.
    Registry(Registry),
}

#[derive(Debug, Args)]
struct Run {
    /// The kind of load.
    workload: Workload,
    /// Endpoints, `http://host:port` or `https://host:port`, separated by commas.
    #[arg(long, value_delimiter = ',', required = true)]
    endpoints: Vec<String>,
    /// Process ids of the servers: their cost is measured, and the ports must be theirs.
    #[arg(long, value_delimiter = ',')]
    server_pids: Vec<u32>,
    /// The keys are there already (a run before wrote them).
    #[arg(long)]
    keys_loaded: bool,
    /// Print JSON instead of a line.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    access: AccessOptions,
    #[command(flatten)]
    load: Load,
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Run(run) => run_one(run),
        Command::Compare(comparison) => compare::run(&comparison, &mut std::io::stdout()),
        Command::Registry(flags) => registry::run(&flags, &mut std::io::stdout()),
    }
}

fn run_one(run: Run) -> Result<()> {
    let access = run.access.open(&run.endpoints)?;
    let (endpoints, pids) = (run.endpoints, run.server_pids);
    let target = Target { endpoints, pids, is_empty: !run.keys_loaded, access };
    let report = runner::run(run.workload, &run.load, &target)?;
    let mut out = std::io::stdout();
    if run.json {
        serde_json::to_writer(&mut out, &report)?;
        writeln!(out)?;
    } else {
        writeln!(out, "{}", report.line())?;
    }
    for text in &report.error_texts {
        eprintln!("error: {text}");
    }
    Ok(())
}
