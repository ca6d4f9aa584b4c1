//! What operators do beside looking after members: mirrors, checks, downgrades, completion, tables.

use std::process::{Child, Command, Stdio};

use crate::{
    CONCLAVE, named, run,
    server::Server,
    snapshot::{must, text},
    until,
};

/// A process that is killed in the end.
struct Background(Child);

impl Background {
    fn start(endpoint: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new(CONCLAVE);
        command.args(["--endpoints", endpoint]).args(arguments);
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("it starts"))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.0.kill().expect("it can be killed");
        self.0.wait().expect("it ends");
    }
}

/// A server of ours that serves.
fn serving() -> Server {
    let (dir, etcd) = named("etcd");
    let server = Server::single(etcd);
    drop(dir);
    server
}

/// Waits until a server has `expected` as the keys and values below a prefix.
#[track_caller]
fn holds(server: &Server, prefix: &str, expected: &str) {
    until("the mirror is equal", || {
        let output = run(CONCLAVE, &server.endpoint(), &["get", prefix, "--prefix"], "");
        text(&output.stdout) == expected
    });
}

#[test]
fn a_mirror_follows_every_change_under_another_prefix() {
    let (here, there) = (serving(), serving());
    let (source, target) = (here.endpoint(), there.endpoint());
    must(CONCLAVE, &source, &["put", "a/1", "one"]);
    must(CONCLAVE, &source, &["put", "a/2", "two"]);
    must(CONCLAVE, &source, &["put", "z", "not copied"]);
    must(CONCLAVE, &target, &["put", "b/0", "stays"]);
    let arguments = ["make-mirror", "--prefix=a/", "--dest-prefix=b/", "--max-txn-ops=2", &target];
    let mirror = Background::start(&source, &arguments);
    holds(&there, "", "b/0\nstays\nb/1\none\nb/2\ntwo\n");
    // More in one revision than one transaction there takes.
    let puts: String = (3..8).map(|n| format!("put a/{n} x\n")).collect();
    let txn = run(CONCLAVE, &source, &["txn"], &format!("\n{puts}del a/1\n\n\n"));
    assert!(txn.status.success(), "{txn:?}");
    let many: String = (3..8).map(|n| format!("b/{n}\nx\n")).collect();
    holds(&there, "", &format!("b/0\nstays\nb/2\ntwo\n{many}"));
    must(CONCLAVE, &source, &["del", "a/", "--prefix"]);
    holds(&there, "", "b/0\nstays\n");
    drop(mirror);

    // What happened meanwhile, from a revision on and without a prefix.
    must(CONCLAVE, &source, &["put", "a/9", "nine"]);
    let arguments = ["make-mirror", "--prefix=a/", "--no-dest-prefix", "--rev=6", &target];
    let _mirror = Background::start(&source, &arguments);
    holds(&there, "9", "9\nnine\n");
    let refused = |arguments: &[&str], reason: &str| {
        let output = run(CONCLAVE, &source, arguments, "");
        assert_eq!(output.status.code(), Some(128));
        assert!(text(&output.stderr).contains(reason), "{output:?}");
    };
    refused(&["make-mirror"], "make-mirror takes one destination argument");
    let both = ["make-mirror", "--dest-prefix=x", "--no-dest-prefix", "x:1"];
    refused(&both, "cannot be set at the same time, choose one");
}

#[test]
fn checks_say_what_etcdctl_says_and_leave_nothing_behind() {
    let server = serving();
    let endpoint = server.endpoint();
    let arguments = ["check", "perf", "--duration=2s", "--auto-compact", "--auto-defrag"];
    let perf = run(CONCLAVE, &endpoint, &arguments, "");
    let printed = text(&perf.stdout);
    let lines: Vec<&str> = printed.lines().collect();
    assert!(lines[0].starts_with("Compacting with revision "), "{printed}");
    assert_eq!(
        lines[2..4].concat(),
        format!("Defragmenting \"{endpoint}\"Defragmented \"{endpoint}\"")
    );
    for (line, words) in lines[4..].iter().zip(["Throughput", "Slowest request", "tddev"]) {
        assert!(line.contains(words), "{printed}");
    }
    // How fast this machine is must not matter.
    let (last, code) = (lines[lines.len() - 1], perf.status.code());
    assert!(matches!((last, code), ("PASS", Some(0)) | ("FAIL", Some(1))), "{perf:?}");

    let arguments = ["check", "datascale", "--keys=200", "-w", "json"];
    let json: serde_json::Value =
        serde_json::from_str(&must(CONCLAVE, &endpoint, &arguments)).expect("JSON");
    assert_eq!((&json[0]["check"], &json[0]["is_passed"]), (&"megabytes".into(), &true.into()));
    let simple = must(CONCLAVE, &endpoint, &["check", "datascale", "--keys=200"]);
    assert!(
        simple.starts_with(
            "Start data scale check for work load [200 key-value pairs, 1024 bytes per key-value, \
             50 concurrent clients].\nPASS: Approximate system memory used : "
        ),
        "{simple}"
    );
    assert_eq!(must(CONCLAVE, &endpoint, &["get", "", "--prefix", "--count-only"]), "0\n");

    must(CONCLAVE, &endpoint, &["put", "/etcdctl-check-perf/mine", "1"]);
    let refused = run(CONCLAVE, &endpoint, &["check", "perf"], "");
    assert_eq!(refused.status.code(), Some(3));
    let expected = "Error: prefix \"/etcdctl-check-perf/\" has keys. Delete with etcdctl del \
                    --prefix /etcdctl-check-perf/ first\n";
    assert_eq!(text(&refused.stderr), expected);
    let refused = run(CONCLAVE, &endpoint, &["check", "datascale", "--load=tiny"], "");
    assert_eq!(refused.status.code(), Some(4));
    assert_eq!(text(&refused.stderr), "Error: unknown load option tiny\n");
}

