//! From a real etcd to us: its snapshot is restored, and everything in it is as it was.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Output;

use conclave_client::{Client, Watcher, mvccpb::Event};
use tempfile::TempDir;

use crate::{
    CONCLAVE, PATIENCE,
    compare::has_etcdctl,
    programs, run,
    server::{Server, free_port, program},
    snapshot::{must, path, restore, start, text},
};

/// An etcd that serves, if there is one here.
fn etcd(test: &str) -> Option<Server> {
    let program = program(test)?;
    if !has_etcdctl() {
        return None;
    }
    Some(Server::single(program))
}

/// Many keys in few transactions: `first..last`, each with a value of `bytes`.
fn put_many(endpoint: &str, first: usize, last: usize, bytes: usize) {
    for chunk in (first..last).collect::<Vec<_>>().chunks(100) {
        let puts = chunk.iter().map(|n| format!("put many/{n:05} {}\n", "v".repeat(bytes + n % 7)));
        let txn = format!("\n{}\n\n", puts.collect::<String>());
        let output = run("etcdctl", endpoint, &["txn"], &txn);
        assert!(output.status.success(), "{output:?}");
    }
}

/// A history with something of everything; returns the revision to which it is compacted.
fn write_history(endpoint: &str) -> i64 {
    let do_it = |arguments: &[&str]| must("etcdctl", endpoint, arguments);
    put_many(endpoint, 0, 2_500, 40);
    // Larger than a page of the database, and than a hundred.
    for (key, bytes) in [("large/1", 5_000), ("large/2", 900_000)] {
        let output = run("etcdctl", endpoint, &["put", key], &"x".repeat(bytes));
        assert!(output.status.success(), "{output:?}");
    }
    let granted = do_it(&["lease", "grant", "5000"]);
    let lease = granted.split(' ').nth(1).unwrap().to_owned();
    do_it(&["put", "leased/a", "1", "--lease", &lease]);
    do_it(&["lease", "grant", "300"]);
    do_it(&["del", "many/001", "--prefix"]);
    do_it(&["del", "many/00005"]);
    put_many(endpoint, 0, 300, 10);
    let status = do_it(&["put", "mark", "1", "-w", "json"]);
    let (_, revision) = status.split_once(r#""revision":"#).unwrap();
    let revision: i64 = revision.split([',', '}']).next().unwrap().parse().unwrap();
    do_it(&["compact", &(revision - 3).to_string()]);
    do_it(&["del", "mark"]);
    do_it(&["put", "mark", "again"]);
    do_it(&["put", "leased/a", "2", "--lease", &lease]);
    put_many(endpoint, 2_400, 2_600, 60);
    revision - 3
}

/// What is read at a revision, without the header.
fn everything_at(endpoint: &str, revision: i64) -> Output {
    let revision = format!("--rev={revision}");
    let mut output =
        run("etcdctl", endpoint, &["get", "", "--prefix", &revision, "-w", "json"], "");
    let printed = text(&output.stdout);
    if let Some((_, kvs)) = printed.split_once(r#""kvs":"#) {
        output.stdout = kvs.to_owned().into_bytes();
    }
    output
}

async fn events(endpoint: &str, from: i64, to: i64) -> Vec<Event> {
    let client = Client::builder([endpoint]).build().unwrap();
    let mut watcher: Watcher = client.watch("").prefix().from_revision(from).prev_kv().start();
    let mut events: Vec<Event> = Vec::new();
    let is_last = |event: &Event| event.kv.as_ref().unwrap().mod_revision == to;
    while !events.last().is_some_and(is_last) {
        let response = tokio::time::timeout(PATIENCE, watcher.next()).await;
        events.extend(response.unwrap().unwrap().unwrap().events);
    }
    events
}

#[tokio::test]
async fn an_etcd_becomes_one_of_ours() {
    let Some(old) = etcd("an_etcd_becomes_one_of_ours") else { return };
    let dir = TempDir::new().unwrap();
    let compacted = write_history(&old.endpoint());
    let file = path(&dir, "etcd.db");
    must("etcdctl", &old.endpoint(), &["snapshot", "save", &file]);

    // What etcdctl prints of it, and then the version, which 3.4 does not store.
    let theirs = must("etcdctl", "x:1", &["snapshot", "status", &file]);
    let ours = must(CONCLAVE, "x:1", &["snapshot", "status", &file]);
    assert_eq!(ours, format!("{}, \n", theirs.trim_end()));
    let revision: i64 = theirs.split(", ").nth(1).unwrap().parse().unwrap();
    assert!(revision > compacted + 3, "{revision}");

    let (output, flags) = restore(CONCLAVE, &file, &path(&dir, "new"), &["--bump-revision=0"]);
    assert!(output.status.success(), "{output:?}");
    let (running, new) = start(&flags);
    for at in [0, revision, revision - 1, compacted + 2, compacted + 1, compacted, compacted - 1] {
        let (theirs, ours) = (everything_at(&old.endpoint(), at), everything_at(&new, at));
        assert_eq!(theirs.status.code(), ours.status.code(), "{at}: {ours:?}");
        assert!(theirs.stdout == ours.stdout, "at revision {at}");
    }
    let theirs = events(&old.endpoint(), compacted + 1, revision).await;
    assert!(theirs.len() > 200, "{}", theirs.len());
    assert!(theirs == events(&new, compacted + 1, revision).await, "the same events");

    let leases = |endpoint: &str| {
        let list = must("etcdctl", endpoint, &["lease", "list"]);
        let mut ids: Vec<String> = list.lines().skip(1).map(str::to_owned).collect();
        ids.sort();
        ids
    };
    let ids = leases(&old.endpoint());
    assert_eq!((ids.len(), &ids), (2, &leases(&new)));
    let keys = ids.iter().map(|id| must("etcdctl", &new, &["lease", "timetolive", id, "--keys"]));
    let keys: String = keys.collect();
    assert!(keys.contains("granted with TTL(5000s)") && keys.contains("[leased/a]"), "{keys}");
    assert!(keys.contains("granted with TTL(300s)"), "{keys}");
    // It goes on as the old one would.
    let put = must("etcdctl", &new, &["put", "mark", "ours", "--prev-kv", "-w", "json"]);
    assert!(put.contains(&format!(r#""revision":{}"#, revision + 1)), "{put}");
    must("etcdctl", &new, &["compact", &(revision + 1).to_string()]);
    running.stop();
}

#[test]
fn users_and_roles_come_along() {
    if !has_etcdctl() {
        return;
    }
    for program in programs("etcd") {
        users_and_roles_come_along_from(program);
    }
}

fn users_and_roles_come_along_from(program: PathBuf) {
    let old = Server::single(program);
    let dir = TempDir::new().unwrap();
    let endpoint = old.endpoint();
    let do_it = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        must("etcdctl", &endpoint, &words)
    };
    // As long a password as etcd 3.4 and 3.5 store, though bcrypt reads 72 bytes of it only.
    let long = "x".repeat(80);
    for line in [
        "put a/1 one",
        "put b/1 two",
        "role add reads-a",
        "role grant-permission reads-a read a/ --prefix=true",
        "role grant-permission reads-a readwrite z",
        "role grant-permission reads-a read b a",
        "user add alice:secret",
        &format!("user add bob:{long}"),
        "user grant-role alice reads-a",
        "user grant-role bob reads-a",
        "user add nobody --no-password",
        "user add root:master",
        "user grant-role root root",
        "auth enable",
    ] {
        do_it(line);
    }
    let file = path(&dir, "etcd.db");
    must("etcdctl", &endpoint, &["--user=root:master", "snapshot", "save", &file]);
    let (output, flags) = restore(CONCLAVE, &file, &path(&dir, "new"), &[]);
    assert!(output.status.success(), "{output:?}");
    let warned = r#"Warning: role "reads-a" had permissions for no keys"#;
    assert!(text(&output.stderr).contains(warned), "{output:?}");
    let (running, new) = start(&flags);
    // What gives no right is all that is missing.
    do_it("--user=root:master role revoke-permission reads-a b a");
    for line in [
        "get a/1",
        "--user=alice:secret get a/1",
        "--user=alice:secret get b/1",
        "--user=alice:secret get a/ --prefix",
        "--user=alice:secret put z 1",
        "--user=alice:secret put a/1 x",
        "--user=alice:wrong get a/1",
        &format!("--user=bob:{long} get a/1"),
        &format!("--user=bob:{long}y get a/1"),
        &format!("--user=bob:{} get a/1", &long[..71]),
        "--user=nobody:x get a/1",
        "--user=root:master get b/1",
        "--user=root:master user list",
        "--user=root:master user get alice",
        "--user=root:master role list",
        "--user=root:master role get reads-a",
        "--user=root:master user delete root",
    ] {
        let words: Vec<&str> = line.split(' ').collect();
        let shown = |endpoint: &str| {
            let output = run("etcdctl", endpoint, &words, "");
            let complaint = text(&output.stderr);
            // etcdctl logs a JSON line before its message.
            let complaint = complaint.lines().rfind(|line| !line.starts_with('{'));
            let complaint = complaint.map(str::to_owned);
            (text(&output.stdout), complaint, output.status.code())
        };
        assert_eq!(shown(&new), shown(&endpoint), "{line}");
    }
    running.stop();
}

/// Every file and directory below, with the bytes of files.
fn content(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path.clone());
            }
            let bytes = std::fs::read(&path).unwrap_or_default();
            found.insert(path, bytes);
        }
    }
    found
}

