//! `lock` and `elect` side by side with etcdctl, and what ours do beyond.

use std::{
    io::{Read, Write},
    path::Path,
    process::{Command, Stdio},
};

use conclave_testing::process::Talking;
use tempfile::TempDir;

use crate::{
    COMMAND_TIMEOUT, CONCLAVE,
    compare::{difference, normal},
    named, programs, run,
    server::{Server, program},
    until,
};

fn etcdctl() -> (TempDir, String) {
    let (dir, path) = named("etcdctl");
    let path = path.to_str().expect("text").to_owned();
    (dir, path)
}

/// A verb that runs until it is stopped.
pub(super) struct Running(Talking);

impl Running {
    pub(super) fn start(program: &str, server: &Server, arguments: &[&str]) -> Self {
        let mut command = Command::new(program);
        command
            .env("ETCDCTL_API", "3")
            .env("ETCDCTL_COMMAND_TIMEOUT", COMMAND_TIMEOUT)
            .args(["--endpoints", &server.endpoint()])
            .args(arguments)
            .stdin(Stdio::null())
            .stderr(Stdio::piped());
        Self(Talking::start(&mut command))
    }

    /// At a terminal of its own, into which is typed what goes to its standard input.
    pub(super) fn at_terminal(arguments: &[&str]) -> Self {
        let words: Vec<String> =
            arguments.iter().map(|word| format!("'{}'", word.replace('\'', r"'\''"))).collect();
        let mut command = Command::new("script");
        let line = ["exec", CONCLAVE, &words.join(" ")].join(" ");
        command.args(["-q", "-e", "-c", &line, "/dev/null"]).env("SHELL", "/bin/sh");
        command.env("ETCDCTL_COMMAND_TIMEOUT", COMMAND_TIMEOUT);
        Self(Talking::start(command.stdin(Stdio::piped()).stderr(Stdio::piped())))
    }

    pub(super) fn line(&mut self) -> String {
        self.0.line()
    }

    fn lines(&mut self, count: usize) -> Vec<String> {
        (0..count).map(|_| self.line()).collect()
    }

    pub(super) fn signal(&self, name: &str) {
        self.0.signal(name);
    }

    pub(super) fn type_in(&mut self, keys: &[u8]) {
        let terminal = self.0.child.stdin.as_mut().expect("a pipe");
        terminal.write_all(keys).expect("it listens");
    }

    /// Its exit code, and its last line of complaints.
    pub(super) fn end(self) -> (Option<i32>, String) {
        let (code, stderr) = self.end_with_all();
        (code, stderr.lines().last().unwrap_or_default().to_owned())
    }

    /// The code it ends with, and all that it says.
    fn end_with_all(mut self) -> (Option<i32>, String) {
        let code = self.0.end().code();
        let mut stderr = String::new();
        let said = self.0.child.stderr.as_mut().expect("a pipe");
        said.read_to_string(&mut stderr).expect("text");
        (code, stderr)
    }
}

/// The number of keys that begin with `prefix`.
fn count(server: &Server, prefix: &str) -> usize {
    let keys = run(CONCLAVE, &server.endpoint(), &["get", prefix, "--prefix", "--keys-only"], "");
    String::from_utf8_lossy(&keys.stdout).lines().filter(|line| !line.is_empty()).count()
}

pub(super) fn until_count(server: &Server, prefix: &str, expected: usize) {
    until(&format!("{expected} keys at {prefix}"), || count(server, prefix) == expected);
}

/// Ends the lease that the first key with `prefix` hangs on.
fn revoke(server: &Server, prefix: &str) {
    let keys = run(CONCLAVE, &server.endpoint(), &["get", prefix, "--prefix", "--keys-only"], "");
    let keys = String::from_utf8_lossy(&keys.stdout).into_owned();
    let lease = keys.lines().next().and_then(|key| key.rsplit_once('/')).expect("a key").1;
    assert!(run(CONCLAVE, &server.endpoint(), &["lease", "revoke", lease], "").status.success());
}

