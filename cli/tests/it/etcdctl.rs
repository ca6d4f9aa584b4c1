//! Every verb of every `etcdctl` that can be had, against three of our members: in the clear, and with TLS
//! and users.
//!
//! Debian's is 3.4; `interop/run.sh` fetches 3.5.1 from PyPI. What runs for a minute is tried with
//! `CONCLAVE_INTEROP_LONG=1` only.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    io::{BufRead as _, BufReader, Write as _},
    path::PathBuf,
    process::{Child, ChildStdout, Command, Output, Stdio},
};

use tempfile::TempDir;

use crate::etcdctl_steps::{ACCESS, ENABLE, FUNCTIONS, LONG, OFFLINE, STEPS, Step};
use crate::{
    CONCLAVE, eventually, named, programs, run, server::Server, snapshot::text, tls::Stage, until,
};

const ROOT: &str = "--user=root:rootpw";

/// One `etcdctl` and the members that it asks.
pub(crate) struct Suite<'a> {
    program: PathBuf,
    servers: &'a [Server],
    /// What every call needs.
    common: Vec<String>,
    pub(crate) is_enabled: bool,
    /// The member to which the next step goes; all of them for what asks each.
    turn: usize,
    /// What it can do, by its own words.
    verbs: BTreeSet<String>,
    /// What `$NAME` stands for.
    pub(crate) names: BTreeMap<&'static str, String>,
    dir: TempDir,
}

impl<'a> Suite<'a> {
    pub(crate) fn new(program: PathBuf, servers: &'a [Server], common: &[String]) -> Self {
        let help = Command::new(&program).env("ETCDCTL_API", "3").arg("--help").output().unwrap();
        let help = text(&help.stdout);
        let commands = help.split_once("COMMANDS:\n").expect("a list of commands").1;
        let lines = commands.lines().take_while(|line| !line.is_empty());
        let verbs = lines.filter_map(|line| line.split('\t').nth(1).map(str::to_owned)).collect();
        let endpoints: Vec<String> = servers.iter().map(Server::endpoint).collect();
        let dir = TempDir::new().unwrap();
        let names = BTreeMap::from([
            ("$DIR", dir.path().display().to_string()),
            ("$ENDPOINT", endpoints.first().cloned().unwrap_or_default()),
        ]);
        let common = common.to_vec();
        Self { program, servers, common, is_enabled: false, turn: 0, verbs, names, dir }
    }

    fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(&self.program);
        command
            .env_clear()
            .env("PATH", env::var_os("PATH").unwrap_or_default())
            .env("ETCDCTL_API", "3")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Hashing a password takes its time on a machine that is busy with other things. No variable:
            // some verbs of etcdctl read those twice, and take the second for a contradiction.
            .arg("--command-timeout=60s");
        for common in self.common.iter().chain([&self.endpoints(arguments)]) {
            // A flag of the step is in place of the common one.
            let name = common.split('=').next().expect("a name");
            if !arguments.contains(&format!("{name}=")) {
                command.arg(common);
            }
        }
        if self.is_enabled && !arguments.contains("--user=") {
            command.arg(ROOT);
        }
        let named = self.names.iter();
        let arguments = named.fold(arguments.to_owned(), |all, (name, it)| all.replace(name, it));
        command.args(arguments.split(' '));
        command
    }

    /// Runs a call to its end.
    pub(crate) fn output(&self, arguments: &str, input: &str) -> Output {
        let mut child = self.command(arguments).spawn().expect("it starts");
        child.stdin.take().expect("a pipe").write_all(input.as_bytes()).ok();
        child.wait_with_output().expect("it ends")
    }

    /// Where a step goes to: to one member, unless it asks all of them.
    fn endpoints(&self, arguments: &str) -> String {
        let asks_all = ["endpoint", "move-leader", "defrag", "check", "auth", "user", "role"];
        let asks_all = asks_all.iter().any(|verb| arguments.starts_with(verb));
        let turn = (!asks_all && !self.servers.is_empty()).then(|| self.turn % self.servers.len());
        let servers = self.servers.iter().enumerate();
        let chosen = servers.filter(|(number, _)| turn.is_none_or(|turn| turn == *number));
        let chosen: Vec<String> = chosen.map(|(_, server)| server.endpoint()).collect();
        format!("--endpoints={}", chosen.join(","))
    }

    /// Whether the step was answered as it should be; else what was.
    fn attempt(&mut self, (arguments, input, expected): Step) -> Result<(), String> {
        let output = self.output(arguments, input);
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        let expected =
            self.names.iter().fold(expected.to_owned(), |all, (n, it)| all.replace(n, it));
        let is_right = match expected.strip_prefix('!') {
            Some(reason) => !output.status.success() && stderr.contains(reason),
            // 3.4 says on standard error which endpoints are healthy.
            None => output.status.success() && (stdout.clone() + &stderr).contains(&expected),
        };
        if !is_right {
            return Err(format!("{arguments}: wanted {expected:?}, got {stdout:?} {stderr:?}"));
        }
        let word = |number: usize| stdout.split_whitespace().nth(number).unwrap_or("").to_owned();
        match arguments.split(' ').take(2).collect::<Vec<_>>()[..] {
            ["lease", "grant"] => drop(self.names.insert("$LEASE", word(1))),
            ["member", "add"] => drop(self.names.insert("$MEMBER", word(1))),
            _ => {}
        }
        Ok(())
    }

    /// Does the steps that this `etcdctl` knows; all that failed.
    fn all(&mut self, steps: &[Step]) -> Vec<String> {
        let mut failed = Vec::new();
        for &step in steps {
            if !self.knows(step.0) {
                continue;
            }
            // What is answered from a member's own state is asked where the step before was.
            let is_local = step.0.contains("consistency=s") || step.0.starts_with("member");
            self.turn += usize::from(!is_local);
            if step.0.starts_with("move-leader") {
                self.names.insert("$FOLLOWER", self.follower());
            }
            let done = eventually("a step", || match self.attempt(step) {
                // Members that were not connected for long enough are no quorum yet.
                Err(text) if text.contains("unhealthy cluster") => None,
                // Nor does this member know yet what another one was told.
                Err(text) if text.contains("authentication is not enabled") => None,
                done => Some(done),
            });
            failed.extend(done.err());
            self.is_enabled |= step.0 == "auth enable";
        }
        failed
    }

    fn knows(&self, arguments: &str) -> bool {
        let words: Vec<&str> = arguments.split(' ').take(2).collect();
        self.verbs.contains(words[0]) || self.verbs.contains(&words.join(" "))
    }

    /// The id of a member that does not lead.
    fn follower(&self) -> String {
        eventually("a leader", || {
            let output = self.command("endpoint status").output().expect("it runs");
            let status = text(&output.stdout);
            let mut rows = status.lines().map(|line| line.split(", ").collect::<Vec<_>>());
            rows.find(|row| row.get(4) == Some(&"false")).map(|row| row[1].to_owned())
        })
    }

    /// A call that goes on until it is killed.
    fn start(&self, arguments: &str) -> (Running, BufReader<ChildStdout>) {
        let mut child = self.command(arguments).spawn().expect("it starts");
        let stdout = child.stdout.take().expect("a pipe");
        (Running(child), BufReader::new(stdout))
    }

    /// The first lines of a call that goes on until it is killed.
    fn lines(&self, arguments: &str, count: usize) -> Vec<String> {
        let (_running, stdout) = self.start(arguments);
        stdout.lines().take(count).map(|line| line.expect("a line")).collect()
    }

    fn watch(&self) {
        let put = self.command("put w 1").output().expect("it runs");
        assert!(put.status.success(), "{put:?}");
        assert_eq!(self.lines("watch w --rev=3", 3), ["PUT", "w", "1"]);
        let json = self.lines("watch w --rev=3 --prev-kv -w json", 1);
        assert!(json[0].contains("\"Events\":[{"), "{json:?}");
    }

    fn elect(&self) {
        let (_leading, stdout) = self.start("elect e me");
        let led: Vec<String> = stdout.lines().take(2).map(Result::unwrap).collect();
        assert!(led[0].starts_with("e/") && led[1] == "me", "{led:?}");
        assert_eq!(self.lines("elect -l e", 2), led);
    }

    fn mirror(&self) {
        let (_dir, etcd) = named("etcd");
        let other = Server::single(etcd);
        let endpoint = other.endpoint();
        let put = self.command("put m/1 one").output().expect("it runs");
        assert!(put.status.success(), "{put:?}");
        let arguments = format!("make-mirror --prefix=m/ --dest-prefix=n/ {endpoint}");
        let _running = self.start(&arguments);
        until("the mirror is equal", || {
            let output = run(CONCLAVE, &endpoint, &["get", "n/", "--prefix"], "");
            text(&output.stdout) == "n/1\none\n"
        });
    }
}

