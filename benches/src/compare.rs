//! Ours and the reference side by side: the same load on three nodes each, in turn, never both up at once.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::cluster::{Cluster, Program};
use crate::connection::Connection;
use crate::options::{Load, Workload};
use crate::report::Report;
use crate::runner::{self, Target};
use crate::worker::Material;

const READY_TIMEOUT: Duration = Duration::from_secs(60);
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
const PROBE_PAUSE: Duration = Duration::from_millis(5);

/// What to compare.
#[derive(Clone, Debug, Args)]
pub struct Comparison {
    /// Our server program.
    #[arg(long, default_value = "target/release/conclave")]
    pub ours: PathBuf,
    /// The reference's server program.
    #[arg(long, default_value = "/usr/bin/etcd")]
    pub theirs: PathBuf,
    /// A no-op server as the ceiling; empty: not run.
    #[arg(long, default_value = "")]
    pub noop: PathBuf,
    /// Only ours or only theirs (`ours`, `theirs`); both by default.
    #[arg(long)]
    pub only: Option<String>,
    /// Rounds over all workloads; in each both servers have a turn.
    #[arg(long, default_value_t = 3)]
    pub rounds: usize,
    /// Workloads, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "put,txn,get,get-serializable,mixed,range,watch-fanout,keep-alive,lease-grant")]
    pub workloads: Vec<Workload>,
    /// Where the nodes keep their data; a temporary directory below it is removed afterwards.
    #[arg(long, default_value = "/tmp")]
    pub dir: PathBuf,
    /// Flags for both servers, separated by spaces.
    #[arg(long, default_value = "--quota-backend-bytes=8589934592")]
    pub flags: String,
    /// Also load this many keys of 256 B and measure memory and restart; 0: not.
    #[arg(long, default_value_t = 0)]
    pub load_keys: usize,
    /// Also kill -9 the leader this many times under puts and measure the gap; 0: not.
    #[arg(long, default_value_t = 0)]
    pub failovers: usize,
    /// Append every run as a JSON line to this file.
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// The shape of every run.
    #[command(flatten)]
    pub load: Load,
}

/// Runs the comparison and prints its tables to `out`.
///
/// # Errors
/// If a server does not start or a run fails.
pub fn run(comparison: &Comparison, out: &mut impl Write) -> Result<()> {
    todo_impl(comparison, out)
}
fn todo_impl(_: &Comparison, _: &mut impl Write) -> Result<()> { Ok(()) }
