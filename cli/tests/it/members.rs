//! Changes of the members with etcdctl: the answers beside etcd's own, and processes that come and go.

use std::{
    fs::File,
    process::{Child, Command, ExitStatus, Stdio},
};

use tempfile::TempDir;

use crate::{
    CONCLAVE,
    compare::{has_etcdctl, normal},
    eventually, named, run,
    server::{Server, free_port, program},
    until,
};

/// What etcd and we must answer alike. `OWN` is the one member, `OTHER` one that was added.
const STEPS: &[&str] = &[
    "member remove OWN",
    "member remove abc",
    "member add x --peer-urls=http://127.0.0.1",
    "member add x --peer-urls=OWNURL",
    "member promote abc",
    "member promote OWN",
    "member update abc --peer-urls=http://127.0.0.1:1",
    "member add l1 --learner --peer-urls=http://127.0.0.1:1",
    "member list",
    "member add l2 --learner --peer-urls=http://127.0.0.1:2",
    "member promote OTHER",
    "member update OTHER --peer-urls=OWNURL",
    "member update OTHER --peer-urls=http://127.0.0.1:3",
    "member remove OTHER",
    "member remove OTHER",
    "member update OTHER --peer-urls=http://127.0.0.1:4",
    "member promote OTHER",
    "member list",
];

fn etcdctl(endpoint: &str, arguments: &[&str]) -> (String, bool) {
    let output = run("etcdctl", endpoint, arguments, "");
    (String::from_utf8_lossy(&output.stdout).into_owned(), output.status.success())
}

/// Answers to [`STEPS`] of a cluster of one.
fn answers(server: &Server) -> Vec<String> {
    let endpoint = server.endpoint();
    let list = eventually("the member list", || {
        let (list, is_done) = etcdctl(&endpoint, &["member", "list"]);
        (is_done && list.contains(", started,")).then_some(list)
    });
    let fields: Vec<&str> = list.trim().split(", ").collect();
    let (own, own_url) = (fields[0].to_owned(), fields[3].to_owned());
    let mut other = String::new();
    let mut answers = Vec::new();
    for step in STEPS {
        let words: Vec<String> = step
            .split(' ')
            .map(|word| {
                word.replace("OWNURL", &own_url).replace("OWN", &own).replace("OTHER", &other)
            })
            .collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        // etcd wants members to have been connected for five seconds.
        let output = eventually("a healthy cluster", || {
            let output = run("etcdctl", &endpoint, &words, "");
            let is_healthy = !String::from_utf8_lossy(&output.stderr).contains("unhealthy");
            is_healthy.then_some(output)
        });
        let stdout = String::from_utf8_lossy(&output.stdout);
        if stdout.contains("added to") {
            other = added_member(&stdout);
        }
        let code = output.status.code();
        answers.push(format!("{step}: {code:?} {}", unordered(&normal(&output, &endpoint))));
    }
    answers
}

/// The id in what `member add` prints first, which is padded with spaces: `Member  fe23... added`.
fn added_member(printed: &str) -> String {
    let id = printed.split_whitespace().nth(1).expect("`Member` and an id");
    assert!(u64::from_str_radix(id, 16).is_ok(), "{printed}");
    id.to_owned()
}

/// Members come in the order of their ids, which are random: the words without numbers, sorted.
pub(crate) fn unordered(text: &str) -> String {
    let mut words: Vec<&str> = text.split(|c: char| !c.is_ascii_alphabetic()).collect();
    words.retain(|word| !word.is_empty() && *word != "N");
    let mut words: Vec<String> = words.iter().map(|word| word.replace('N', "")).collect();
    words.sort();
    words.join(" ")
}