/// Commands of a lock that do not end well.
const ENDINGS: [&str; 3] = ["echo out; exit 3", "kill -KILL $$", "kill -USR1 $$"];

/// Commands that end by themselves.
const COMMANDS: &[&[&str]] = &[
    &["lock"],
    &["elect"],
    &["elect", "e"],
    &["elect", "-l", "e", "x"],
    &["elect", "a", "b", "c"],
    &["elect", "--listen=true", "a", "b"],
    &["lock", "m", "--", "sh", "-c", "echo $ETCD_LOCK_KEY $ETCD_LOCK_REV"],
    &["lock", "m", "echo", "hi"],
    &["lock", "", "--", "echo", "hi"],
    &["lock", "m", "--ttl=0", "--", "echo", "hi"],
    &["lock", "m", "--ttl=-5", "--", "echo", "hi"],
    &["lock", "m", "--", "sh", "-c", ENDINGS[0]],
    &["lock", "m", "--", "sh", "-c", ENDINGS[1]],
    &["lock", "m", "--", "sh", "-c", ENDINGS[2]],
    &["lock", "m", "--", "no-such-program"],
    &["lock", "m", "--", "/no-such-program"],
    &["lock", "m", "--", "/tmp"],
    &["lock", "m", "--", "cat"],
    &["-w", "table", "lock", "m", "--", "echo", "hi"],
    &["-w", "table", "lock", "table"],
    &["-w", "table", "elect", "table", "x"],
    &["-w", "bogus", "lock", "m"],
];

