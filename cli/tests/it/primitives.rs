//! Counters, latches, barriers and groups of processes, over a cluster of processes whose leader is killed.

use std::{
    io::Read,
    process::{Child, Command, Stdio},
};

use conclave_testing::process::signal;

use crate::{CONCLAVE, local, run, server::free_port};

/// Starts a verb that takes its time.
fn start(endpoints: &str, arguments: &[&str]) -> Child {
    let mut command = Command::new(CONCLAVE);
    command.args(["--endpoints", endpoints]).args(arguments).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts")
}

/// Its exit code and what it said.
fn end(mut child: Child) -> (Option<i32>, String) {
    let mut said = String::new();
    child.stdout.take().expect("a pipe").read_to_string(&mut said).expect("text");
    child.stderr.take().expect("a pipe").read_to_string(&mut said).expect("text");
    (child.wait().expect("it ends").code(), said)
}

/// Runs a verb until it succeeds with this output: without a leader it fails.
fn until(endpoints: &str, arguments: &[&str], expected: &str) {
    crate::until(&format!("{arguments:?} says {expected:?}"), || {
        let output = run(CONCLAVE, endpoints, arguments, "");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        output.status.success() && said.contains(expected)
    });
}

#[test]
fn processes_meet_though_the_leader_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let ports = [(); 2].map(|()| [(); 3].map(|()| free_port().to_string()).join(","));
    let mut cluster = local::Running::start(&local::cluster(dir.path(), &ports));
    let endpoints = cluster.wait_for("endpoints:");
    let row = cluster.line_with("leader |");
    let leader = row.split('|').nth(3).expect("the column of process ids").trim().to_owned();

    until(&endpoints, &["counter", "set", "hits", "-5"], "-5, ");
    until(&endpoints, &["get", "hits", "--print-value-only"], "-5\n");
    let refused = run(CONCLAVE, &endpoints, &["counter", "set", "hits", "1", "--if-value=4"], "");
    let complaint = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!((refused.status.code(), &complaint[..]), (Some(1), "Error: the counter is -5\n"));
    until(&endpoints, &["latch", "create", "go", "2"], "2, ");
    until(&endpoints, &["barrier", "raise", "door"], "true, ");
    let waiting =
        [["latch", "wait", "go"], ["barrier", "wait", "door"]].map(|verb| start(&endpoints, &verb));
    let enter = ["barrier", "enter", "step", "--count=2", "--", "echo", "together"];
    let first = start(&endpoints, &enter);
    let mut doomed = start(&endpoints, &["group", "join", "workers", "at-1", "--member", "a"]);
    let member = start(&endpoints, &["group", "join", "workers", "at-2", "--", "sleep", "600"]);
    until(&endpoints, &["group", "ls", "workers"], "a, at-1, ");
    until(&endpoints, &["group", "ls", "workers"], "at-2, ");
    until(&endpoints, &["get", "step", "--print-value-only"], "2\n");

    signal(&leader, "KILL");
    until(&endpoints, &["latch", "down", "go", "2"], "0, ");
    until(&endpoints, &["barrier", "lift", "door"], "");
    let second = start(&endpoints, &enter);
    for waiting in waiting {
        assert_eq!(end(waiting), (Some(0), String::new()));
    }
    for participant in [first, second] {
        assert_eq!(end(participant), (Some(0), "together\n".to_owned()));
    }
    until(&endpoints, &["counter", "get", "hits"], "-5, ");

    // Killed, it is a member until its session is over; asked to end, no longer.
    doomed.kill().unwrap();
    doomed.wait().unwrap();
    signal(member.id(), "TERM");
    assert_eq!(end(member).0, Some(143), "the code of the command that was asked to end");
    crate::until("the dead are members no more", || {
        run(CONCLAVE, &endpoints, &["group", "ls", "workers"], "").stdout.is_empty()
    });
    let brief = run(CONCLAVE, &endpoints, &["latch", "wait", "never", "--wait=50ms"], "");
    assert_eq!(
        String::from_utf8_lossy(&brief.stderr),
        "Error: the latch never was not counted down within 50ms\n"
    );
    cluster.stop();
}