/// Killed in the end.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().expect("it can be killed");
        self.0.wait().expect("it ends");
    }
}

/// Every verb that an `etcdctl` has; users are needed before or after all else.
fn every_verb(program: PathBuf, servers: &[Server], common: &[String], has_users: bool) {
    let mut suite = Suite::new(program, servers, common);
    let mut failed = Vec::new();
    if has_users {
        failed.extend(suite.all(ENABLE));
    }
    failed.extend(suite.all(STEPS));
    suite.watch();
    suite.elect();
    suite.mirror();
    if env::var_os("CONCLAVE_INTEROP_LONG").is_some() {
        failed.extend(suite.all(&[("check perf", "", "")]));
        // etcdctl asks for metrics in the clear, whatever the endpoint speaks.
        if !has_users {
            let passed = "PASS: Approximate system memory used";
            failed.extend(suite.all(&[("check datascale --auto-compact", "", passed)]));
        }
    }
    if !has_users {
        failed.extend(suite.all(ENABLE));
    }
    failed.extend(suite.all(ACCESS));
    failed.extend(suite.all(&[("auth disable", "", "Authentication Disabled")]));
    suite.is_enabled = false;
    failed.extend(suite.all(&[("user delete root", "", "User root deleted")]));
    let (program, dir) = (suite.program.display(), suite.dir.path());
    assert!(failed.is_empty(), "{program} against {} in {dir:?}: {failed:#?}", suite.servers.len());
}

#[test]
fn every_verb_of_every_etcdctl_works_in_the_clear() {
    let (_dir, etcd) = named("etcd");
    for program in programs("etcdctl") {
        let servers = Server::cluster(etcd.clone(), 3);
        serving(&servers, &[]);
        every_verb(program, &servers, &[], false);
    }
}

#[test]
fn every_verb_of_every_etcdctl_works_with_tls_and_users() {
    let stage = Stage::new();
    let file = |name: &str, path: &str| format!("{name}={}", stage.path(path).display());
    let common =
        [file("--cacert", "ca.pem"), file("--cert", "alice.pem"), file("--key", "alice-key.pem")];
    for program in programs("etcdctl") {
        let servers = stage.cluster(&[stage.flags(), vec!["--bcrypt-cost=4".to_owned()]].concat());
        serving(&servers, &common);
        every_verb(program, &servers, &common, true);
    }
}

/// Waits until all members serve.
pub(crate) fn serving(servers: &[Server], common: &[String]) {
    for server in servers {
        let mut arguments: Vec<&str> = vec!["endpoint", "health"];
        arguments.extend(common.iter().map(String::as_str));
        until("it serves", || run(CONCLAVE, &server.endpoint(), &arguments, "").status.success());
    }
}

#[test]
fn no_verb_of_any_etcdctl_is_left_out() {
    let steps = [STEPS, ACCESS, ENABLE].concat();
    for program in programs("etcdctl") {
        let suite = Suite::new(program, &[], &[]);
        let is_tried = |verb: &&String| {
            let mut tried = steps.iter().map(|step| step.0).chain(["auth disable"]);
            tried.any(|step| step.split(' ').take(verb.split(' ').count()).eq(verb.split(' ')))
        };
        let others = [&FUNCTIONS[..], &LONG, &OFFLINE].concat();
        let left_out = suite.verbs.iter().filter(|verb| !is_tried(verb));
        let left_out: Vec<&String> =
            left_out.filter(|verb| !others.contains(&verb.as_str())).collect();
        assert!(left_out.is_empty(), "{}: {left_out:?}", suite.program.display());
        assert!(suite.verbs.len() > 40, "{:?}", suite.verbs);
    }
}
