//! Real servers for the tests: Debian's etcd, or whatever `CONCLAVE_TEST_ETCD` names, on free
//! loopback ports in a temporary directory.

use std::{
    fs::File,
    io::{Read, Write},
    net::TcpStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

pub use crate::port::free_port;

/// Far longer than a start takes on a slow machine.
const START_PATIENCE: Duration = Duration::from_secs(120);

/// The server program, or `None` (with a line that says so) if there is none.
pub fn program(test: &str) -> Option<PathBuf> {
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

fn scheme(tls: &[String]) -> &'static str {
    if tls.is_empty() { "http" } else { "https" }
}

/// One server process; ended when dropped.
pub struct Server {
    program: PathBuf,
    name: String,
    client_port: u16,
    peer_port: u16,
    cluster: String,
    /// With these it speaks TLS to clients and members; empty for neither.
    tls: Vec<String>,
    /// Where a server that speaks TLS also answers in the clear.
    plain_port: u16,
    dir: TempDir,
    child: Option<Child>,
}

impl Server {
    /// A cluster of one that serves.
    pub fn single(program: PathBuf) -> Self {
        Self::cluster(program, 1).remove(0)
    }

    /// A cluster of `count` members that serve.
    pub fn cluster(program: PathBuf, count: usize) -> Vec<Self> {
        Self::secure(program, count, &[])
    }

    /// A cluster of members that speak TLS as these flags say, and serve.
    pub fn secure(program: PathBuf, count: usize, tls: &[String]) -> Vec<Self> {
        let scheme = scheme(tls);
        let ports: Vec<[u16; 3]> = (0..count).map(|_| [(); 3].map(|()| free_port())).collect();
        let peers = ports.iter().enumerate();
        let peers: Vec<String> =
            peers.map(|(i, [_, peer, _])| format!("n{i}={scheme}://127.0.0.1:{peer}")).collect();
        let cluster = peers.join(",");
        let mut servers = Vec::new();
        for (i, [client_port, peer_port, plain_port]) in ports.into_iter().enumerate() {
            let mut server = Self {
                program: program.clone(),
                name: format!("n{i}"),
                client_port,
                peer_port,
                cluster: cluster.clone(),
                tls: tls.to_vec(),
                plain_port,
                dir: TempDir::new().expect("a temporary directory"),
                child: None,
            };
            server.start();
            servers.push(server);
        }
        for server in &servers {
            server.wait_until_healthy();
        }
        servers
    }

    fn wait_until_healthy(&self) {
        let begun = Instant::now();
        while !self.health().is_ok_and(|answer| answer.contains("\"true\"")) {
            assert!(begun.elapsed() < START_PATIENCE, "{} does not serve", self.name);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn health(&self) -> std::io::Result<String> {
        let port = if self.tls.is_empty() { self.client_port } else { self.plain_port };
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(START_PATIENCE))?;
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// `host:port` for clients.
    pub fn endpoint(&self) -> String {
        format!("127.0.0.1:{}", self.client_port)
    }

    /// Where a server that speaks TLS also answers in the clear.
    pub fn plain(&self) -> String {
        format!("127.0.0.1:{}", self.plain_port)
    }

    /// Starts the process, with the data it had before if it ran before.
    pub fn start(&mut self) {
        let log = File::options().create(true).append(true).open(self.dir.path().join("log"));
        let log = log.expect("a log file");
        let scheme = scheme(&self.tls);
        let client = format!("{scheme}://127.0.0.1:{}", self.client_port);
        let peer = format!("{scheme}://127.0.0.1:{}", self.peer_port);
        let mut listen = client.clone();
        if !self.tls.is_empty() {
            listen.push_str(&format!(",http://{}", self.plain()));
        }
        let child = Command::new(&self.program)
            .env_clear()
            .args(["--name", &self.name])
            .args(["--listen-client-urls", &listen, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &self.cluster])
            .args(self.patience())
            .arg("--data-dir")
            .arg(self.data_dir())
            .args(&self.tls)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the log file"))
            .stderr(log)
            .spawn();
        self.child = Some(child.expect("the server starts"));
    }

    /// Members do not miss their leader because a loaded machine let it stand still for a second or two.
    /// Alone, a member has nobody to miss, and the shortest TTL of a lease would be longer.
    fn patience(&self) -> Option<&'static str> {
        self.cluster.contains(',').then_some("--election-timeout=5000")
    }

    /// Ends the process without warning.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("the server can be killed");
            child.wait().expect("the server ends");
        }
    }

    /// Ends the process and takes its data away: what starts next knows nothing.
    pub fn forget(&mut self) {
        self.kill();
        std::fs::remove_dir_all(self.data_dir()).expect("the data can be removed");
    }

    /// Where its data is.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Id of the process, which must run.
    pub fn pid(&self) -> u32 {
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
