//! A process that holds a lock; see `conclave_jepsen_tests::hold`.

use std::io::Write;
use std::process::{Command, Stdio};

use conclave_testing::process::Talking;

/// The process, killed with this.
pub(crate) struct Holder(Talking);

impl Holder {
    /// It takes `lock` by a session of `ttl_seconds`, and reads and writes the key `number`.
    pub(crate) fn start(
        endpoints: &[String],
        (lock, number): (&str, &str),
        ttl_seconds: u64,
        more: &[&str],
    ) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_conclave-jepsen"));
        command
            .args(["hold", "--lock", lock, "--number", number])
            .args(["--ttl", &ttl_seconds.to_string(), "--endpoints", &endpoints.join(",")])
            .args(more)
            .stdin(Stdio::piped());
        Self(Talking::start(&mut command))
    }

    fn line(&mut self) -> String {
        tokio::task::block_in_place(|| self.0.line())
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
        let mut input = self.0.child.stdin.take().expect("a pipe");
        input.write_all(b"go\n").expect("it reads");
        self.line()
    }

    pub(crate) fn signal(&self, name: &str) {
        self.0.signal(name);
    }
}
