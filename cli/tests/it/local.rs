//! `conclave dev` and `conclave cluster`: our own servers on this machine.

use std::{
    io::{BufRead, BufReader, Lines},
    net::TcpListener,
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
};

use conclave_testing::process::signal;

use crate::{CONCLAVE, run, server::free_port};

/// A command that runs until it is stopped.
pub(crate) struct Running {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Running {
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let mut child = Command::new(CONCLAVE)
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        let stdout = child.stdout.take().expect("a pipe");
        Self { child, lines: BufReader::new(stdout).lines() }
    }

    /// The rest of the first line that contains `text`, behind it.
    pub(crate) fn wait_for(&mut self, text: &str) -> String {
        let line = self.line_with(text);
        line.split_once(text).expect("it contains the text").1.trim().to_owned()
    }

    /// The first line that contains `text`.
    pub(crate) fn line_with(&mut self, text: &str) -> String {
        let mut seen = Vec::new();
        for line in self.lines.by_ref() {
            let line = line.expect("a line");
            if line.contains(text) {
                return line;
            }
            seen.push(line);
        }
        let mut complaint = String::new();
        std::io::Read::read_to_string(
            &mut self.child.stderr.take().expect("a pipe"),
            &mut complaint,
        )
        .expect("readable");
        panic!("{text:?} did not come: {seen:#?} {complaint}");
    }

    /// Stops it as ctrl-C does; it must end well.
    pub(crate) fn stop(mut self) {
        signal(self.child.id(), "INT");
        self.lines.by_ref().for_each(drop);
        let status = self.child.wait().expect("it ends");
        assert!(status.success(), "{status}");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Only after a failed test it still runs; asked to end, it ends its servers too.
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            signal(self.child.id(), "TERM");
            self.child.wait().ok();
        }
    }
}

pub(crate) fn cluster<'a>(dir: &'a Path, ports: &'a [String; 2]) -> [&'a str; 7] {
    let dir = dir.to_str().expect("a path in UTF-8");
    ["cluster", "--dir", dir, "--client-ports", &ports[0], "--peer-ports", &ports[1]]
}

#[test]
fn a_cluster_goes_on_with_its_data() {
    let dir = tempfile::tempdir().unwrap();
    let ports = [(); 2].map(|()| [(); 3].map(|()| free_port().to_string()).join(","));
    let arguments = cluster(dir.path(), &ports);

    let mut first = Running::start(&arguments);
    let endpoints = first.wait_for("endpoints:");
    assert!(run(CONCLAVE, &endpoints, &["put", "greeting", "hello"], "").status.success());
    first.wait_for("leader");
    first.stop();

    let mut second = Running::start(&arguments[..3]);
    assert_eq!(second.wait_for("endpoints:"), endpoints);
    let get = run(CONCLAVE, &endpoints, &["get", "greeting"], "");
    assert_eq!(String::from_utf8_lossy(&get.stdout), "greeting\nhello\n");
    let row = second.wait_for("|   n2 |");
    let pid = row.split('|').nth(1).expect("the column of process ids").trim();
    signal(pid, "KILL");
    let report = second.wait_for("n2 was ended by signal 9 and is not restarted.");
    assert!(report.starts_with("Its last log line: {"), "{report}");
    let put = run(CONCLAVE, &endpoints, &["put", "greeting", "again"], "");
    assert!(put.status.success(), "two of three are enough: {put:?}");
    second.stop();
}

#[test]
fn a_taken_port_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let free = [(); 5].map(|()| free_port());
    let ports =
        [format!("{},{port},{}", free[0], free[1]), format!("{},{},{}", free[2], free[3], free[4])];
    let output = run(CONCLAVE, "", &cluster(dir.path(), &ports), "");
    assert_eq!(output.status.code(), Some(1));
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(
        complaint.starts_with(&format!("Error: port 127.0.0.1:{port} cannot be used")),
        "{complaint}"
    );
}

#[test]
fn one_command_starts_a_server_to_try_things_out() {
    let mut dev = Running::start(&["dev", "--port=0", "--peer-port=0"]);
    let endpoint = dev.wait_for("endpoint:");
    assert!(run(CONCLAVE, &endpoint, &["put", "a", "1"], "").status.success());
    let get = run(CONCLAVE, &endpoint, &["get", "a", "--print-value-only"], "");
    assert_eq!(String::from_utf8_lossy(&get.stdout), "1\n");
    dev.stop();
}
