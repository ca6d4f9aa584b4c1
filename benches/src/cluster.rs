//! Three (or more) real nodes on loopback, which are started, killed, paused and restarted by pid,
//! never by name.
//!
//! Works for any program that takes etcd's flags, so ours and the reference run under the same
//! harness. Each child is tied to this process (`setpriv --pdeathsig`), so an aborted run leaves
//! nothing behind.

use std::fs::File;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use conclave_testing::port::free_port;

const SIGTERM: i32 = 15;
const EXIT_POLL: Duration = Duration::from_millis(5);

/// A server program, and the arguments before and after the cluster's own flags.
#[derive(Clone, Debug)]
pub struct Program {
    /// Path of the executable.
    pub path: PathBuf,
    /// Arguments before the flags: `server` for the `conclave` binary, none for `etcd`.
    pub verb: Vec<String>,
    /// Further flags, the same on every node.
    pub flags: Vec<String>,
    /// Whether the flags make both ports speak TLS.
    pub is_tls: bool,
}

impl Program {
    /// The program at `path`; one named `conclave…` is started with its `server` verb.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        let ours = name.is_some_and(|name| name.starts_with("conclave"));
        let verb = if ours { vec!["server".to_owned()] } else { Vec::new() };
        Self { path: path.to_owned(), verb, flags: Vec::new(), is_tls: false }
    }

    /// Adds flags to every node.
    #[must_use]
    pub fn with_flags(mut self, flags: &[String]) -> Self {
        self.flags.extend_from_slice(flags);
        self
    }

    /// Adds flags that make both ports of every node speak TLS.
    #[must_use]
    pub fn with_tls(self, flags: &[String]) -> Self {
        Self { is_tls: true, ..self.with_flags(flags) }
    }

    /// Whether this is a good exit after SIGTERM: with code 0, or for etcd also by the signal.
    fn ends_well_with(&self, status: ExitStatus) -> bool {
        let is_ours = !self.verb.is_empty();
        status.success() || (!is_ours && status.signal() == Some(SIGTERM))
    }

    fn scheme(&self) -> &'static str {
        if self.is_tls { "https" } else { "http" }
    }
}

/// One node: its addresses, its directory, and its process while it runs.
#[derive(Debug)]
pub struct Node {
    name: String,
    scheme: &'static str,
    client_port: u16,
    peer_port: u16,
    /// Port under which the others reach it: its peer port, or that of a proxy in front of it.
    advertised_port: u16,
    data_dir: PathBuf,
    log_path: PathBuf,
    child: Option<Child>,
    is_paused: bool,
}

impl Node {
    /// `http://127.0.0.1:PORT` of the client port; `https:` with TLS.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.client_port)
    }

    /// The client port.
    #[must_use]
    pub fn client_port(&self) -> u16 {
        self.client_port
    }

    /// The port for the other nodes.
    #[must_use]
    pub fn peer_port(&self) -> u16 {
        self.peer_port
    }

    /// The process id while the node runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Whether the process is stopped by [`Cluster::pause`].
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.is_paused
    }

    /// Data directory of the node.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Standard output and error of all starts of the node.
    #[must_use]
    pub fn log_path(&self) -> &Path {
        &self.log_path
    }
}

/// Process ids of the nodes as last started, for tests that have to tell the nodes apart. Clones
/// share them.
#[derive(Clone, Debug, Default)]
pub struct Pids(Arc<Mutex<Vec<Option<u32>>>>);

impl Pids {
    /// Ids for `size` nodes, none of which has been started.
    #[must_use]
    pub fn new(size: usize) -> Self {
        Self(Arc::new(Mutex::new(vec![None; size])))
    }

    /// Records the process of node `index`.
    ///
    /// # Panics
    /// If there is no such node.
    pub fn set(&self, index: usize, pid: u32) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)[index] = Some(pid);
    }

    /// All process ids, in the order of the nodes; `None` for a node that was never started.
    #[must_use]
    pub fn all(&self) -> Vec<Option<u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The nodes of one cluster, all running the same program.
#[derive(Debug)]
pub struct Cluster {
    program: Program,
    nodes: Vec<Node>,
    token: String,
    started: Pids,
}