#[test]
fn a_downgrade_is_checked_and_refused() {
    let server = serving();
    let endpoint = server.endpoint();
    let valid = must(CONCLAVE, &endpoint, &["downgrade", "validate", "3.6.0"]);
    assert_eq!(valid, "Downgrade validate success, cluster version 3.7.0\n");
    let json = must(CONCLAVE, &endpoint, &["downgrade", "validate", "3.6.0", "-w", "json"]);
    assert!(json.ends_with(",\"version\":\"3.7.0\"}\n"), "{json}");
    let refused = |arguments: &[&str], code: i32, reason: &str| {
        let output = run(CONCLAVE, &endpoint, arguments, "");
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        assert!(text(&output.stderr).contains(reason), "{output:?}");
    };
    refused(&["downgrade", "validate"], 128, "TARGET_VERSION not provided");
    refused(&["downgrade", "validate", "3.5.0"], 1, "invalid downgrade target version");
    refused(&["downgrade", "validate", "old"], 1, "wrong downgrade target version format");
    refused(
        &["downgrade", "enable", "3.6.0"],
        1,
        "there is no older storage format to downgrade to",
    );
    refused(&["downgrade", "cancel"], 1, "no inflight downgrade job");
}

#[test]
fn shells_are_told_how_to_complete() {
    let (_dir, etcdctl) = named("etcdctl");
    let etcdctl = etcdctl.to_str().expect("a path");
    for shell in ["bash", "zsh", "fish", "powershell"] {
        let script = must(CONCLAVE, "x:1", &["completion", shell]);
        assert!(script.contains("make-mirror") && script.contains("cluster"), "{shell}");
        let script = must(etcdctl, "x:1", &["completion", shell]);
        assert!(script.contains("etcdctl") && script.contains("make-mirror"), "{shell}");
    }
    let script = must(CONCLAVE, "x:1", &["completion", "bash"]);
    let checked = run("bash", "", &["-n"], &script);
    assert!(checked.status.success() && checked.stderr.is_empty(), "{checked:?}");
}

#[test]
fn everything_has_a_table() {
    let server = serving();
    let endpoint = server.endpoint();
    must(CONCLAVE, &endpoint, &["put", "k", "some\tvalue"]);
    let drawn = must(CONCLAVE, &endpoint, &["get", "k", "-w", "table"]);
    assert!(drawn.contains("| KEY |    VALUE    | CREATE REVISION |"), "{drawn}");
    assert!(drawn.contains("|   k | some\\tvalue |               2 |"), "{drawn}");
    let drawn = must(CONCLAVE, &endpoint, &["put", "k", "2", "--prev-kv", "-w", "table"]);
    assert!(drawn.contains(" PrevKey |"), "{drawn}");
    // As etcdctl only what etcdctl has.
    let (_dir, etcdctl) = named("etcdctl");
    let etcdctl = etcdctl.to_str().expect("a path");
    let refused = run(etcdctl, &endpoint, &["get", "k", "-w", "table"], "");
    assert_eq!(text(&refused.stderr), "Error: table not supported as output format\n");
}

#[test]
fn what_the_client_does_is_said_on_request() {
    let arguments = ["get", "k", "--debug", "--command-timeout=500ms"];
    let quiet = run(CONCLAVE, "127.0.0.1:1", &[arguments[0], arguments[1], arguments[3]], "");
    assert_eq!(text(&quiet.stderr), "Error: context deadline exceeded\n");
    let debug = run(CONCLAVE, "127.0.0.1:1", &arguments, "");
    assert!(text(&debug.stderr).contains("retrying"), "{debug:?}");
}
