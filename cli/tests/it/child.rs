//! What becomes of a command, and of all that it started, when it has to end.

use std::{
    fs,
    io::{self, Write},
    path::Path,
    process::Command,
};

use conclave_testing::process::signal;

use crate::{
    CONCLAVE,
    lock::{Running, until_count},
    named,
    server::Server,
    until,
};

/// Whether a process has ended, waited for or not.
fn has_ended(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, state)| state.starts_with(['Z', 'X']))
}

#[test]
fn what_a_command_started_has_ended_when_its_lock_is_given_back() {
    let (_dir, etcd) = named("etcd");
    let server = Server::single(etcd);
    let killed = "Error: the command had to be killed: it did not end within 5s";
    for (deaf, end) in [("", (143, "")), ("trap \"\" TERM; ", (1, killed))] {
        // Neither step is the last one, which a shell would become itself.
        let script = format!("sh -c '{deaf}echo $$; sleep 600; :'; echo two");
        let arguments = ["lock", "l", "--ttl=600", "--", "sh", "-c", &script];
        let mut running = Running::start(CONCLAVE, &server, &arguments);
        let step = running.line();
        assert!(!has_ended(&step));
        running.signal("TERM");
        let (code, complaint) = running.end();
        assert!(has_ended(&step), "{deaf:?}");
        assert_eq!((code, complaint.as_str()), (Some(end.0), end.1), "{deaf:?}");
        until_count(&server, "l/", 0);
    }
}

#[test]
fn a_command_is_asked_to_end_before_its_lock_is_lost() {
    let (_dir, etcd) = named("etcd");
    let server = Server::single(etcd);
    let script = "trap 'echo asked' TERM; echo started; while :; do sleep 1; done";
    let arguments = ["lock", "l", "--ttl=20", "--", "sh", "-c", script];
    let mut running = Running::start(CONCLAVE, &server, &arguments);
    assert_eq!(running.line(), "started");
    signal(server.pid(), "STOP");
    assert_eq!(running.line(), "asked");
    let complaint = "Error: lost what the command needed: it was ended".to_owned();
    assert_eq!(running.end(), (Some(1), complaint));
    signal(server.pid(), "CONT");
}

/// Whether tests can have a terminal.
fn has_terminals() -> bool {
    let has = Command::new("script").arg("--version").output().is_ok();
    if !has {
        writeln!(io::stderr(), "SKIPPED: no script(1)").expect("stderr is open");
    }
    has
}

/// Whether a process has ended and nobody has waited for it.
fn is_unburied(pid: &str) -> bool {
    has_ended(pid) && Path::new("/proc").join(pid).exists()
}

#[test]
fn who_ends_without_a_parent_at_a_terminal_leaves_nothing() {
    if !has_terminals() {
        return;
    }
    let (_dir, etcd) = named("etcd");
    let server = Server::single(etcd);
    let endpoint = server.endpoint();
    // The one in the middle ends at once; what it started ends before it, perhaps, and after.
    let script = "(: & echo $!; sleep 0.2 & echo $!); read line; exit 4";
    let arguments = ["--endpoints", &endpoint, "lock", "l", "--ttl=600", "--", "sh", "-c", script];
    let mut running = Running::at_terminal(&arguments);
    for _ in 0..2 {
        let orphan = running.line().trim_end().to_owned();
        assert!(orphan.parse::<u32>().is_ok(), "{orphan}");
        until("it has ended", || has_ended(&orphan));
        until("it is gone", || !is_unburied(&orphan));
    }
    running.type_in(b"\n");
    assert_eq!(running.end().0, Some(4), "the command's own end is still told");
}

#[test]
fn keys_reach_a_command_at_a_terminal_and_ctrl_c_is_for_it_first() {
    if !has_terminals() {
        return;
    }
    let (_dir, etcd) = named("etcd");
    let server = Server::single(etcd);
    let endpoint = server.endpoint();
    let script = r#"trap "echo interrupted; exit 9" INT; read line; echo "read $line";
        while :; do sleep 0.1; done"#;
    let arguments = ["--endpoints", &endpoint, "lock", "l", "--ttl=600", "--", "sh", "-c", script];
    let mut running = Running::at_terminal(&arguments);
    until_count(&server, "l/", 1);
    running.type_in(b"this\n");
    while running.line().trim_end() != "read this" {}
    running.type_in(b"\x03");
    while !running.line().trim_end().ends_with("interrupted") {}
    assert_eq!(running.end().0, Some(9));
    until_count(&server, "l/", 0);
}

#[test]
fn who_ignores_ctrl_c_has_ended_when_the_lock_is_given_back() {
    if !has_terminals() {
        return;
    }
    let (_dir, etcd) = named("etcd");
    let server = Server::single(etcd);
    let endpoint = server.endpoint();
    // The shell obeys at once; what it put into the background does not hear of it, nor of the terminal's end.
    let script = r#"trap "exit 3" INT; sh -c 'trap "" HUP; echo $$; sleep 600; :' & wait"#;
    let arguments = ["--endpoints", &endpoint, "lock", "l", "--ttl=600", "--", "sh", "-c", script];
    let mut running = Running::at_terminal(&arguments);
    let step = running.line().trim_end().to_owned();
    assert!(!has_ended(&step));
    running.type_in(b"\x03");
    running.end();
    assert!(has_ended(&step));
    until_count(&server, "l/", 0);
}
