//! `conclave config`: settings, their history, and the way back.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use crate::{
    COMMAND_TIMEOUT, CONCLAVE, run,
    server::{Server, program},
};

/// Runs `config` with `arguments`; returns the exit code and what was printed where.
fn config(server: &Server, arguments: &[&str], input: &str) -> (i32, String, String) {
    let arguments = [&["config"], arguments].concat();
    let output = run(CONCLAVE, &server.endpoint(), &arguments, input);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().expect("an exit code"), text(&output.stdout), text(&output.stderr))
}

/// As [`config`], for what must succeed: what was printed.
fn done(server: &Server, arguments: &[&str], input: &str) -> String {
    let (code, stdout, stderr) = config(server, arguments, input);
    assert_eq!(code, 0, "{arguments:?}: {stderr}");
    stdout
}

#[test]
fn settings_are_written_read_and_restored() {
    let Some(program) = program("settings_are_written_read_and_restored") else { return };
    let server = Server::single(program);
    let toml = "[db]\nport = 5432\n";
    assert_eq!(done(&server, &["set", "app.toml"], toml), "revision 2: 1 key changed\n");
    done(&server, &["set", "app/db/host", "a"], "");
    done(&server, &["set", "app/db/host", "b", "--if-revision", "3"], "");
    assert_eq!(
        done(&server, &["get", "app.toml", "-w", "json"], ""),
        "{\"revision\":4,\"settings\":{\"db\":{\"port\":5432}}}\n"
    );
    assert_eq!(done(&server, &["get", "app/", "--prefix", "--path", "db.host"], ""), "b\n");
    assert_eq!(
        done(&server, &["get", "app/", "--prefix", "-w", "fields"], ""),
        "\"Revision\" : 4\n\"db.host\" : \"b\"\n"
    );
    let old = ["get", "app/", "--prefix", "--rev", "3"];
    assert_eq!(done(&server, &old, ""), "{\n  \"db\": {\n    \"host\": \"a\"\n  }\n}\n");

    assert_eq!(
        done(&server, &["history", "app/", "--prefix", "--values"], ""),
        "revision 4\n  PUT \"app/db/host\" \"b\"\nrevision 3\n  PUT \"app/db/host\" \"a\"\n"
    );
    let back = ["rollback", "app/", "3", "--prefix"];
    assert_eq!(done(&server, &back, ""), "revision 5: 1 key changed\n");
    assert_eq!(done(&server, &back, ""), "revision 5: 0 keys changed\n");
    let history = ["history", "app/", "--prefix", "--limit", "1"];
    assert_eq!(done(&server, &history, ""), "revision 5\n  PUT \"app/db/host\" (1 bytes)\n");
}

#[test]
fn settings_that_cannot_be_read_back_are_not_written() {
    let test = "settings_that_cannot_be_read_back_are_not_written";
    let Some(program) = program(test) else { return };
    let server = Server::single(program);
    for key in ["app.json", "app"] {
        let (code, _, stderr) = config(&server, &["set", key, "{"], "");
        assert_eq!(code, 3, "{stderr}");
        assert!(stderr.contains("not JSON"), "{stderr}");
    }
    let (code, _, stderr) = config(&server, &["set", "app", "x", "--if-revision", "7"], "");
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("somebody else"), "{stderr}");
    let (code, _, _) = config(&server, &["get", "app.json", "--path", "db"], "");
    assert_eq!(code, 1);
    assert_eq!(done(&server, &["get", "app.json"], ""), "{}\n");
}

#[test]
fn a_watch_prints_settings_whenever_they_change() {
    let Some(program) = program("a_watch_prints_settings_whenever_they_change") else { return };
    let mut server = Server::single(program);
    done(&server, &["set", "app.yaml", "a: 1"], "");
    let mut child = Command::new(CONCLAVE)
        .env("ETCDCTL_COMMAND_TIMEOUT", COMMAND_TIMEOUT)
        .args(["--endpoints", &server.endpoint(), "-w", "json"])
        .args(["config", "watch", "app.yaml"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the client starts");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let mut complaints = BufReader::new(child.stderr.take().expect("a pipe")).lines();
    let mut next = || lines.next().expect("a line").expect("readable");
    let mut complaint = || complaints.next().expect("a line").expect("readable");
    assert_eq!(next(), "{\"revision\":2,\"settings\":{\"a\":1}}");
    done(&server, &["set", "app.yaml", "a: 2"], "");
    assert_eq!(next(), "{\"revision\":3,\"settings\":{\"a\":2}}");
    done(&server, &["set", "app.yaml", "a: [", "--format", "text"], "");
    let refused = complaint();
    assert!(refused.contains("not YAML") && refused.contains("revision 4"), "{refused}");
    done(&server, &["set", "app.yaml", "a: 3"], "");
    assert_eq!(next(), "{\"revision\":5,\"settings\":{\"a\":3}}");
    server.kill();
    let lost = complaint();
    let expected =
        "the connection is lost, and tried again: what was printed may be out of date (127.0.0.1:";
    assert!(lost.starts_with(expected), "{lost}");
    server.start();
    assert_eq!(complaint(), "the connection is back");
    child.kill().expect("it can be killed");
    child.wait().expect("it ends");
}
