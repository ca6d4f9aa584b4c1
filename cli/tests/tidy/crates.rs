//! Which crate may use which: the arrows of ARCHITECTURE.md, and the rules of `deny.toml` for the
//! crates of others. `cargo deny` checks the latter too, but takes minutes to build.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use serde_json::Value;

use crate::root;

/// Which of our packages each package uses (ARCHITECTURE.md section 2): these, and no other.
const ARROWS: [(&str, &[&str]); 10] = [
    ("conclave-proto", &[]),
    ("conclave-testing", &[]),
    ("conclave-transport", &[]),
    ("conclave-state-machine", &[]),
    ("conclave-raft-store", &["conclave-proto", "conclave-state-machine"]),
    (
        "conclave-server",
        &["conclave-proto", "conclave-raft-store", "conclave-state-machine", "conclave-transport"],
    ),
    // The layout of instances is that of the rules.
    ("conclave-client", &["conclave-proto", "conclave-state-machine", "conclave-transport"]),
    ("conclave", &["conclave-client", "conclave-server"]),
    (
        "conclave-benches",
        &["conclave-client", "conclave-proto", "conclave-testing", "conclave-transport"],
    ),
    // Of the benches only `cluster` and `process`: real nodes on loopback, started and killed by pid.
    ("conclave-jepsen-tests", &["conclave-benches", "conclave-client", "conclave-proto"]),
];

/// The same for what only tests use.
const TEST_ARROWS: [(&str, &[&str]); 6] = [
    ("conclave-server", &["conclave-client", "conclave-testing"]),
    ("conclave-benches", &["conclave-state-machine"]),
    ("conclave-transport", &["conclave-testing"]),
    ("conclave-client", &["conclave-testing"]),
    ("conclave", &["conclave-testing"]),
    ("conclave-jepsen-tests", &["conclave-testing"]),
];

/// Crates of others that only these packages use.
const FENCED: [(&str, &[&str]); 4] = [
    ("rustls", &["conclave-transport"]),
    ("rocksdb", &["conclave-raft-store"]),
    ("openraft", &["conclave-raft-store", "conclave-server"]),
    // The two test packages drive any etcd-compatible endpoint through the generated clients.
    (
        "tonic",
        &[
            "conclave-benches",
            "conclave-client",
            "conclave-jepsen-tests",
            "conclave-proto",
            "conclave-server",
        ],
    ),
];

/// All that the pure crate uses; its `clippy.toml` bans what the standard library has of the world.
const PURE: [&str; 5] = ["bytes", "crc32c", "serde", "serde_json", "thiserror"];

/// Crates below these versions have known holes (docs/security-tests.md).
const FLOORS: [(&str, [u64; 3]); 7] = [
    ("h2", [0, 4, 16]),
    ("tonic", [0, 14, 0]),
    ("bytes", [1, 11, 1]),
    ("rustls", [0, 23, 18]),
    ("rustls-webpki", [0, 103, 13]),
    ("tokio", [1, 44, 2]),
    ("prost", [0, 14, 0]),
];

const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Every package that is compiled on this platform, ours and those of others.
fn packages() -> Vec<Value> {
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--offline", "--locked", "--filter-platform"])
        .arg(platform)
        .current_dir(root())
        .output()
        .expect("cargo runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "`cargo fetch --locked` fetches what is missing: {said}");
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("json");
    metadata["packages"].as_array().expect("packages").clone()
}

fn is_ours(package: &Value) -> bool {
    package["source"].is_null()
}

fn text<'a>(package: &'a Value, field: &str) -> &'a str {
    package[field].as_str().unwrap_or_else(|| panic!("{package} has no {field}"))
}

/// Names of what a package uses, in its tests only or else.
fn uses(package: &Value, in_tests: bool) -> BTreeSet<&str> {
    let all = package["dependencies"].as_array().expect("dependencies").iter();
    let wanted = all.filter(|used| (used["kind"] == "dev") == in_tests);
    wanted.map(|used| text(used, "name")).collect()
}

#[test]
fn packages_use_what_the_arrows_say_and_nothing_else() {
    let packages = packages();
    let ours: BTreeMap<&str, &Value> = packages
        .iter()
        .filter(|package| is_ours(package))
        .map(|package| (text(package, "name"), package))
        .collect();
    let known: BTreeSet<&str> = ARROWS.iter().map(|(name, _)| *name).collect();
    assert_eq!(ours.keys().copied().collect::<BTreeSet<_>>(), known, "draw the arrows first");
    for (name, package) in &ours {
        for (arrows, in_tests) in [(&ARROWS[..], false), (&TEST_ARROWS[..], true)] {
            let drawn = arrows.iter().find(|(from, _)| from == name);
            let drawn = drawn.map(|(_, to)| to.iter().copied().collect()).unwrap_or_default();
            let used: BTreeSet<&str> =
                uses(package, in_tests).intersection(&known).copied().collect();
            assert_eq!(used, drawn, "what {name} uses, and what is drawn (in tests: {in_tests})");
        }
    }
    for (fenced, users) in FENCED {
        let found = ours.iter().filter(|(_, package)| uses(package, false).contains(fenced));
        let found: Vec<&str> = found.map(|(name, _)| *name).collect();
        assert_eq!(found, users, "who uses {fenced}");
    }
    let pure = uses(ours["conclave-state-machine"], false);
    assert_eq!(pure, BTreeSet::from(PURE), "what the pure crate uses");
}

