//! `conclave service` on a server of our own.

use std::{
    net::TcpListener,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use conclave_testing::process::{Talking, signal};
use serde_json::Value;

use crate::{
    COMMAND_TIMEOUT, CONCLAVE,
    local::{self, cluster},
    run,
    server::free_port,
};

/// Starts a verb that runs until it is stopped.
fn running(endpoint: &str, arguments: &[&str]) -> Talking {
    let mut command = Command::new(CONCLAVE);
    command.args(["--endpoints", endpoint, "service"]).args(arguments).stdin(Stdio::null());
    command.env("ETCDCTL_COMMAND_TIMEOUT", COMMAND_TIMEOUT);
    Talking::start(&mut command)
}

/// As [`running`], with what it says on standard error among what it prints.
fn running_both(endpoint: &str, arguments: &[&str]) -> Talking {
    let mut command = Command::new("sh");
    command.args(["-c", r#"exec "$0" "$@" 2>&1"#, CONCLAVE, "--endpoints", endpoint, "service"]);
    command.args(arguments).stdin(Stdio::null());
    Talking::start(&mut command)
}

fn service(endpoint: &str, arguments: &[&str]) -> String {
    let all = [&["service"], arguments].concat();
    let output = run(CONCLAVE, endpoint, &all, "");
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}

fn found(endpoint: &str, arguments: &[&str]) -> Vec<Value> {
    let text = service(endpoint, &[arguments, &["-w", "json"]].concat());
    serde_json::from_str(&text).expect("a list")
}

/// Waits until the instances of `api` are as wanted.
fn until(endpoint: &str, what: &str, is_so: impl Fn(&[Value]) -> bool) {
    crate::until(what, || is_so(&found(endpoint, &["resolve", "api"])));
}

/// Reads what a watch prints until an instance was removed for this reason.
fn until_removed(watch: &mut Talking, id: &str, reason: &str) {
    loop {
        let line = watch.line();
        if line.ends_with(&format!(" removed {id} ({reason})")) {
            return;
        }
        assert!(!line.contains("expired"), "{line}");
    }
}

/// Silence would be taken for quiet.
#[test]
fn whoever_follows_hears_that_the_connection_is_lost() {
    let mut server = local::Running::start(&["dev", "--port=0", "--peer-port=0"]);
    let endpoint = server.wait_for("endpoint:");
    let verbs =
        [&["service", "watch", "api"], &["group", "watch", "crew"], &["elect", "-l", "boss"]];
    let mut following = verbs.map(|verb| {
        let mut command = Command::new("sh");
        command.args(["-c", r#"exec "$0" "$@" 2>&1"#, CONCLAVE, "--endpoints", &endpoint]);
        command.args(verb).stdin(Stdio::null());
        Talking::start(&mut command)
    });
    // It is known to be there.
    assert!(following[1].line().starts_with("0, "));
    server.stop();
    for follower in &mut following {
        let lost = std::iter::from_fn(|| Some(follower.line()))
            .find(|line| line.starts_with("the connection is lost, and tried again: "));
        assert!(lost.is_some());
    }
}

#[test]
fn services_are_registered_seen_and_drained() {
    let mut server = local::Running::start(&["dev", "--port=0", "--peer-port=0"]);
    let endpoint = server.wait_for("endpoint:");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address").to_string();
    // Checks connect again and again.
    std::thread::spawn(move || listener.incoming().for_each(drop));
    let mut watch = running(&endpoint, &["watch", "api", "--window", "0s"]);
    let register = format!(
        "register api {address} --id a --tag blue --zone x --version 1 --meta team=shop --check tcp \
         --check ready=tcp --check-interval 500ms --drain 300ms --ttl 60s -- sleep 600"
    );
    let mut first = running(&endpoint, &register.split(' ').collect::<Vec<_>>());
    assert_eq!(first.line(), "a of api is registered");
    // Present already, if the watch began late.
    let line = watch.line();
    assert!(line.contains(" added ") || line.contains(" present "), "{line}");
    // Unknown until it was checked.
    assert!(line.contains(&format!(" a {address} up ")), "{line}");
    let mut second = running(&endpoint, &["register", "api", "h:2", "--drain=10ms", "--ttl=60s"]);
    assert_eq!(second.line(), "h:2 of api is registered");
    assert_eq!(service(&endpoint, &["ls"]), "api, 2, 0, on, on\n");
    assert_eq!(service(&endpoint, &["ls", "none"]), "");

    until(&endpoint, "it is checked", |found| {
        found[0]["checks"] == "check passing (connected); ready passing (connected)"
    });
    let blue = found(&endpoint, &["resolve", "api", "--tag", "blue", "--meta", "team=shop"]);
    let first_of = |name: &str| blue[0][name].as_str().unwrap_or_default().to_owned();
    assert_eq!(
        (blue.len(), first_of("address"), first_of("zone")),
        (1, address.clone(), "x".into())
    );
    assert_eq!((first_of("version"), first_of("marks")), ("1".into(), "healthy".into()));
    service(&endpoint, &["drain", "api", "h:2"]);
    until(&endpoint, "it drains", |found| found[1]["state"] == "draining");
    assert_eq!(found(&endpoint, &["resolve", "api", "--healthy"]).len(), 1);
    service(&endpoint, &["drain", "api", "h:2", "--undo"]);
    until(&endpoint, "it is up again", |found| found[1]["state"] == "up");

    first.signal("INT");
    until(&endpoint, "it drains first", |found| {
        found[0]["state"] == "draining" || found.len() == 1
    });
    assert_eq!(first.end().code(), Some(143), "the exit code of the command");
    until(&endpoint, "it is gone", |found| found.len() == 1);
    second.signal("INT");
    assert_eq!(second.end().code(), Some(0));
    until(&endpoint, "nobody is left", <[Value]>::is_empty);
    until_removed(&mut watch, "h:2", "deregistered");
    let mut third = running(&endpoint, &["register", "api", "h:3", "--drain=10ms", "--ttl=60s"]);
    assert_eq!(third.line(), "h:3 of api is registered");
    service(&endpoint, &["deregister", "api", "h:3"]);
    until_removed(&mut watch, "h:3", "admin");
    third.signal("INT");
    assert_eq!(third.end().code(), Some(0));
    until(&endpoint, "nobody is left", <[Value]>::is_empty);
    watch.signal("INT");
    assert_eq!(watch.end().code(), Some(0));
    assert_eq!(service(&endpoint, &["configure", "api", "--guard", "off"]), "api, 0, 0, off, on\n");
    let missing = run(CONCLAVE, &endpoint, &["service", "deregister", "api", "x"], "");
    assert_eq!(missing.status.code(), Some(1));
    server.stop();
}

#[test]
fn a_successor_goes_on_whatever_its_predecessors_do() {
    let mut server = local::Running::start(&["dev", "--port=0", "--peer-port=0"]);
    let endpoint = server.wait_for("endpoint:");
    let registered = |address: &str, ttl: &str| {
        let register = ["register", "api", address, "--id", "a", "--ttl", ttl, "--drain", "10ms"];
        let mut instance = running(&endpoint, &register);
        assert_eq!(instance.line(), "a of api is registered");
        instance
    };
    let mut paused = registered("h:1", "3s");
    paused.signal("STOP");
    until(&endpoint, "its session expires", <[Value]>::is_empty);
    let mut replaced = registered("h:2", "60s");
    let mut successor = registered("h:3", "60s");
    let is_left = || {
        let found = found(&endpoint, &["resolve", "api"]);
        found.len() == 1 && found[0]["address"] == "h:3" && found[0]["state"] == "up"
    };
    assert!(is_left());
    replaced.signal("INT");
    assert_eq!(replaced.end().code(), Some(0));
    assert!(is_left());
    paused.signal("CONT");
    paused.signal("INT");
    assert_eq!(paused.end().code(), Some(0));
    assert!(is_left());
    successor.signal("INT");
    assert_eq!(successor.end().code(), Some(0));
    until(&endpoint, "nobody is left", <[Value]>::is_empty);
    server.stop();
}

#[test]
fn whoever_loses_its_id_says_so_and_goes_on() {
    let mut server = local::Running::start(&["dev", "--port=0", "--peer-port=0"]);
    let endpoint = server.wait_for("endpoint:");
    let registered = |address: &str, rest: &[&str]| {
        let flags = ["register", "api", address, "--id", "a", "--ttl", "60s", "--drain", "10ms"];
        let mut instance = running_both(&endpoint, &[&flags, rest].concat());
        assert_eq!(instance.line(), "a of api is registered");
        instance
    };
    let mut first = registered("h:1", &["--", "sleep", "600"]);
    let mut second = registered("h:2", &[]);
    let told = first.line();
    let by =
        "a of api is registered no more: another registered the id of the instance (h:2, session ";
    assert!(told.starts_with(by), "{told}");
    service(&endpoint, &["deregister", "api", "a"]);
    let told = second.line();
    assert_eq!(told, "a of api is registered no more: somebody removed the instance");
    // The command runs, and ends as it would have.
    first.signal("INT");
    assert_eq!(first.end().code(), Some(143), "the exit code of the command");
    second.signal("INT");
    assert_eq!(second.end().code(), Some(0));
    server.stop();
}

/// Time after the leader's death: longer than the TTL of the instances.
const AFTERWARDS: Duration = Duration::from_secs(24);

#[test]
fn a_leader_that_is_killed_takes_no_instance_along() {
    let dir = tempfile::tempdir().expect("a directory");
    let ports = [(); 2].map(|()| [(); 3].map(|()| free_port().to_string()).join(","));
    let mut servers = local::Running::start(&cluster(dir.path(), &ports));
    let endpoints = servers.wait_for("endpoints:");
    let mut pid = None;
    while pid.is_none() {
        let row = servers.wait_for("|   n");
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        pid = cells.contains(&"leader").then(|| cells[2].to_owned());
    }
    let mut instances = Vec::new();
    for address in ["h:1", "h:2", "h:3"] {
        let register = ["register", "api", address, "--ttl", "20s", "--drain", "10ms"];
        let mut instance = running(&endpoints, &register);
        assert!(instance.line().ends_with(" is registered"));
        instances.push(instance);
    }
    let mut watch = running(&endpoints, &["watch", "api"]);
    for _ in &instances {
        assert!(watch.line().contains(" present "));
    }
    signal(pid.expect("a leader"), "KILL");
    let flags = ["--command-timeout", "60s", "service", "resolve", "api", "-w", "json"];
    let killed = Instant::now();
    while killed.elapsed() < AFTERWARDS {
        let output = run(CONCLAVE, &endpoints, &flags, "");
        assert!(output.status.success(), "{output:?}");
        let found: Vec<Value> = serde_json::from_slice(&output.stdout).expect("a list");
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found.iter().all(|found| found["marks"] == "healthy"), "{found:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
    let mut last = instances.pop().expect("one of three");
    last.signal("INT");
    assert_eq!(last.end().code(), Some(0));
    let removed = loop {
        let line = watch.line();
        if !line.contains(" present ") && !line.contains(" draining ") {
            break line;
        }
    };
    assert!(removed.ends_with(" removed h:3 (deregistered)"), "{removed}");
    watch.signal("INT");
    assert_eq!(watch.end().code(), Some(0));
    drop(instances);
    servers.stop();
}
