//! A process that holds a lock; see `conclave_jepsen_tests::hold`.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, Stdio};

/// TTL of its session.
pub(crate) const TTL_SECONDS: u64 = 3;

/// The process, killed with this.
pub(crate) struct Holder {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Holder {
    pub(crate) fn start(endpoints: &[String], lock: &str, number: &str, more: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_conclave-jepsen"))
            .args(["hold", "--lock", lock, "--number", number])
            .args(["--ttl", &TTL_SECONDS.to_string(), "--endpoints", &endpoints.join(",")])
            .args(more)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        Self { child, lines }
    }

    fn line(&mut self) -> String {
        tokio::task::block_in_place(|| self.lines.next()).expect("a line").expect("text")
    }

    /// Waits until it holds the lock; its token, and the number that it saw.
    pub(crate) fn held(&mut self) -> (i64, i64) {
        let line = self.line();
        let words: Vec<&str> = line.split(' ').collect();
        let [_, token, number] = words[..] else { panic!("held TOKEN NUMBER, not {line:?}") };
        (token.parse().expect("a token"), number.parse().expect("a number"))
    }

    /// Lets it write; what it says then.
    pub(crate) fn goes_on(&mut self) -> String {
        let mut input = self.child.stdin.take().expect("a pipe");
        input.write_all(b"go\n").expect("it reads");
        self.line()
    }

    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let status = Command::new("kill").args(["-s", name, &pid]).status();
        assert!(status.expect("kill runs").success(), "signal {name} to {pid}");
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
