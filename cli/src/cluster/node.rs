//! One server process of a local cluster.

use std::{
    env,
    fs::File,
    os::unix::process::ExitStatusExt,
    process::{ExitStatus, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    process::{Child, Command},
    time::{Instant, timeout_at},
};

use super::layout::Place;
use crate::failure::Failure;

/// A started server process.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) place: Place,
    child: Child,
    pid: Option<u32>,
    /// Set once the process has ended.
    status: Option<ExitStatus>,
}

impl Node {
    /// Starts this same binary as a server.
    ///
    /// # Errors
    /// If the log cannot be written or the process does not start.
    pub(super) fn start(place: Place, initial_cluster: &str) -> Result<Self, Failure> {
        let fail = |error: std::io::Error| Failure::error(format!("{}: {error}", place.name));
        let log = File::options().create(true).append(true).open(&place.log).map_err(fail)?;
        let child = Command::new(env::current_exe().map_err(fail)?)
            .arg("server")
            .args(["--name", &place.name])
            .arg("--data-dir")
            .arg(&place.data_dir)
            .args(["--listen-client-urls", &place.client_url()])
            .args(["--advertise-client-urls", &place.client_url()])
            .args(["--listen-peer-urls", &place.peer_url()])
            .args(["--initial-advertise-peer-urls", &place.peer_url()])
            .args(["--initial-cluster", initial_cluster])
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(fail)?)
            .stderr(log)
            // Ctrl-C must reach this process only, which then stops the servers in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(fail)?;
        let pid = child.id();
        Ok(Self { place, child, pid, status: None })
    }

    pub(super) fn is_running(&self) -> bool {
        self.status.is_none()
    }

    pub(super) fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// How the process ended; returned only once.
    pub(super) fn report_death(&mut self) -> Option<String> {
        if self.status.is_some() {
            return None;
        }
        let status = self.child.try_wait().ok().flatten()?;
        self.status = Some(status);
        let how = match (status.code(), status.signal()) {
            (Some(code), _) => format!("ended with code {code}"),
            (None, Some(signal)) => format!("was ended by signal {signal}"),
            (None, None) => "ended".to_owned(),
        };
        let Place { name, .. } = &self.place;
        let last = self.place.last_log_line();
        Some(format!("{name} {how} and is not restarted. Its last log line: {last}"))
    }

    /// Asks the process to stop.
    pub(super) fn terminate(&self) {
        let pid = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // Fails only if the process has already ended.
            kill_process(pid, Signal::TERM).ok();
        }
    }

    /// Waits until `deadline` for the process to end, then kills it. Returns whether it ended by
    /// itself.
    pub(super) async fn ended_by(&mut self, deadline: Instant) -> bool {
        if self.status.is_some() || timeout_at(deadline, self.child.wait()).await.is_ok() {
            return true;
        }
        // If even that fails, nothing more can be done here.
        self.child.kill().await.ok();
        false
    }
}
