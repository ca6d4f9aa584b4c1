//! The same commands through etcdctl and through us, each on a server of its own with the same
//! history: equal output, equal exit codes, equal last line of complaints.

use std::{
    ffi::OsStr,
    fmt::Debug,
    io::Write,
    os::unix::ffi::OsStrExt as _,
    process::{Command, Output},
};

use conclave_client::pb;
use prost::Message;

use crate::{
    CONCLAVE, named, programs, run,
    server::{Server, program},
};

/// Commands that etcdctl and we must answer alike, in every form of output. `LEASE` stands for a lease
/// with a TTL of 600 s.
const COMMANDS: &[(&[&str], &str)] = &[
    (&["put", "a", "1"], ""),
    (&["put", "a", "2", "--prev-kv"], ""),
    (&["put", "b/1", "x y"], ""),
    (&["put", "b/2"], "from stdin"),
    (&["put", "b/3", "--", "-dash"], ""),
    (&["put", "q\"\\n", "x\ty\u{1}é\u{200b}z<&>"], ""),
    (&["put", "b/1", "--ignore-value"], ""),
    (&["put", "b/1", "v", "--ignore-value"], ""),
    (&["put", "a", "1", "--lease=zz"], ""),
    (&["put", "a", "1", "--lease", "1"], ""),
    (&["put", "a", "1", "--lease", "1", "--ignore-lease"], ""),
    (&["put"], ""),
    (&["put", "empty"], ""),
    (&["put", "line"], "\n"),
    (&["put", "l/1", "1", "--lease=LEASE"], ""),
    (&["put", "l/1", "2", "--ignore-lease", "--prev-kv"], ""),
    (&["get", "a"], ""),
    (&["get", "none"], ""),
    (&["get", "", "--prefix"], ""),
    (&["get", "b", "--prefix=true", "--keys-only"], ""),
    (&["get", "b/2", "--from-key", "--limit=2"], ""),
    (&["get", "b/1", "b/3", "--order=DESCEND", "--sort-by=MODIFY"], ""),
    (&["get", "a", "--rev=2", "--consistency=s"], ""),
    (&["get", "a", "--hex"], ""),
    (&["get", "a", "--rev=1000"], ""),
    (&["get", "a", "--consistency=x"], ""),
    (&["get", "a", "--order=x"], ""),
    (&["get", "a", "--sort-by=x"], ""),
    (&["get", "a", "b", "--prefix"], ""),
    (&["get", "a", "--prefix", "--from-key"], ""),
    (&["get"], ""),
    (&["get", "b/1", "b/3", "c"], ""),
    (&["get", "a", "b", "c", "--prefix"], ""),
    (&["put", "a", "2", "3"], ""),
    (&["put", "a", "2", "3", "--ignore-value"], ""),
    (&["del", "a", "b", "c"], ""),
    (&["txn"], "\nput a 1 2\nget b/1 b/3 c\n\n\n"),
    (&["lease", "timetolive", "LEASE", "--keys"], ""),
    (&["lease", "timeto", "LEASE"], ""),
    (&["lease", "timetolive", "1234"], ""),
    (&["lease", "timetolive", "zz"], ""),
    (&["lease", "keep-alive", "--once", "LEASE"], ""),
    (&["lease", "keep-alive", "--once", "1234"], ""),
    (&["lease", "list"], ""),
    (&["lease", "grant", "500"], ""),
    (&["lease", "grant"], ""),
    (&["lease", "grant", "x"], ""),
    (&["lease", "revoke", "LEASE"], ""),
    (&["lease", "revoke", "LEASE"], ""),
    (&["lease", "revoke"], ""),
    (
        &["txn"],
        "ver(\"a\") > \"0\"\nvalue(\"a\") = \"2\"\n\nput t 1\nget a\ndel b/3 --prev-kv\n\nget none\n\n",
    ),
    (
        &["txn"],
        "create(\"a\") = \"0\"\nmod(\"a\") < \"9\"\n\nput t 1\n\nget b/ --prefix --keys-only\nput t \"a b\" --prev-kv\n\n",
    ),
    (&["txn"], "mod(\"\\xff\") = \"0\"\n\nput \"\\xff\" \"\\xfe\"\nget \"\\xff\"\n\n\n"),
    (&["get", "u", "--from-key"], ""),
    (&["txn"], "\ndel \"\\xff\" --prev-kv\n\n\n"),
    (&["txn", "--interactive"], "\nget a\n\n\n"),
    (&["txn"], "bogus\n\n\n\n"),
    (&["txn"], "ver(a) = \"0\"\n\n\n\n"),
    (&["txn"], "foo(\"a\") = \"0\"\n\n\n\n"),
    (&["txn"], "ver(\"a\") = \"x\"\n\n\n\n"),
    (&["txn"], "\nbogus a\n\n\n"),
    (&["txn"], "\nput a\n\n\n"),
    (&["txn"], "\nput a 1\n"),
    (&["txn"], "\nput a 1\nput a 2\n\n\n"),
    (&["txn", "extra"], ""),
    (&["del", "a", "--prev-kv"], ""),
    (&["del", "a"], ""),
    (&["del", "b", "--prefix"], ""),
    (&["del"], ""),
    (&["compaction", "3"], ""),
    (&["compaction", "3"], ""),
    (&["compaction", "3000"], ""),
    (&["compaction", "x"], ""),
    (&["compaction"], ""),
    (&["get", "a", "--rev=2"], ""),
    (&["watch", "a", "--rev=2"], ""),
    (&["watch"], ""),
    (&["member", "list"], ""),
    (&["member", "add"], ""),
    (&["member", "add", "x", "y"], ""),
    (&["member", "add", "x"], ""),
    (&["member", "remove"], ""),
    (&["member", "remove", "zz"], ""),
    (&["member", "remove", "1"], ""),
    (&["member", "update"], ""),
    (&["member", "update", "1"], ""),
    (&["member", "update", "1", "--peer-urls=http://127.0.0.1:1"], ""),
    (&["member", "promote", "1", "2"], ""),
    (&["member", "promote", "1"], ""),
    (&["endpoint", "status"], ""),
    (&["endpoint", "hashkv"], ""),
    (&["alarm", "list"], ""),
    (&["alarm", "disarm"], ""),
    (&["snapshot", "save"], ""),
    (&["get", "a", "--cert=/nonexistent"], ""),
    (&["get", "a", "--insecure-skip-tls-verify"], ""),
    (&["defrag"], ""),
    (&["move-leader"], ""),
    (&["move-leader", "xyz"], ""),
    (&["get", "a", "-w", "bogus"], ""),
];

