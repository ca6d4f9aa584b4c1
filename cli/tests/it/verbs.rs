//! What cannot be compared line by line: watches, several endpoints, and our own verbs.

use std::{
    io::{BufRead, BufReader, Write},
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use crate::{
    CONCLAVE, programs, run,
    server::{Server, free_port, program},
};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs `watch` with `arguments` from revision 1 and returns its first `count` lines.
fn watch(client: &str, server: &Server, arguments: &[&str], count: usize) -> Vec<String> {
    let mut child = Command::new(client)
        .env("ETCDCTL_API", "3")
        .args(["--endpoints", &server.endpoint(), "watch"])
        .args(arguments)
        .stdout(Stdio::piped())
        .spawn()
        .expect("the client starts");
    let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let lines = lines.take(count).map(|line| line.expect("a line")).collect();
    child.kill().expect("it can be killed");
    child.wait().expect("it ends");
    lines
}

#[test]
fn watches_print_what_etcdctl_prints() {
    let Some(program) = program("watches_print_what_etcdctl_prints") else { return };
    let server = Server::single(program);
    let endpoint = server.endpoint();
    for arguments in [&["put", "w/a", "1"][..], &["put", "w/a", "2 3"], &["del", "w/a"]] {
        assert!(run(CONCLAVE, &endpoint, arguments, "").status.success());
    }
    let script =
        "echo $ETCD_WATCH_REVISION $ETCD_WATCH_EVENT_TYPE $ETCD_WATCH_KEY $ETCD_WATCH_VALUE";
    let cases: [(&[&str], usize); 5] = [
        (&["w", "--prefix", "--rev=1", "--prev-kv"], 12),
        (&["w", "--prefix", "--rev=2", "--prev-kv", "-w", "json"], 1),
        (&["w/a", "w/b", "--rev=1", "-w", "fields"], 25),
        (&["w/a", "--rev=1", "--hex"], 9),
        (&["w/a", "--rev=1", "--", "sh", "-c", script], 12),
    ];
    for (arguments, count) in cases {
        let ours = watch(CONCLAVE, &server, arguments, count);
        assert_eq!(ours.len(), count, "{arguments:?}");
        for etcdctl in programs("etcdctl") {
            let theirs = watch(&etcdctl.to_string_lossy(), &server, arguments, count);
            assert_eq!(ours, theirs, "{}: {arguments:?}", etcdctl.display());
        }
    }
}

#[test]
fn an_interactive_watch_takes_several_watches() {
    let Some(program) = program("an_interactive_watch_takes_several_watches") else { return };
    let server = Server::single(program);
    assert!(run(CONCLAVE, &server.endpoint(), &["put", "i", "1"], "").status.success());
    assert!(run(CONCLAVE, &server.endpoint(), &["put", "j/1", "2"], "").status.success());
    let mut child = Command::new(CONCLAVE)
        .args(["--endpoints", &server.endpoint(), "watch", "-i"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"watch --rev=1 'i'\nbogus\nwatch\n").unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || lines.next().unwrap().unwrap();
    assert_eq!([next(), next(), next()], ["PUT", "i", "1"]);
    stdin.write_all(b"watch j --prefix --rev 1\n").unwrap();
    assert_eq!([next(), next(), next()], ["PUT", "j/1", "2"]);
    stdin.write_all(b"progress\n").unwrap();
    assert_eq!([next(), next()], ["progress notify: 3", "progress notify: 3"]);
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    let complaints = text(&output.stderr);
    let complaints: Vec<&str> = complaints.lines().collect();
    let expected = [
        "Invalid command bogus (only support watch and progress)",
        "Invalid command watch (command type or key is not provided)",
        "Error: error reading watch request line: EOF",
    ];
    assert_eq!(complaints, expected);
}

#[test]
fn endpoints_that_do_not_answer_are_reported() {
    let Some(program) = program("endpoints_that_do_not_answer_are_reported") else { return };
    let server = Server::single(program);
    let (live, dead) = (server.endpoint(), format!("127.0.0.1:{}", free_port()));
    let both = format!("{live},{dead}");
    assert!(run(CONCLAVE, &live, &["put", "a", "1"], "").status.success());

    let health = run(CONCLAVE, &both, &["endpoint", "health", "--command-timeout=6s"], "");
    assert_eq!(health.status.code(), Some(1));
    assert!(
        text(&health.stdout)
            .starts_with(&format!("{live} is healthy: successfully committed proposal: took = "))
    );
    let complaint = format!(
        "{dead} is unhealthy: failed to commit proposal: context deadline exceeded\n\
         Error: unhealthy cluster\n"
    );
    assert_eq!(text(&health.stderr), complaint);
    let status = run(CONCLAVE, &both, &["endpoint", "status", "--command-timeout=6s"], "");
    assert_eq!(status.status.code(), Some(1));
    let complaint =
        format!("Failed to get the status of endpoint {dead} (context deadline exceeded)\n");
    assert_eq!(text(&status.stderr), complaint);
    let all = run(CONCLAVE, &live, &["endpoint", "health", "--cluster"], "");
    assert!(text(&all.stdout).starts_with(&format!("http://{live} is healthy")));
    let get = run(CONCLAVE, &dead, &["get", "a", "--command-timeout=500ms"], "");
    assert_eq!(get.status.code(), Some(1));
    assert_eq!(text(&get.stderr), "Error: context deadline exceeded\n");
}

#[test]
fn usage_and_versions_are_printed() {
    let usage = |arguments: &[&str]| run(CONCLAVE, "127.0.0.1:1", arguments, "");
    assert_eq!(usage(&["get", "--bogus"]).status.code(), Some(2));
    assert_eq!(usage(&["lock", "name", "--bogus"]).status.code(), Some(2));
    assert_eq!(usage(&["lock", "name", "--ttl=x"]).status.code(), Some(2));
    assert_eq!(usage(&["elect", "name", "me", "--ttl=x"]).status.code(), Some(2));
    assert_eq!(usage(&["elect", "name", "--listen", "--ttl=5"]).status.code(), Some(2));
    assert_eq!(usage(&["lock", "name", "--try", "--wait=1s"]).status.code(), Some(2));
    assert!(usage(&["--help"]).status.success());
    assert!(text(&usage(&["--version"]).stdout).contains("etcd Version: 3."));
    assert!(text(&usage(&["version"]).stdout).starts_with("etcdctl version: 3."));
    let dir = tempfile::tempdir().unwrap();
    let link = |name: &str| {
        let path = dir.path().join(name);
        std::os::unix::fs::symlink(CONCLAVE, &path).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (etcd, etcdctl) = (link("etcd"), link("etcdctl"));
    assert!(text(&run(&etcd, "", &["--version"], "").stdout).contains("etcd Version: 3."));
    assert!(
        text(&run(&etcdctl, "x:1", &["version"], "").stdout).starts_with("etcdctl version: 3.")
    );
    assert_eq!(run(&etcdctl, "x:1", &["get", "--bogus"], "").status.code(), Some(1));
    assert_eq!(run(&etcd, "", &["--no-such-flag"], "").status.code(), Some(2));
}

/// A call of our client with variables of its own.
fn with_variables(variables: &[(&str, &str)], arguments: &[&str]) -> Output {
    let mut command = Command::new(CONCLAVE);
    command.env_clear().envs(variables.iter().copied()).args(arguments).stdin(Stdio::null());
    command.output().expect("it runs")
}

#[test]
fn empty_variables_count_as_unset() {
    let help = with_variables(&[], &["get", "--help"]);
    let help = text(&help.stdout).split_whitespace().collect::<Vec<_>>().join(" ");
    let variables = help.split("[env: ").skip(1).filter_map(|rest| rest.split(['=', ']']).next());
    let variables: Vec<(&str, &str)> = variables.map(|name| (name, "")).collect();
    assert!(variables.len() > 15, "{variables:?}");
    let nothing = format!("--endpoints=127.0.0.1:{}", free_port());
    let get = with_variables(&variables, &["get", "a", &nothing, "--command-timeout=1ms"]);
    assert_eq!(text(&get.stderr), "Error: context deadline exceeded\n");
    let version = with_variables(&variables, &["version"]);
    assert!(version.status.success(), "{}", text(&version.stderr));
}

#[test]
fn variables_and_flags_are_spelled_as_in_go() {
    let Some(program) = program("variables_and_flags_are_spelled_as_in_go") else { return };
    let server = Server::single(program);
    let endpoints = format!("--endpoints={}", server.endpoint());
    let on = ["HEX", "INSECURE_TRANSPORT", "INSECURE_DISCOVERY"]
        .map(|name| (format!("ETCDCTL_{name}"), "1"));
    let on: Vec<(&str, &str)> = on.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    assert!(with_variables(&[], &["put", "a", "b", &endpoints]).status.success());
    for (variables, arguments, shown) in [
        (&on[..], &["get", "a"][..], "\\x61\n\\x62\n"),
        (&on, &["get", "a", "--hex=F"], "a\nb\n"),
        (&[("ETCDCTL_DEBUG", "0")], &["get", "a", "--prefix=T", "--hex=True"], "\\x61\n\\x62\n"),
        (&[], &["get", "a", "--limit=1", "--print-value-only", "--limit=2"], "b\n"),
    ] {
        let got = with_variables(variables, &[arguments, &[&endpoints]].concat());
        assert_eq!((text(&got.stdout).as_str(), text(&got.stderr).as_str()), (shown, ""));
    }
    let unknown = with_variables(&[], &["put", "a", "b", "--prefix=false", &endpoints]);
    assert_eq!(unknown.status.code(), Some(2), "put has no such flag");
}

#[test]
fn exit_codes_are_those_of_etcdctl() {
    let Some(program) = program("exit_codes_are_those_of_etcdctl") else { return };
    let server = Server::single(program);
    let endpoint = server.endpoint();
    let ours = PathBuf::from(CONCLAVE);
    for client in [vec![ours], programs("etcdctl")].concat() {
        let client = client.to_str().expect("a path");
        for (code, arguments, input) in [
            (0, &["get", "a"][..], ""),
            (0, &["put", "a", "b", "--insecure-skip-tls-verify"], ""),
            (1, &["get", "a", "--rev=1000"], ""),
            (3, &["txn"], "\nget\n\n\n"),
            (4, &["get", "a", "-w", "bogus"], ""),
            (5, &["snapshot", "save", "/nonexistent/directory/file"], ""),
            (128, &["get"], ""),
            (128, &["get", "a", "--cacert=/nonexistent"], ""),
            (128, &["get", "a", "--cert=/nonexistent"], ""),
            (128, &["alarm", "list", "x"], ""),
        ] {
            let output = run(client, &endpoint, arguments, input);
            assert_eq!(output.status.code(), Some(code), "{client} {arguments:?} {output:?}");
        }
    }
}

#[test]
fn what_is_set_and_given_otherwise_is_told() {
    let Some(program) = program("what_is_set_and_given_otherwise_is_told") else { return };
    let server = Server::single(program);
    let endpoint = server.endpoint();
    let twice = format!("--endpoints={endpoint}, {endpoint}");
    let put = with_variables(&[("ETCDCTL_ENDPOINT", "x")], &["put", "a", "b", &twice]);
    assert_eq!(text(&put.stdout), "OK\n");
    assert_eq!(text(&put.stderr), "unrecognized environment variable ETCDCTL_ENDPOINT\n");
    let watch = with_variables(&[("ETCDCTL_WATCH_KEY", "x")], &["watch", "a", &twice]);
    assert_eq!(watch.status.code(), Some(128));
    let complaint = "Error: bad number of arguments (found conflicting environment key)\n";
    assert_eq!(text(&watch.stderr), complaint);
    let members = with_variables(&[], &["member", "list", "-w", "json", "--hex", &twice]);
    let members = text(&members.stdout);
    for name in ["cluster_id", "member_id", "ID"] {
        assert!(members.contains(&format!("\"{name}\":\"")), "{members}");
    }
}