/// The rules of `deny.toml`.
struct Rules {
    licences: BTreeSet<String>,
    banned: BTreeSet<String>,
    /// What may be there in several versions.
    several: BTreeSet<String>,
}

impl Rules {
    fn read() -> Rules {
        let text = fs::read_to_string(root().join("deny.toml")).expect("the rules");
        let rules: toml::Table = toml::from_str(&text).expect("toml");
        let texts = |list: &toml::Value, field: Option<&str>| -> BTreeSet<String> {
            let list = list.as_array().expect("a list").iter();
            let texts = list.map(|item| field.map_or(item, |field| &item[field]).as_str());
            texts.map(|text| text.expect("a text").to_owned()).collect()
        };
        assert_eq!(rules["bans"]["multiple-versions"].as_str(), Some("deny"));
        assert_eq!(rules["bans"]["wildcards"].as_str(), Some("deny"));
        assert_eq!(rules["sources"]["unknown-registry"].as_str(), Some("deny"));
        assert_eq!(rules["sources"]["unknown-git"].as_str(), Some("deny"));
        Rules {
            licences: texts(&rules["licenses"]["allow"], None),
            banned: texts(&rules["bans"]["deny"], Some("crate")),
            several: texts(&rules["bans"]["skip"], Some("crate")),
        }
    }
}

/// Whether we may take a crate with this licence, as SPDX writes it (`/` is an old `OR`).
fn is_allowed(licence: &str, allowed: &BTreeSet<String>) -> bool {
    let spaced = licence.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let spaced = spaced.replace(" WITH ", "+");
    // Each open parenthesis: whether some alternative is good so far, and the one being read.
    let mut open = vec![(false, true)];
    for word in spaced.split_whitespace() {
        let is_good = match word {
            "AND" => continue,
            "OR" => {
                let (some, this) = open.pop().expect("a level");
                open.push((some || this, true));
                continue;
            }
            "(" => {
                open.push((false, true));
                continue;
            }
            ")" => {
                let (some, this) = open.pop().expect("a level");
                some || this
            }
            name => allowed.contains(&name.replace('+', " WITH ")),
        };
        let level = open.last_mut().expect("parentheses are balanced");
        level.1 &= is_good;
    }
    let (some, this) = open.pop().expect("a level");
    some || this
}

#[test]
fn licences_are_read_as_they_are_meant() {
    let allowed = ["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned).into();
    for good in ["MIT", "MIT/GPL-3.0", "GPL-3.0 OR MIT", "MIT AND ISC", "(GPL-3.0 OR ISC) AND MIT"]
    {
        assert!(is_allowed(good, &allowed), "{good}");
    }
    assert!(is_allowed("Apache-2.0 WITH LLVM-exception OR GPL-3.0", &allowed));
    for bad in ["GPL-3.0", "MIT AND GPL-3.0", "(MIT OR ISC) AND GPL-3.0", "Apache-2.0"] {
        assert!(!is_allowed(bad, &allowed), "{bad}");
    }
}

#[test]
fn crates_of_others_keep_the_rules_of_deny_toml() {
    let rules = Rules::read();
    let mut faults = Vec::new();
    let mut versions: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in packages() {
        let (name, version) = (text(&package, "name"), text(&package, "version"));
        versions.entry(name.to_owned()).or_default().insert(version.to_owned());
        if rules.banned.contains(name) {
            faults.push(format!("{name} is banned"));
        }
        if !is_allowed(text(&package, "license"), &rules.licences) {
            faults.push(format!("{name}: licence {}", package["license"]));
        }
        if !is_ours(&package) {
            if package["source"] != CRATES_IO {
                faults.push(format!("{name} comes from {}", package["source"]));
            }
            continue;
        }
        for used in package["dependencies"].as_array().expect("dependencies") {
            if used["req"] == "*" && used["path"].is_null() {
                faults.push(format!("{name} takes any version of {}", used["name"]));
            }
        }
    }
    for (name, versions) in &versions {
        if versions.len() > 1 && !rules.several.contains(name) {
            faults.push(format!("{name} is there as {versions:?}"));
        }
    }
    let lock = fs::read_to_string(root().join("Cargo.lock")).expect("a lock file");
    for name in rules.several.iter().filter(|name| locked(&lock, name).len() < 2) {
        faults.push(format!("{name} is there once: take it out of `skip`"));
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Versions of a crate in `Cargo.lock`, which knows all platforms.
fn locked<'a>(lock: &'a str, name: &str) -> Vec<&'a str> {
    let begin = format!("name = \"{name}\"\nversion = \"");
    lock.split(&begin).skip(1).filter_map(|rest| rest.split('"').next()).collect()
}

#[test]
fn crates_are_not_older_than_their_floors() {
    let lock = fs::read_to_string(root().join("Cargo.lock")).expect("a lock file");
    for (name, floor) in FLOORS {
        let versions = locked(&lock, name);
        assert!(!versions.is_empty(), "{name} is used no more: take it out");
        for version in versions {
            let parts = version.split(['.', '-', '+']).take(3);
            let found: Vec<u64> = parts.map(|part| part.parse().expect("a number")).collect();
            assert!(found.as_slice() >= floor.as_slice(), "{name} {version} is below {floor:?}");
        }
    }
}