#[test]
fn the_directory_of_an_etcd_is_refused_as_it_is() {
    let Some(mut old) = etcd("the_directory_of_an_etcd_is_refused_as_it_is") else { return };
    must("etcdctl", &old.endpoint(), &["put", "a", "1"]);
    old.kill();
    let before = content(&old.data_dir());
    let data_dir = format!("--data-dir={}", old.data_dir().display());
    let [client, peer] = [free_port(), free_port()].map(|port| format!("http://127.0.0.1:{port}"));
    let listen = format!("--listen-client-urls={client}");
    let arguments = ["server", &data_dir, &listen, "--advertise-client-urls", &client];
    let peers = format!("--listen-peer-urls={peer}");
    let output = run(CONCLAVE, "", &[&arguments[..], &[&peers]].concat(), "");
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(
        said.contains("is that of an etcd that ran (it has ") && said.contains("snapshot restore"),
        "{said}"
    );
    assert!(content(&old.data_dir()) == before, "nothing was added, changed or removed");
}

#[test]
fn what_etcdctl_restored_is_started_as_it_is() {
    let Some(old) = etcd("what_etcdctl_restored_is_started_as_it_is") else { return };
    let dir = TempDir::new().unwrap();
    write_history(&old.endpoint());
    let file = path(&dir, "saved");
    must("etcdctl", &old.endpoint(), &["snapshot", "save", &file]);
    let revision = must("etcdctl", &old.endpoint(), &["get", "mark", "-w", "json"]);
    let (_, revision) = revision.split_once(r#""revision":"#).unwrap();
    let revision: i64 = revision.split([',', '}']).next().unwrap().parse().unwrap();
    let data = path(&dir, "data");
    let (output, [name, data_dir, _, _, listen]) = restore("etcdctl", &file, &data, &[]);
    assert!(output.status.success(), "{output:?}");
    let flags = [name, data_dir, listen];
    // Killed while it was taken over: begun anew.
    std::fs::write(Path::new(&data).join("TAKEOVER_UNFINISHED"), "").unwrap();
    std::fs::create_dir(Path::new(&data).join("state")).unwrap();
    for round in 0..2 {
        let (running, endpoint) = start(&flags);
        for at in [revision - 20, revision] {
            let (ours, theirs) = (everything_at(&endpoint, at), everything_at(&old.endpoint(), at));
            assert_eq!(text(&ours.stdout), text(&theirs.stdout), "at {at}");
        }
        let list = must(CONCLAVE, &endpoint, &["member", "list"]);
        assert!(list.contains("started, new, "), "{list}");
        must(CONCLAVE, &endpoint, &["put", &format!("after/{round}"), "1"]);
        if round == 1 {
            let get = must(CONCLAVE, &endpoint, &["get", "after/0", "--print-value-only"]);
            assert_eq!(get, "1\n", "it is taken over once");
        }
        running.stop();
    }
    // What it served is lost: it must not begin once more with what etcd left.
    std::fs::remove_dir_all(Path::new(&data).join("state")).unwrap();
    let before = content(Path::new(&data));
    let client = format!("http://127.0.0.1:{}", free_port());
    let urls = ["listen", "advertise"].map(|kind| format!("--{kind}-client-urls={client}"));
    let [name, data_dir, listen] = &flags;
    let output = run(CONCLAVE, "", &["server", name, data_dir, listen, &urls[0], &urls[1]], "");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(content(Path::new(&data)) == before, "nothing was added, changed or removed");
}

#[test]
fn our_save_of_an_etcd_is_etcdctls() {
    let Some(old) = etcd("our_save_of_an_etcd_is_etcdctls") else { return };
    let dir = TempDir::new().unwrap();
    must("etcdctl", &old.endpoint(), &["put", "a", "1"]);
    let file = path(&dir, "saved");
    must(CONCLAVE, &old.endpoint(), &["snapshot", "save", &file]);
    assert!(must("etcdctl", "x:1", &["snapshot", "status", &file]).contains(", 2, "));
    // Restored by etcdctl, too, which checks the digest.
    let (output, _) = restore("etcdctl", &file, &path(&dir, "theirs"), &[]);
    assert!(output.status.success(), "{output:?}");

    // Without the digest it is what lies in a data directory.
    let mut bytes = std::fs::read(&file).unwrap();
    bytes.truncate(bytes.len() - 32);
    let copied = path(&dir, "copied");
    std::fs::write(&copied, &bytes).unwrap();
    let (output, _) = restore(CONCLAVE, &copied, &path(&dir, "ours"), &[]);
    assert!(text(&output.stderr).contains("does not end with a SHA-256"), "{output:?}");
    let (output, _) = restore(CONCLAVE, &copied, &path(&dir, "ours"), &["--skip-hash-check"]);
    assert!(output.status.success(), "{output:?}");
    let warning = "Warning: this is the database out of an etcd's data directory.";
    assert!(text(&output.stderr).contains(warning), "{output:?}");
    let (output, _) = restore(CONCLAVE, &file, &path(&dir, "whole"), &["--skip-hash-check"]);
    assert!(output.status.success() && !text(&output.stderr).contains(warning), "{output:?}");
}
