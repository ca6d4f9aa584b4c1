//! `snapshot save|status|restore`, ours and etcdctl's, on files of ours and of a real etcd.

use std::{
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Output,
};

use tempfile::TempDir;

use crate::{
    CONCLAVE,
    compare::has_etcdctl,
    local::Running,
    run,
    server::{Server, free_port},
};

/// A server of ours that others take for an etcd.
fn our_server(dir: &TempDir) -> Server {
    let program = dir.path().join("etcd");
    symlink(CONCLAVE, &program).unwrap();
    Server::single(program)
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a program, which must succeed; what it printed.
#[track_caller]
pub(crate) fn must(program: &str, endpoint: &str, arguments: &[&str]) -> String {
    let output = run(program, endpoint, arguments, "");
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    text(&output.stdout)
}

/// Puts until the server serves.
fn put(endpoint: &str, key: &str, value: &str) {
    let arguments = ["put", key, value, "--command-timeout=60s"];
    assert_eq!(must(CONCLAVE, endpoint, &arguments), "OK\n");
}

pub(crate) fn path(dir: &TempDir, name: &str) -> String {
    dir.path().join(name).to_str().unwrap().to_owned()
}

fn exists(file: &str) -> bool {
    Path::new(file).exists()
}

/// Restores `file` with these flags in addition; what the server is to be started with afterwards.
pub(crate) fn restore(
    program: &str,
    file: &str,
    data_dir: &str,
    flags: &[&str],
) -> (Output, [String; 5]) {
    let peer = format!("http://127.0.0.1:{}", free_port());
    let common = [
        "--name=new".to_owned(),
        format!("--data-dir={data_dir}"),
        format!("--initial-cluster=new={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
    ];
    let mut arguments = vec!["snapshot", "restore", file];
    arguments.extend(common.iter().map(String::as_str));
    arguments.extend(flags);
    let output = run(program, "127.0.0.1:1", &arguments, "");
    let [name, dir, cluster, advertise] = common;
    (output, [name, dir, cluster, advertise, format!("--listen-peer-urls={peer}")])
}

/// A server on a restored directory, and where it serves.
pub(crate) fn start(flags: &[String]) -> (Running, String) {
    let client = format!("http://127.0.0.1:{}", free_port());
    let listen = format!("--listen-client-urls={client}");
    let advertise = format!("--advertise-client-urls={client}");
    let mut arguments = vec!["server", "--log-outputs=stdout", &listen, &advertise];
    arguments.extend(flags.iter().map(String::as_str));
    let mut running = Running::start(&arguments);
    running.wait_for("ready to serve client requests");
    (running, client)
}

#[test]
fn what_is_saved_becomes_a_new_cluster() {
    let dir = TempDir::new().unwrap();
    let old = our_server(&dir);
    let endpoint = old.endpoint();
    put(&endpoint, "greeting", "hello");
    put(&endpoint, "other", "x");
    let file = path(&dir, "saved");
    let printed = must(CONCLAVE, &endpoint, &["snapshot", "save", &file]);
    assert_eq!(printed, format!("Snapshot saved at {file}\n"));
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "it holds secrets");
    assert!(!exists(&format!("{file}.part")));

    let status = must(CONCLAVE, "x:1", &["snapshot", "status", &file]);
    let cells: Vec<&str> = status.trim_end().split(", ").collect();
    assert_eq!(cells[1], "3", "{status}");
    assert!(cells[4].starts_with("conclave "), "{status}");
    let own = path(&dir, "own");
    must(CONCLAVE, &endpoint, &["snapshot", "save", &own, "--format=conclave"]);
    assert!(std::fs::read(&own).unwrap().starts_with(b"conclave backup"));
    let status = must(CONCLAVE, "x:1", &["snapshot", "status", &own]);
    let cells: Vec<&str> = status.trim_end().split(", ").collect();
    assert_eq!(cells[1..3], ["3", "2"], "{status}");

    let data = path(&dir, "restored");
    let (output, flags) = restore(CONCLAVE, &file, &data, &[]);
    assert!(output.status.success() && output.stdout.is_empty(), "{output:?}");
    let said = text(&output.stderr);
    let expected = "2 keys, saved at revision 3, now at revision 1000000003 and compacted\n";
    assert!(said.ends_with(expected), "{said}");
    let (running, endpoint) = start(&flags);
    let get = must(CONCLAVE, &endpoint, &["get", "greeting", "-w", "json"]);
    assert!(
        get.contains(r#""revision":1000000003"#) && get.contains(r#""mod_revision":2"#),
        "{get}"
    );
    put(&endpoint, "greeting", "again");
    running.stop();

    let (output, _) = restore(CONCLAVE, &file, &data, &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("is not empty"), "{output:?}");
}

#[test]
fn etcdctl_saves_from_us() {
    if !has_etcdctl() {
        return;
    }
    let dir = TempDir::new().unwrap();
    let old = our_server(&dir);
    let endpoint = old.endpoint();
    put(&endpoint, "a", "1");
    let file = path(&dir, "saved");
    let printed = must("etcdctl", &endpoint, &["snapshot", "save", &file]);
    assert_eq!(printed, format!("Snapshot saved at {file}\n"));
    let read = must("etcdctl", "x:1", &["snapshot", "status", &file, "-w", "json"]);
    assert!(read.contains(r#""revision":2,"totalKey":"#), "{read}");
    // Under etcd's names, and exactly as it was.
    for name in ["etcdctl", "etcdutl"] {
        let program = path(&dir, name);
        symlink(CONCLAVE, &program).unwrap();
        let json = must(&program, "x:1", &["snapshot", "status", &file, "-w", "json"]);
        let same = read.trim_end().trim_end_matches('}');
        assert!(json.starts_with(same), "{json} is not {read}");
        let data = path(&dir, &format!("by-{name}"));
        let (output, flags) = restore(&program, &file, &data, &["--bump-revision=0"]);
        assert!(output.status.success() && output.stdout.is_empty(), "{output:?}");
        let (running, endpoint) = start(&flags);
        let get = must("etcdctl", &endpoint, &["get", "a", "--rev=2", "-w", "fields"]);
        assert!(get.contains("\"Revision\" : 2\n"), "{get}");
        running.stop();
    }
}

#[test]
fn a_save_that_fails_leaves_no_file() {
    let dir = TempDir::new().unwrap();
    let file = path(&dir, "saved");
    let save = |endpoint: &str, file: &str| {
        run(CONCLAVE, endpoint, &["snapshot", "save", file, "--command-timeout=300ms"], "")
    };
    let dead = save("127.0.0.1:1", &file);
    assert_eq!(dead.status.code(), Some(5));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    let several = save("127.0.0.1:1,127.0.0.1:2", &file);
    assert_eq!(several.status.code(), Some(128));
    let expected = "Error: snapshot must be requested to one selected node, not multiple \
                    [127.0.0.1:1 127.0.0.1:2]\n";
    assert_eq!(text(&several.stderr), expected);
    let nowhere = save("127.0.0.1:1", &path(&dir, "no/such/dir"));
    assert!(text(&nowhere.stderr).contains("No such file"), "{nowhere:?}");
}

#[test]
fn what_cannot_be_restored_is_refused_with_a_reason() {
    let dir = TempDir::new().unwrap();
    let old = our_server(&dir);
    put(&old.endpoint(), "a", "1");
    let file = path(&dir, "saved");
    must(CONCLAVE, &old.endpoint(), &["snapshot", "save", &file, "--format=conclave"]);
    let bytes = std::fs::read(&file).unwrap();
    let data = path(&dir, "data");
    let refused = |file: &str, flags: &[&str], code: i32, reason: &str| {
        let (output, _) = restore(CONCLAVE, file, &data, flags);
        let said = text(&output.stderr);
        assert!(said.starts_with("Error: ") && said.contains(reason), "{said}");
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(!exists(&data));
    };
    let changed = path(&dir, "changed");
    let mut damaged = bytes.clone();
    damaged[bytes.len() / 2] ^= 1;
    std::fs::write(&changed, damaged).unwrap();
    refused(&changed, &[], 1, "is damaged: it has the SHA-256");
    let status = run(CONCLAVE, "x:1", &["snapshot", "status", &changed], "");
    assert!(text(&status.stderr).contains("is damaged: it has the SHA-256"), "{status:?}");
    refused(&changed, &["--skip-hash-check"], 1, "is damaged: a block has a wrong checksum");
    std::fs::write(&changed, &bytes[..bytes.len() - 100]).unwrap();
    refused(&changed, &[], 1, "does not end with a SHA-256");
    refused(&changed, &["--skip-hash-check=true"], 1, "and should have");
    std::fs::write(&changed, "something else").unwrap();
    refused(&changed, &["--skip-hash-check"], 1, "is neither a backup of Conclave nor");
    refused(&path(&dir, "none"), &[], 1, "No such file");
    refused(&file, &["--mark-compacted=false"], 128, "--mark-compacted goes with");
    refused(&file, &["--bump-revision=0", "--mark-compacted"], 128, "--mark-compacted goes with");
    refused(&file, &["--bump-revision=18446744073709551615"], 128, "is too large");
    let none = run(CONCLAVE, "x:1", &["snapshot", "restore"], "");
    assert_eq!(text(&none.stderr), "Error: snapshot restore expects one argument\n");
    let status = run(CONCLAVE, "x:1", &["snapshot", "status", &changed], "");
    assert_eq!(status.status.code(), Some(1));
}

#[test]
fn every_member_is_restored_from_the_same_file() {
    let dir = TempDir::new().unwrap();
    let old = our_server(&dir);
    put(&old.endpoint(), "a", "1");
    let file = path(&dir, "saved");
    must(CONCLAVE, &old.endpoint(), &["snapshot", "save", &file]);
    let peers: Vec<String> = (0..3).map(|_| format!("http://127.0.0.1:{}", free_port())).collect();
    let members = peers.iter().enumerate().map(|(i, peer)| format!("n{i}={peer}"));
    let cluster = format!("--initial-cluster={}", members.collect::<Vec<_>>().join(","));
    let member = |i: usize| {
        let data = path(&dir, &format!("n{i}"));
        let flags = [
            format!("--name=n{i}"),
            format!("--data-dir={data}"),
            format!("--initial-advertise-peer-urls={}", peers[i]),
            format!("--wal-dir={data}-wal"),
            cluster.clone(),
        ];
        let mut arguments = vec!["snapshot", "restore", &file, "--initial-cluster-token=new"];
        arguments.extend(flags.iter().map(String::as_str));
        must(CONCLAVE, "x:1", &arguments);
        assert!(PathBuf::from(format!("{data}-wal")).is_dir());
        let client = format!("http://127.0.0.1:{}", free_port());
        let listen = [
            format!("--listen-peer-urls={}", peers[i]),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
        ];
        let mut arguments = vec!["server", "--log-outputs=stdout"];
        arguments.extend(flags.iter().chain(&listen).map(String::as_str));
        (Running::start(&arguments), client)
    };
    let mut members: Vec<(Running, String)> = (0..3).map(member).collect();
    for (running, _) in &mut members {
        running.wait_for("ready to serve client requests");
    }
    put(&members[0].1, "b", "2");
    assert_eq!(must(CONCLAVE, &members[2].1, &["get", "a", "--print-value-only"]), "1\n");
    assert_eq!(must(CONCLAVE, &members[1].1, &["get", "b", "--print-value-only"]), "2\n");
    let list = must(CONCLAVE, &members[1].1, &["member", "list"]);
    assert_eq!(list.matches("started").count(), 3, "{list}");
    for (running, _) in members {
        running.stop();
    }
}