impl Cluster {
    /// Chooses free ports and directories below `dir` for `size` nodes; starts nothing.
    ///
    /// # Errors
    /// If the directories cannot be created.
    pub fn create(program: Program, dir: &Path, size: usize) -> Result<Self> {
        let ports: Vec<u16> = (0..size * 2).map(|_| free_port()).collect();
        let mut nodes = Vec::with_capacity(size);
        for (index, pair) in ports.chunks_exact(2).enumerate() {
            let name = format!("n{index}");
            let home = dir.join(&name);
            std::fs::create_dir_all(&home).with_context(|| format!("make {}", home.display()))?;
            nodes.push(Node {
                scheme: program.scheme(),
                client_port: pair[0],
                peer_port: pair[1],
                advertised_port: pair[1],
                data_dir: home.join("data"),
                log_path: home.join("log"),
                child: None,
                is_paused: false,
                name,
            });
        }
        let token = format!("conclave-{}-{}", std::process::id(), ports[0]);
        Ok(Self { program, nodes, token, started: Pids::new(size) })
    }

    /// Sets the ports under which the nodes reach each other: those of proxies in front of their
    /// peer ports. Call it before any node is started.
    ///
    /// # Panics
    /// If there is not exactly one port per node.
    pub fn advertise(&mut self, ports: &[u16]) {
        assert_eq!(ports.len(), self.nodes.len(), "one port for each node");
        for (node, &port) in self.nodes.iter_mut().zip(ports) {
            node.advertised_port = port;
        }
    }

    /// The process ids of the nodes, kept up to date after further starts.
    #[must_use]
    pub fn started(&self) -> Pids {
        self.started.clone()
    }

    /// All nodes in order.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The program of the nodes.
    #[must_use]
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Client endpoints of all nodes, running or not.
    #[must_use]
    pub fn endpoints(&self) -> Vec<String> {
        self.nodes.iter().map(Node::endpoint).collect()
    }

    /// Process ids of the running nodes.
    #[must_use]
    pub fn pids(&self) -> Vec<u32> {
        self.nodes.iter().filter_map(Node::pid).collect()
    }

    /// Starts every node that is not running.
    ///
    /// # Errors
    /// If a process cannot be started.
    pub fn start_all(&mut self) -> Result<()> {
        (0..self.nodes.len()).try_for_each(|index| self.start(index))
    }

    /// Starts one node; does nothing if it is running.
    ///
    /// # Errors
    /// If the process cannot be started.
    pub fn start(&mut self, index: usize) -> Result<()> {
        let program = self.program.clone();
        self.start_as(index, &program)
    }