#[test]
fn locks_and_elections_end_as_with_etcdctl() {
    let Some(program) = program("locks_and_elections_end_as_with_etcdctl") else { return };
    let (_dir, ours) = etcdctl();
    let mut differences = Vec::new();
    for theirs in programs("etcdctl") {
        let servers = (Server::single(program.clone()), Server::single(program.clone()));
        for arguments in COMMANDS {
            let shown = |program: &str, server: &Server| {
                let endpoint = server.endpoint();
                normal(&run(program, &endpoint, arguments, "input"), &endpoint)
            };
            let shown = [shown(&theirs.to_string_lossy(), &servers.0), shown(&ours, &servers.1)];
            // Before 3.5 it was 1 whatever the command ended with.
            let is_exempt = is_old(&theirs) && ENDINGS.contains(&arguments[arguments.len() - 1]);
            differences.extend(difference(arguments, "simple", &shown).filter(|_| !is_exempt));
        }
        assert_eq!(count(&servers.1, "m/"), 0);
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn what_is_held_is_printed_as_by_etcdctl_and_given_back() {
    let test = "what_is_held_is_printed_as_by_etcdctl_and_given_back";
    let Some(program) = program(test) else { return };
    let (_dir, ours) = etcdctl();
    let servers = (Server::single(program.clone()), Server::single(program));
    let cases: [(&[&str], usize); 6] = [
        (&["lock", "n"], 2),
        (&["-w", "json", "lock", "n"], 1),
        (&["-w", "fields", "lock", "n"], 12),
        (&["elect", "n", "me"], 2),
        (&["-w", "json", "elect", "n", "me"], 1),
        (&["-w", "fields", "elect", "n", "me"], 12),
    ];
    for theirs in programs("etcdctl") {
        let theirs = theirs.to_string_lossy();
        for (arguments, lines) in cases {
            let shown = |program: &str, server: &Server| {
                let mut running = Running::start(program, server, arguments);
                let printed = running.lines(lines).join("\n");
                running.signal("TERM");
                let end = running.end();
                until_count(server, "n/", 0);
                (masked(&printed), end)
            };
            let shown = [shown(&ours, &servers.1), shown(&theirs, &servers.0)];
            assert_eq!(shown[0], shown[1], "{theirs}: {arguments:?}");
        }
    }
}

/// Whether this etcdctl is Debian's 3.4.
fn is_old(etcdctl: &Path) -> bool {
    let version = Command::new(etcdctl).env("ETCDCTL_API", "3").arg("version").output();
    String::from_utf8_lossy(&version.expect("it runs").stdout).contains("etcdctl version: 3.4")
}

/// Without ids, which are long.
fn masked(text: &str) -> String {
    let is_id = |word: &str| word.len() > 8 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    let is_key = |word: &str| word.len() > 20 && word.starts_with("bi");
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '=');
    let long: Vec<&str> = words.filter(|word| is_id(word) || is_key(word)).collect();
    long.iter().fold(text.to_owned(), |text, word| text.replace(word, "N"))
}

#[test]
fn ours_and_theirs_exclude_each_other() {
    let Some(program) = program("ours_and_theirs_exclude_each_other") else { return };
    // Most of it is waiting: side by side.
    std::thread::scope(|scope| {
        for theirs in programs("etcdctl") {
            let server = Server::single(program.clone());
            scope.spawn(move || exclude_each_other(&theirs.to_string_lossy(), &server));
        }
    });
}

fn exclude_each_other(theirs: &str, server: &Server) {
    let (_dir, ours) = etcdctl();
    for (holder, waiter) in [(theirs, ours.as_str()), (ours.as_str(), theirs)] {
        for (verb, name) in [(&["lock", "x"][..], "x/"), (&["elect", "y", "me"], "y/")] {
            let mut first = Running::start(holder, server, verb);
            assert!(first.line().starts_with(name));
            let canceled = Running::start(waiter, server, verb);
            until_count(server, name, 2);
            canceled.signal("INT");
            assert_eq!(canceled.end(), (Some(1), "Error: context canceled".to_owned()));
            until_count(server, name, 1);
            let mut second = Running::start(waiter, server, verb);
            until_count(server, name, 2);
            first.signal("INT");
            assert_eq!(first.end(), (Some(0), String::new()));
            assert!(second.line().starts_with(name), "it has its turn");
            revoke(server, name);
            let expired = match verb[0] {
                "lock" => "Error: session expired",
                _ => "Error: elect: session expired",
            };
            assert_eq!(second.end(), (Some(1), expired.to_owned()));
            until_count(server, name, 0);
        }
    }
}

#[test]
fn leaders_are_listened_to_as_with_etcdctl() {
    let Some(program) = program("leaders_are_listened_to_as_with_etcdctl") else { return };
    let (_dir, ours) = etcdctl();
    let server = Server::single(program);
    let listen =
        |program: &str| Running::start(program, &server, &["-w", "json", "elect", "-l", "e"]);
    let mut listeners = vec![listen(&ours)];
    listeners.extend(programs("etcdctl").iter().map(|program| listen(&program.to_string_lossy())));
    for proposal in ["one", "two"] {
        let mut leader = Running::start(&ours, &server, &["elect", "e", proposal]);
        leader.lines(2);
        let lines: Vec<String> = listeners.iter_mut().map(Running::line).collect();
        assert!(lines.iter().all(|line| *line == lines[0]), "{lines:?}");
        leader.signal("INT");
        leader.end();
    }
    for listener in listeners {
        listener.signal("INT");
        assert_eq!(listener.end(), (Some(0), String::new()));
    }
}

#[test]
fn a_command_lives_and_dies_with_its_lock() {
    let Some(program) = program("a_command_lives_and_dies_with_its_lock") else { return };
    let server = Server::single(program);
    let endpoint = server.endpoint();
    let held = |arguments: &[&str]| {
        let output = run(CONCLAVE, &endpoint, arguments, "from stdin");
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    assert_eq!(held(&["lock", "l", "--", "cat"]), (Some(0), "from stdin".to_owned()));
    assert_eq!(held(&["lock", "l", "--", "sh", "-c", "exit 7"]), (Some(7), String::new()));
    assert_eq!(held(&["lock", "l", "--", "sh", "-c", "kill -KILL $$"]).0, Some(137));
    assert_eq!(held(&["lock", "l", "--", "no-such-program"]).0, Some(1));
    let script = "test $FENCING_TOKEN -gt 0 && echo $FENCING_TOKEN";
    let tokens = [["lock", "l"], ["lock", "l"], ["elect", "l"]].map(|verb| {
        let (code, token) = held(&[verb[0], verb[1], "--", "sh", "-c", script]);
        assert_eq!(code, Some(0));
        token.trim().parse::<i64>().expect("a number")
    });
    assert!(tokens.is_sorted_by(|a, b| a < b), "{tokens:?}");

    let verbs: [(&str, &[&str]); 2] = [("lock", &["--ttl=600"]), ("elect", &["--ttl=600"])];
    for (verb, flags) in verbs {
        let script = "echo started; exec sleep 600";
        let arguments = [&[verb, "l"], flags, &["--", "sh", "-c", script]].concat();
        let mut running = Running::start(CONCLAVE, &server, &arguments);
        assert_eq!(running.line(), "started");
        assert_eq!(held(&["lock", "l", "--try"]), (Some(1), String::new()));
        let busy = run(CONCLAVE, &endpoint, &["lock", "l", "--wait=50ms", "--", "echo", "x"], "");
        let complaint = "Error: l is held by others: `conclave lock inspect l` tells by whom\n";
        assert_eq!(String::from_utf8_lossy(&busy.stderr), complaint);
        running.signal("TERM");
        assert_eq!(running.end().0, Some(143), "the code of the command that was asked to end");
        until_count(&server, "l/", 0);
    }
    let script = "echo started; exec sleep 600";
    let mut running =
        Running::start(CONCLAVE, &server, &["lock", "l", "--ttl=12", "--", "sh", "-c", script]);
    assert_eq!(running.line(), "started");
    revoke(&server, "l/");
    let complaint = "Error: lost what the command needed: it was ended".to_owned();
    assert_eq!(running.end(), (Some(1), complaint));
}

#[test]
fn a_command_ends_when_its_lock_or_leadership_is_broken() {
    let (_dir, etcd) = named("etcd");
    let server = Server::single(etcd);
    for (verb, flags) in [("lock", &["--ttl=600"][..]), ("lock", &["--shared"]), ("elect", &[])] {
        let script = ["--", "sh", "-c", "echo started; exec sleep 600"];
        let arguments = [&[verb, "l"], flags, &script].concat();
        let mut running = Running::start(CONCLAVE, &server, &arguments);
        assert_eq!(running.line(), "started");
        let seize = ["lock", "break", "l", "--yes", "--reason", "maintenance"];
        assert!(run(CONCLAVE, &server.endpoint(), &seize, "").status.success());
        let (code, said) = running.end_with_all();
        let ended = "Error: lost what the command needed: it was ended";
        assert!(code == Some(1) && said.contains(ended), "{said}");
        assert!(said.contains("an operator took it away by force: maintenance"), "{said}");
    }
}

#[test]
fn native_locks_are_shared_counted_shown_and_broken() {
    let (_dir, etcd) = named("etcd");
    let server = Server::single(etcd);
    let endpoint = server.endpoint();
    let ends = |arguments: &[&str]| {
        let output = run(CONCLAVE, &endpoint, arguments, "");
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let mut readers =
        [(); 2].map(|()| Running::start(CONCLAVE, &server, &["lock", "doc", "--shared"]));
    let tokens = readers.each_mut().map(|reader| {
        let line = reader.line();
        let token = line.strip_prefix("doc is held, token ").expect("held");
        token.parse::<i64>().expect("a number")
    });
    let first = tokens.iter().min().expect("two");
    assert_eq!(ends(&["lock", "doc", "--try", "--", "true"]), (Some(1), String::new()));
    assert_eq!(ends(&["lock", "ls"]), (Some(0), format!("doc, 2, 0, {first}\n")));
    assert_eq!(ends(&["lock", "ls", "other"]), (Some(0), String::new()));
    let places = ends(&["-w", "json", "lock", "inspect", "doc"]).1;
    for shown in [r#""share":"shared""#, r#""state":"holds""#, r#""asked":"20"#, r#""since":"20"#] {
        assert_eq!(places.matches(shown).count(), 2, "{places}");
    }
    assert!(places.contains("process "), "{places}");
    until("others have left", || ends(&["session", "ls"]).1.lines().count() == 2);
    let mut leader = Running::start(CONCLAVE, &server, &["elect", "boss", "me", "--ttl=77"]);
    leader.line();
    let sessions = ends(&["-w", "json", "session", "ls"]).1;
    assert!(sessions.contains(r#""ttl":77"#) && sessions.contains("process "), "{sessions}");
    let candidate = ends(&["-w", "json", "lock", "inspect", "boss"]).1;
    assert!(candidate.contains(r#""note":"me""#), "{candidate}");
    leader.signal("INT");
    leader.end();

    let counted = ["lock", "pool", "--permits", "2", "--limit", "3"];
    let mut pool = Running::start(CONCLAVE, &server, &counted);
    assert!(pool.line().starts_with("pool is held"));
    assert_eq!(ends(&[&counted[..], &["--try"]].concat()).0, Some(1));
    let one = ["lock", "pool", "--permits=1", "--limit=3", "--try", "--", "sh", "-c", "exit 4"];
    assert_eq!(ends(&one).0, Some(4));
    // Permits alone: of so many one.
    let [slot, other] = [(); 2].map(|()| {
        let mut slot = Running::start(CONCLAVE, &server, &["lock", "slots", "--permits", "2"]);
        assert!(slot.line().starts_with("slots is held"));
        slot
    });
    assert_eq!(ends(&["lock", "slots", "--permits", "2", "--try", "--", "true"]).0, Some(1));

    assert_eq!(ends(&["lock", "break", "doc"]).0, Some(128));
    assert_eq!(ends(&["lock", "doc", "--yes"]).0, Some(128), "that is for break");
    assert_eq!(ends(&["lock", "ls", "--shared"]).0, Some(128), "that is for holding");
    let last = tokens.iter().max().expect("two").to_string();
    let broken = ends(&["lock", "break", "doc", "--yes", "--token", &last, "--reason", "a test"]);
    assert_eq!(broken, (Some(0), format!("doc, {last}\n")));
    assert_eq!(ends(&["lock", "break", "doc", "--yes"]), (Some(0), format!("doc, {first}\n")));
    assert_eq!(ends(&["lock", "break", "doc", "--yes"]), (Some(1), String::new()));
    let nobody = run(CONCLAVE, &endpoint, &["lock", "break", "doc", "--yes", "--token=7"], "");
    let complaint = String::from_utf8_lossy(&nobody.stderr).into_owned();
    assert_eq!(complaint, "Error: nobody holds doc with the token 7\n");
    assert_eq!(ends(&["lock", "doc", "--try", "--", "true"]).0, Some(0));
    let mut told = readers.map(Running::end);
    told.sort();
    let lost = "Error: doc is lost: an operator took it away by force".to_owned();
    assert_eq!(told, [(Some(1), lost.clone()), (Some(1), format!("{lost}: a test"))]);
    for holder in [pool, slot, other] {
        holder.signal("TERM");
        assert_eq!(holder.end(), (Some(0), String::new()));
    }
    until("nothing is left behind", || ends(&["session", "ls"]) == (Some(0), String::new()));
    let (_dir, etcdctl) = etcdctl();
    let shared = run(&etcdctl, &endpoint, &["lock", "doc", "--shared"], "");
    assert_eq!(shared.status.code(), Some(128), "etcdctl has no such flag");
}
