//! Programs that a test starts, listens to and stops.

use std::fmt::Display;
use std::io::{BufRead as _, BufReader, Lines};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};

/// Sends a signal by name, e.g. `STOP`, to a process that is there.
pub fn signal(pid: impl Display, name: &str) {
    let pid = pid.to_string();
    let status = Command::new("kill").args(["-s", name, &pid]).status();
    assert!(status.expect("kill runs").success(), "signal {name} to {pid}");
}

/// A program whose standard output is read line by line; killed with this.
pub struct Talking {
    /// The process; its standard output is taken.
    pub child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Talking {
    /// Starts it.
    pub fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the program starts");
        let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        Self { child, lines }
    }

    /// The next line that it prints.
    pub fn line(&mut self) -> String {
        self.lines.next().expect("a line").expect("text")
    }

    /// Sends it a signal by name.
    pub fn signal(&self, name: &str) {
        signal(self.child.id(), name);
    }

    /// Waits for its end.
    pub fn end(&mut self) -> ExitStatus {
        self.child.wait().expect("it ends")
    }
}

impl Drop for Talking {
    fn drop(&mut self) {
        // It has ended, unless the test failed.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
