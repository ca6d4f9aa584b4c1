//! What cannot be compared line by line: watches, several endpoints, and our own verbs.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
};

use crate::{
    CONCLAVE, run,
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
        assert_eq!(ours, watch("etcdctl", &server, arguments, count), "{arguments:?}");
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
        "Error: Error reading watch request line: EOF",
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
