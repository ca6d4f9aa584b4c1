//! Real servers for the tests: Debian's etcd, or whatever `CONCLAVE_TEST_ETCD` names, on free
//! loopback ports in a temporary directory.

use std::{
    fs::File,
    io::Write,
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;

/// The server program, or `None` (with a line that says so) if there is none.
pub(crate) fn program(test: &str) -> Option<PathBuf> {
    let program = std::env::var_os("CONCLAVE_TEST_ETCD").unwrap_or_else(|| "etcd".into());
    if Command::new(&program).arg("--version").output().is_ok_and(|output| output.status.success())
    {
        return Some(program.into());
    }
    // Not `eprintln!`: the test harness would swallow it.
    let name = program.display();
    writeln!(
        std::io::stderr(),
        "SKIPPED {test}: {name} cannot be run (apt-get install etcd-server)"
    )
    .expect("stderr is open");
    None
}

/// A port nobody listens on. Another process may take it before we do; the ports are handed out by
/// the kernel in an order that makes this unlikely.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its address").port()
}

/// One server process; ended when dropped.
pub(crate) struct Server {
    program: PathBuf,
    name: String,
    client_port: u16,
    peer_port: u16,
    cluster: String,
    dir: TempDir,
    child: Option<Child>,
}

impl Server {
    /// A cluster of one.
    pub(crate) fn single(program: PathBuf) -> Self {
        Self::cluster(program, 1).remove(0)
    }

    /// A cluster of `count` members, started.
    pub(crate) fn cluster(program: PathBuf, count: usize) -> Vec<Self> {
        let ports: Vec<(u16, u16)> = (0..count).map(|_| (free_port(), free_port())).collect();
        let peers = ports.iter().enumerate();
        let peers: Vec<String> =
            peers.map(|(i, (_, peer))| format!("n{i}=http://127.0.0.1:{peer}")).collect();
        let cluster = peers.join(",");
        let mut servers = Vec::new();
        for (i, (client_port, peer_port)) in ports.into_iter().enumerate() {
            let mut server = Self {
                program: program.clone(),
                name: format!("n{i}"),
                client_port,
                peer_port,
                cluster: cluster.clone(),
                dir: TempDir::new().expect("a temporary directory"),
                child: None,
            };
            server.start();
            servers.push(server);
        }
        servers
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("127.0.0.1:{}", self.client_port)
    }

    /// Starts the process, with the data it had before if it ran before.
    pub(crate) fn start(&mut self) {
        let log = File::options().create(true).append(true).open(self.dir.path().join("log"));
        let log = log.expect("a log file");
        let client = format!("http://127.0.0.1:{}", self.client_port);
        let peer = format!("http://127.0.0.1:{}", self.peer_port);
        let child = Command::new(&self.program)
            .env_clear()
            .args(["--name", &self.name])
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &self.cluster])
            .arg("--data-dir")
            .arg(self.dir.path().join("data"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the log file"))
            .stderr(log)
            .spawn();
        self.child = Some(child.expect("the server starts"));
    }

    /// Ends the process without warning.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("the server can be killed");
            child.wait().expect("the server ends");
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().expect("the server runs").id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(5).collect();
            eprintln!("last lines of {}, newest first: {tail:#?}", self.name);
        }
    }
}