/// How the JSON of etcdctl 3.4 names the answers in a transaction, and that of 3.5 and later.
const NAMES: [(&str, &str); 3] = [
    ("ResponseRange", "response_range"),
    ("ResponsePut", "response_put"),
    ("ResponseDeleteRange", "response_delete_range"),
];

/// Where we differ on purpose: etcdctl panics (alarms as fields), and the table of what has none.
fn is_exempt(arguments: &[&str], format: &str) -> bool {
    arguments[0] == "alarm" && format == "fields"
}

/// Compares in every format what each etcdctl prints and what we print, each on a server of its own.
pub(crate) fn beside_etcdctl(
    test: &str,
    mut compare: impl FnMut(&str, [(&str, &Server); 2], &mut Vec<String>),
) {
    let Some(program) = program(test) else { return };
    // Under its name: as ourselves we also have tables where it has none.
    let (_dir, same) = named("etcdctl");
    let same = same.to_str().expect("a path");
    let mut differences = Vec::new();
    for etcdctl in programs("etcdctl") {
        let etcdctl = etcdctl.to_str().expect("a path");
        for format in ["simple", "json", "fields", "table"] {
            let (theirs, ours) = (Server::single(program.clone()), Server::single(program.clone()));
            compare(format, [(etcdctl, &theirs), (same, &ours)], &mut differences);
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

/// What is to be told if the two did not print the same.
pub(crate) fn difference(arguments: &[&str], format: &str, shown: &[String; 2]) -> Option<String> {
    let [theirs, ours] = shown;
    let text = format!("{arguments:?} -w {format}\n  etcdctl: {theirs}\n  ours:    {ours}");
    (theirs != ours).then_some(text)
}

#[test]
fn every_verb_prints_what_etcdctl_prints() {
    beside_etcdctl("every_verb_prints_what_etcdctl_prints", |format, clients, differences| {
        let leases = clients.map(|(client, server)| grant(client, &server.endpoint()));
        for (arguments, input) in COMMANDS {
            if is_exempt(arguments, format) {
                continue;
            }
            let shown = |(client, server): (&str, &Server), lease: &str| {
                let mut arguments: Vec<String> =
                    arguments.iter().map(|word| word.replace("LEASE", lease)).collect();
                if !arguments.contains(&"-w".to_owned()) {
                    // In front: behind `--` it would be a value.
                    arguments.insert(0, format!("--write-out={format}"));
                }
                let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
                normal(&run(client, &server.endpoint(), &arguments, input), &server.endpoint())
            };
            let (theirs, ours) = (shown(clients[0], &leases[0]), shown(clients[1], &leases[1]));
            let theirs = NAMES.iter().fold(theirs, |text, (old, new)| text.replace(old, new));
            differences.extend(difference(arguments, format, &[theirs, ours]));
        }
    });
}

/// What a client printed as a message of this type, as a text.
fn message<T: Message + Default + Debug>(printed: &[u8]) -> String {
    let message = T::decode(printed).unwrap_or_else(|error| panic!("{error}: {printed:?}"));
    format!("{message:?}")
}

/// What is no message.
fn plain(printed: &[u8]) -> String {
    String::from_utf8(printed.to_vec()).expect("a text")
}

type Read = fn(&[u8]) -> String;

/// Commands, their input and what their output is read as.
const MESSAGES: &[(&[&str], &str, Read)] = &[
    (&["put", "a", "1"], "", message::<pb::PutResponse>),
    (&["put", "a", "2", "--prev-kv"], "", message::<pb::PutResponse>),
    (&["get", "a"], "", message::<pb::RangeResponse>),
    (&["get", "", "--prefix"], "", message::<pb::RangeResponse>),
    (&["get", "none"], "", message::<pb::RangeResponse>),
    (&["get", "a", "--rev=1000"], "", plain),
    (&["txn"], "ver(\"a\") > \"0\"\n\nput t 1\nget a\ndel a\n\n\n", message::<pb::TxnResponse>),
    (&["del", "t", "--prev-kv"], "", message::<pb::DeleteRangeResponse>),
    (&["member", "list"], "", message::<pb::MemberListResponse>),
    (&["member", "remove", "1"], "", plain),
    // But the header.
    (&["lease", "grant", "500"], "", message::<pb::ResponseHeader>),
    (&["lease", "list"], "", message::<pb::ResponseHeader>),
    (&["lease", "timetolive", "1"], "", message::<pb::ResponseHeader>),
    (&["alarm", "list"], "", message::<pb::AlarmResponse>),
    (&["role", "add", "r"], "", message::<pb::AuthRoleAddResponse>),
    (&["role", "list"], "", message::<pb::AuthRoleListResponse>),
    (&["user", "list"], "", message::<pb::AuthUserListResponse>),
    (&["compaction", "3"], "", plain),
    (&["watch", "a", "--rev=2"], "", message::<pb::WatchResponse>),
    (&["endpoint", "status"], "", plain),
    (&["endpoint", "hashkv"], "", plain),
    (&["defrag"], "", plain),
];

#[test]
fn arguments_may_be_any_bytes() {
    let key = OsStr::from_bytes(b"k\xff");
    let value = OsStr::from_bytes(b"\xfe v");
    let [put, get, end, del] = ["put", "get", "l", "del"].map(OsStr::new);
    let ((_dir, etcd), (_other_dir, same)) = (named("etcd"), named("etcdctl"));
    for program in programs("etcdctl").into_iter().chain([CONCLAVE.into(), same]) {
        let server = Server::single(etcd.clone());
        let program = program.to_str().expect("a path that is text");
        let done = |arguments: &[&OsStr]| {
            let output = run(program, &server.endpoint(), arguments, "");
            assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
            output.stdout
        };
        assert_eq!(done(&[put, key, value]), b"OK\n");
        assert_eq!(done(&[get, key]), b"k\xff\n\xfe v\n");
        assert_eq!(done(&[get, key, end]), b"k\xff\n\xfe v\n");
        assert_eq!(done(&[get, OsStr::new("k\u{fffd}")]), b"", "it is another key");
        assert_eq!(done(&[del, key]), b"1\n");
    }
}

#[test]
fn messages_are_printed_as_by_etcdctl() {
    let Some(program) = program("messages_are_printed_as_by_etcdctl") else { return };
    let mut differences = Vec::new();
    for etcdctl in programs("etcdctl") {
        let etcdctl = etcdctl.to_str().expect("a path");
        let (theirs, ours) = (Server::single(program.clone()), Server::single(program.clone()));
        // The first call waits until the server serves.
        for server in [&theirs, &ours] {
            grant(etcdctl, &server.endpoint());
        }
        for (arguments, input, read) in MESSAGES {
            let shown = |client: &str, server: &Server| {
                let arguments = [&["-w", "protobuf"], *arguments].concat();
                let mut output = run(client, &server.endpoint(), &arguments, input);
                output.stdout = read(&output.stdout).into_bytes();
                normal(&output, &server.endpoint())
            };
            let shown = [shown(etcdctl, &theirs), shown(CONCLAVE, &ours)];
            differences.extend(difference(arguments, "protobuf", &shown));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

/// Whether etcdctl is installed; says so if it is not.
pub(crate) fn has_etcdctl() -> bool {
    let version = Command::new("etcdctl").arg("version").output();
    let is_there = version.is_ok_and(|output| output.status.success());
    if !is_there {
        writeln!(std::io::stderr(), "SKIPPED: no etcdctl (apt-get install etcd-client)")
            .expect("stderr is open");
    }
    is_there
}

fn grant(client: &str, endpoint: &str) -> String {
    loop {
        let output = run(client, endpoint, &["lease", "grant", "600"], "");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if let Some(id) = text.split(' ').nth(1) {
            return id.to_owned();
        }
    }
}

/// Output without what may differ: ids, indexes and terms of the log, hashes, sizes, ports and times.
pub(crate) fn normal(output: &Output, endpoint: &str) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    // etcdctl logs a JSON line before its message.
    let complaint: Vec<&str> = stderr.lines().filter(|line| !line.starts_with('{')).collect();
    let text = format!(
        "stdout {:?} stderr {complaint:?} code {:?}",
        String::from_utf8_lossy(&output.stdout),
        output.status.code(),
    );
    let mut text = text.replace(endpoint, "ENDPOINT");
    if text.contains("+--") {
        // The columns of a table are as wide as such numbers. What a table looks like otherwise is a
        // unit test's matter.
        while text.contains("--") || text.contains("  ") {
            text = text.replace("--", "-").replace("  ", " ");
        }
    }
    // The rows of `endpoint status` are but such numbers.
    let is_status = text.contains(" kB");
    let mut normal = String::new();
    let mut rest = text.as_str();
    while let Some(start) = rest.find(|c: char| c.is_ascii_hexdigit()) {
        let (before, word) = rest.split_at(start);
        let end = word.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(word.len());
        normal.push_str(before);
        let is_number = word[..end].bytes().all(|byte| byte.is_ascii_digit());
        let varies = end >= 9
            || is_number && (is_status || VARYING.iter().any(|name| tail(&normal).contains(name)));
        normal.push_str(if varies { "N" } else { &word[..end] });
        rest = &word[end..];
    }
    normal + rest
}

/// What stands before numbers that may differ.
const VARYING: [&str; 13] = [
    "ENDPOINT",
    "127.0.0.1:",
    "Index",
    "hash",
    "Hash",
    "HASH",
    "term",
    "Term",
    "TTL",
    "ttl",
    "remaining",
    "DBSize",
    "dbSize",
];

/// The last few characters, which name the number that follows.
fn tail(text: &str) -> &str {
    let start = text.char_indices().rev().nth(20).map_or(0, |(index, _)| index);
    &text[start..]
}