#[test]
fn changes_are_answered_as_by_etcd() {
    let Some(etcd) = program("changes_are_answered_as_by_etcd") else { return };
    if !has_etcdctl() {
        return;
    }
    let (_dir, conclave) = named("etcd");
    let theirs = answers(&Server::single(etcd));
    let ours = answers(&Server::single(conclave));
    assert_eq!(theirs.len(), ours.len());
    for (theirs, ours) in theirs.iter().zip(&ours) {
        assert_eq!(theirs, ours);
    }
}

/// A server process that is told everything by ETCD_ variables, as `member add` prints them.
struct Process {
    child: Child,
}

impl Process {
    fn start(dir: &TempDir, name: &str, client: u16, variables: &[(String, String)]) -> Process {
        let path = dir.path().join(format!("{name}.log"));
        let log = File::options().create(true).append(true).open(path).expect("a log file");
        let url = format!("http://127.0.0.1:{client}");
        let child = Command::new(CONCLAVE)
            .arg("server")
            .env_clear()
            .env("ETCD_NAME", name)
            .env("ETCD_DATA_DIR", dir.path().join(name))
            .env("ETCD_LISTEN_CLIENT_URLS", &url)
            .env("ETCD_ADVERTISE_CLIENT_URLS", &url)
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the log file"))
            .stderr(log)
            .spawn();
        Process { child: child.expect("the server starts") }
    }

    /// How the process ends by itself.
    fn end(&mut self) -> ExitStatus {
        eventually("the process ends", || self.child.try_wait().expect("a child"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn variable(name: &str, value: impl Into<String>) -> (String, String) {
    (name.to_owned(), value.into())
}

#[test]
fn a_member_joins_by_what_etcdctl_prints_and_ends_well_when_it_is_removed() {
    if !has_etcdctl() {
        return;
    }
    let dir = TempDir::new().unwrap();
    let peers = [free_port(), free_port()].map(|port| format!("http://127.0.0.1:{port}"));
    let clients = [free_port(), free_port()];
    let endpoint = format!("127.0.0.1:{}", clients[0]);
    let listen = |i: usize| variable("ETCD_LISTEN_PEER_URLS", &peers[i]);
    let first = [
        listen(0),
        variable("ETCD_INITIAL_ADVERTISE_PEER_URLS", &peers[0]),
        variable("ETCD_INITIAL_CLUSTER", format!("a={}", peers[0])),
    ];
    let _first = Process::start(&dir, "a", clients[0], &first);
    let added = eventually("a member is added", || {
        let urls = format!("--peer-urls={}", peers[1]);
        let (added, is_done) = etcdctl(&endpoint, &["member", "add", "b", &urls]);
        is_done.then_some(added)
    });
    let printed = added.lines().filter_map(|line| line.split_once('='));
    let mut second: Vec<(String, String)> =
        printed.map(|(name, value)| variable(name, value.trim_matches('"'))).collect();
    assert_eq!(second.len(), 4, "{added}");
    second.push(listen(1));
    let mut process = Process::start(&dir, "b", clients[1], &second);
    let other = format!("127.0.0.1:{}", clients[1]);
    until("the new member serves", || etcdctl(&other, &["put", "k", "v"]).1);
    until("both have told their names", || {
        let (list, _) = etcdctl(&other, &["member", "list"]);
        list.matches(", started,").count() == 2
    });

    let id = added_member(&added);
    // As leader, and by itself: it hands over, is removed by the next leader, and answers.
    until("it leads", || etcdctl(&endpoint, &["move-leader", &id]).1);
    until("it is removed", || etcdctl(&other, &["member", "remove", &id]).1);
    for _ in 0..2 {
        assert!(process.end().success(), "no supervisor must start it again");
        let log = std::fs::read_to_string(dir.path().join("b.log")).unwrap();
        let last = log.lines().last().unwrap();
        assert!(last.contains("permanently removed from the cluster"), "{last}");
        process = Process::start(&dir, "b", clients[1], &second);
    }
    assert!(process.end().success());
    assert!(etcdctl(&endpoint, &["put", "k", "w"]).1);
}
