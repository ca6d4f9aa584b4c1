//! What a run is asked to do.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Args;

use crate::nemesis::Nemesis;

/// What to run.
#[derive(Clone, Debug, Args)]
pub struct Plan {
    /// The server program; one named `conclave…` is started with its `server` verb, others with etcd's flags alone.
    #[arg(long)]
    pub binary: PathBuf,
    /// How long the load and the faults go on: `90s`, `5m`.
    #[arg(long, default_value = "100s", value_parser = duration)]
    pub duration: Duration,
    /// Decides requests, watchers and faults; random by default.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Faults to do.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "kill,kill-leader,kill-majority,kill-all,pause,pause-leader,pause-all,restart,\
                         isolate,isolate-leader,mute-leader,deafen-leader,bridge"
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