    /// Starts one node with another program, such as a tracer around the usual one.
    ///
    /// # Errors
    /// If the process cannot be started.
    pub fn start_as(&mut self, index: usize, program: &Program) -> Result<()> {
        if self.nodes[index].child.is_some() {
            return Ok(());
        }
        let mut command = self.command(index, program);
        let log_path = &self.nodes[index].log_path;
        let log = File::options().create(true).append(true).open(log_path)?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("start {}", program.path.display()))?;
        self.started.set(index, child.id());
        self.nodes[index].child = Some(child);
        self.nodes[index].is_paused = false;
        Ok(())
    }

    fn command(&self, index: usize, program: &Program) -> Command {
        let node = &self.nodes[index];
        let url = |port: u16| format!("{}://127.0.0.1:{port}", node.scheme);
        let members = self.nodes.iter();
        let members: Vec<String> =
            members.map(|node| format!("{}={}", node.name, url(node.advertised_port))).collect();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(&program.path);
        command.args(&program.verb);
        command.args(["--name", &node.name]);
        command.arg("--data-dir").arg(&node.data_dir);
        command.args(["--listen-client-urls", &node.endpoint()]);
        command.args(["--advertise-client-urls", &node.endpoint()]);
        command.args(["--listen-peer-urls", &url(node.peer_port)]);
        command.args(["--initial-advertise-peer-urls", &url(node.advertised_port)]);
        command.args(["--initial-cluster", &members.join(",")]);
        command.args(["--initial-cluster-state", "new"]);
        command.args(["--initial-cluster-token", &self.token]);
        command.args(&program.flags);
        command
    }

    /// Kills one node (SIGKILL) and reaps it.
    ///
    /// # Errors
    /// If the signal cannot be sent or the exit cannot be read.
    pub fn kill(&mut self, index: usize) -> Result<()> {
        if let Some(mut child) = self.nodes[index].child.take() {
            child.kill().context("kill")?;
            child.wait().context("reap")?;
        }
        self.nodes[index].is_paused = false;
        Ok(())
    }

    /// Kills several nodes as nearly at the same time as possible, then reaps them.
    ///
    /// # Errors
    /// If a signal cannot be sent.
    pub fn kill_together(&mut self, indexes: &[usize]) -> Result<()> {
        for &index in indexes {
            if let Some(child) = self.nodes[index].child.as_mut() {
                child.kill().context("kill")?;
            }
        }
        indexes.iter().try_for_each(|&index| self.kill(index))
    }

    /// Asks one node to end (SIGTERM) and waits for it.
    ///
    /// # Errors
    /// If it does not end within `patience` (it is killed then), or not with code 0; etcd may also
    /// end by the signal.
    pub fn terminate(&mut self, index: usize, patience: Duration) -> Result<()> {
        let Some(pid) = self.nodes[index].pid() else { return Ok(()) };
        signal("TERM", pid)?;
        let Some(status) = self.wait_for_end(index, patience)? else {
            self.kill(index)?;
            bail!("node {index} did not end within {patience:?} of SIGTERM")
        };
        ensure!(self.program.ends_well_with(status), "node {index} ended with {status}");
        Ok(())
    }

    /// Waits until one node ends; `None` if it still runs after `patience`.
    ///
    /// # Errors
    /// If it is not running, or its state cannot be read.
    pub fn wait_for_end(&mut self, index: usize, patience: Duration) -> Result<Option<ExitStatus>> {
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            let child = self.nodes[index].child.as_mut().context("a running node")?;
            if let Some(status) = child.try_wait()? {
                self.nodes[index].child = None;
                return Ok(Some(status));
            }
            thread::sleep(EXIT_POLL);
        }
        Ok(None)
    }

    /// Stops one node's process without ending it (SIGSTOP).
    ///
    /// # Errors
    /// If the signal cannot be sent.
    pub fn pause(&mut self, index: usize) -> Result<()> {
        if let Some(pid) = self.nodes[index].pid() {
            signal("STOP", pid)?;
            self.nodes[index].is_paused = true;
        }
        Ok(())
    }

    /// Lets a paused node continue (SIGCONT).
    ///
    /// # Errors
    /// If the signal cannot be sent.
    pub fn resume(&mut self, index: usize) -> Result<()> {
        if let (Some(pid), true) = (self.nodes[index].pid(), self.nodes[index].is_paused) {
            signal("CONT", pid)?;
            self.nodes[index].is_paused = false;
        }
        Ok(())
    }

    /// Returns the nodes that ended by themselves, with their exit status. They count as not
    /// running afterwards.
    ///
    /// # Errors
    /// If the state of a process cannot be read.
    pub fn reap_dead(&mut self) -> Result<Vec<(usize, String)>> {
        let mut dead = Vec::new();
        for (index, node) in self.nodes.iter_mut().enumerate() {
            let Some(child) = node.child.as_mut() else { continue };
            if let Some(status) = child.try_wait()? {
                node.child = None;
                dead.push((index, status.to_string()));
            }
        }
        Ok(dead)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let all: Vec<usize> = (0..self.nodes.len()).collect();
        if let Err(error) = self.kill_together(&all) {
            eprintln!("could not end a node: {error:#}");
        }
    }
}

fn signal(name: &str, pid: u32) -> Result<()> {
    // Runs a program instead of calling libc::kill, because this workspace has no unsafe code.
    let status = Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status()?;
    ensure!(status.success(), "kill -{name} {pid}: {status}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ours_ends_with_0_and_etcd_also_by_the_signal() {
        let [ours, etcd] = ["/bin/conclave", "/bin/etcd"].map(|path| Program::new(path.as_ref()));
        // Encoded as by wait(2): the signal, or the exit code in the second byte.
        for (status, expected) in [(0, (true, true)), (SIGTERM, (false, true))] {
            let status = ExitStatus::from_raw(status);
            assert_eq!((ours.ends_well_with(status), etcd.ends_well_with(status)), expected);
        }
        for status in [9, 1 << 8].map(ExitStatus::from_raw) {
            assert!(!ours.ends_well_with(status) && !etcd.ends_well_with(status), "{status}");
        }
    }
}
