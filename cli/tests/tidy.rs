//! The house rules that a machine can check: dependency arrows, module docs, file sizes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Longest source file, in lines.
const FILE_LINES_MAX: usize = 800;

/// Which of our packages each package may use (ARCHITECTURE.md section 2). Anything else is refused.
const ARROWS: [(&str, &[&str]); 9] = [
    ("conclave-proto", &[]),
    ("conclave-transport", &[]),
    ("conclave-state-machine", &[]),
    ("conclave-raft-store", &["conclave-state-machine", "conclave-proto"]),
    (
        "conclave-server",
        &["conclave-raft-store", "conclave-state-machine", "conclave-proto", "conclave-transport"],
    ),
    // The layout of instances is that of the rules.
    ("conclave-client", &["conclave-state-machine", "conclave-proto", "conclave-transport"]),
    ("conclave", &["conclave-server", "conclave-client", "conclave-proto"]),
    (
        "conclave-benches",
        &["conclave-client", "conclave-proto", "conclave-state-machine", "conclave-transport"],
    ),
    (
        "conclave-jepsen-tests",
        &[
            // Only its `cluster` and `process`: real nodes on loopback, started and killed by pid.
            "conclave-benches",
            "conclave-client",
            "conclave-proto",
            "conclave-server",
            "conclave-raft-store",
            "conclave-state-machine",
        ],
    ),
];

/// Outside crates that only some packages may name.
const FENCED: [(&str, &[&str]); 4] = [
    ("rustls", &["conclave-transport"]),
    ("rocksdb", &["conclave-raft-store"]),
    ("openraft", &["conclave-raft-store", "conclave-server", "conclave-jepsen-tests"]),
    // The two test packages drive any etcd-compatible endpoint through the generated clients.
    (
        "tonic",
        &[
            "conclave-proto",
            "conclave-server",
            "conclave-client",
            "conclave-benches",
            "conclave-jepsen-tests",
        ],
    ),
];

/// What may never enter the pure crate, whatever it is called for.
const IMPURE: [&str; 9] =
    ["tokio", "tonic", "rocksdb", "openraft", "rand", "futures", "tracing", "parking_lot", "libc"];

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

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("cli/ lies in the root").to_path_buf()
}

/// Dependencies of every package of the workspace: (package, dependency, is a dev-dependency).
fn dependencies() -> BTreeMap<String, Vec<(String, bool)>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("json");
    let mut found = BTreeMap::new();
    for package in metadata["packages"].as_array().expect("packages") {
        let name = package["name"].as_str().expect("name").to_owned();
        let uses = package["dependencies"]
            .as_array()
            .expect("dependencies")
            .iter()
            .map(|d| (d["name"].as_str().expect("name").to_owned(), d["kind"] == "dev"))
            .collect();
        found.insert(name, uses);
    }
    found
}

#[test]
fn packages_use_only_what_the_arrows_allow() {
    let packages = dependencies();
    let known: BTreeSet<&str> = ARROWS.iter().map(|(name, _)| *name).collect();
    for (package, uses) in &packages {
        let (_, allowed) = ARROWS
            .iter()
            .find(|(name, _)| name == package)
            .unwrap_or_else(|| panic!("{package} is not in ARROWS: draw its arrows first"));
        for (used, dev) in uses.iter().filter(|(used, _)| known.contains(used.as_str())) {
            assert!(*dev || allowed.contains(&used.as_str()), "{package} must not use {used}");
        }
        for (fenced, users) in FENCED {
            let uses_it = uses.iter().any(|(used, dev)| used == fenced && !dev);
            assert!(!uses_it || users.contains(&package.as_str()), "{package} names {fenced}");
        }
    }
    let pure = &packages["conclave-state-machine"];
    for (used, dev) in pure {
        assert!(*dev || !IMPURE.contains(&used.as_str()), "the pure crate uses {used}");
    }
}

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("readable") {
        let path = entry.expect("entry").path();
        let name = path.file_name().expect("name").to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            sources(&path, found);
        } else if name.ends_with(".rs") {
            found.push(path);
        }
    }
}

#[test]
fn every_source_file_is_introduced_and_readable_in_size() {
    let mut files = Vec::new();
    sources(&root(), &mut files);
    assert!(files.len() > 8, "the walk found the sources");
    let mut faults = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).expect("utf-8");
        let first = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
        if !first.starts_with("//!") {
            faults.push(format!("{}: does not open with a module doc", file.display()));
        }
        let lines = text.lines().count();
        if lines > FILE_LINES_MAX {
            faults.push(format!("{}: {lines} lines, at most {FILE_LINES_MAX}", file.display()));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn crates_are_not_older_than_their_floors() {
    let lock = fs::read_to_string(root().join("Cargo.lock")).expect("a lock file");
    for (name, floor) in FLOORS {
        let begin = format!("name = \"{name}\"\nversion = \"");
        let versions: Vec<&str> =
            lock.split(&begin).skip(1).filter_map(|rest| rest.split('"').next()).collect();
        assert!(!versions.is_empty(), "{name} is used no more: take it out");
        for version in versions {
            let parts = version.split(['.', '-', '+']).take(3);
            let found: Vec<u64> = parts.map(|part| part.parse().expect("a number")).collect();
            assert!(found.as_slice() >= floor.as_slice(), "{name} {version} is below {floor:?}");
        }
    }
}

/// Each row of the tables names a test of this repository.
#[test]
fn every_test_that_is_named_exists() {
    let mut paths = Vec::new();
    sources(&root(), &mut paths);
    let texts: Vec<String> =
        paths.iter().map(|path| fs::read_to_string(path).expect("readable")).collect();
    let scripts = root().join("state-machine/tests/scripts");
    let page = fs::read_to_string(root().join("docs/security-tests.md")).expect("the page");
    let mut rows = 0;
    for row in page.lines().filter(|line| line.starts_with("| ") && !line.ends_with("| tests |")) {
        let last = row.trim_end_matches(" |").rsplit(" | ").next().expect("a column");
        let names: Vec<&str> = last.split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty(), "no test is named: {row}");
        for name in names {
            let function = format!("fn {name}(");
            let is_there =
                scripts.join(name).is_file() || texts.iter().any(|text| text.contains(&function));
            assert!(is_there, "{name} is named in docs/security-tests.md and nowhere else");
        }
        rows += 1;
    }
    assert!(rows > 40, "the tables were read");
}
