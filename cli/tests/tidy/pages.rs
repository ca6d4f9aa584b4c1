//! What the pages say of each other and of tests is there.

use std::collections::BTreeSet;
use std::path::Path;

use crate::{files, root};

/// Each row of the tables names a test of this repository.
#[test]
fn every_test_that_is_named_exists() {
    let sources = files(&[".rs"]);
    let scripts = root().join("state-machine/tests/scripts");
    let page = |name| std::fs::read_to_string(root().join(name)).expect("the page");
    let (security, architecture) = (page("docs/security-tests.md"), page("ARCHITECTURE.md"));
    let (_, invariants) = architecture.split_once("## 10. ").expect("the invariants");
    let invariants = invariants.split("\n## ").next().expect("a section");
    let mut rows = 0;
    let lines = security.lines().chain(invariants.lines());
    for row in lines.filter(|line| line.starts_with("| ") && !line.ends_with("| tests |")) {
        let last = row.trim_end_matches(" |").rsplit(" | ").next().expect("a column");
        let names: Vec<&str> = last.split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty(), "no test is named: {row}");
        for name in names {
            let function = format!("fn {name}(");
            let is_there = scripts.join(name).is_file()
                || sources.iter().any(|(_, text)| text.contains(&function));
            assert!(is_there, "{name} is named in a page and nowhere else");
        }
        rows += 1;
    }
    assert!(rows > 50, "the tables were read");
}

/// In sources a page may be named without its folder, which is `docs`.
#[test]
fn every_page_that_is_named_exists() {
    let mut faults = Vec::new();
    let endings = [".md", ".rs", ".sh", ".toml", ".yaml", ".service", ".env", ".proto", "Makefile"];
    for (file, text) in files(&endings) {
        let folder = file.parent().expect("a folder");
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && !"./-_".contains(c));
        let words = words.map(|word| word.trim_end_matches('.'));
        for word in words.filter(|word| word.ends_with(".md") && word.len() > ".md".len()) {
            let is_elsewhere = word.starts_with("//");
            let places = [folder, &root(), &root().join("docs")].map(|place| place.join(word));
            if !is_elsewhere && !places.iter().any(|place| place.is_file()) {
                faults.push(format!("{}: there is no {word}", file.display()));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Names under which the headings of a page are found: `## From an etcd` is `#from-an-etcd`.
fn anchors(page: &str) -> BTreeSet<String> {
    let headings = page.lines().filter(|line| line.starts_with('#'));
    let name = |line: &str| {
        let kept = line.trim_start_matches('#').trim().to_lowercase();
        let kept = kept.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(name).collect()
}

/// The targets of `[text](target)` in a page.
fn links(page: &str) -> impl Iterator<Item = &str> {
    page.split("](").skip(1).filter_map(|rest| rest.split_once(')').map(|(target, _)| target))
}

#[test]
fn every_link_leads_somewhere() {
    let mut faults = Vec::new();
    let mut count = 0;
    for (file, text) in files(&[".md"]) {
        for link in links(&text).filter(|link| !link.contains("://")) {
            count += 1;
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let folder = file.parent().expect("a folder");
            let target = if path.is_empty() { file.clone() } else { folder.join(path) };
            let is_there = match std::fs::read_to_string(&target) {
                Ok(text) => anchor.is_empty() || anchors(&text).contains(anchor),
                Err(_) => anchor.is_empty() && target.is_dir(),
            };
            if !is_there {
                faults.push(format!("{}: {link} leads nowhere", file.display()));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(count > 50, "the links were found");
}

#[test]
fn the_readme_leads_to_every_page() {
    let readme = std::fs::read_to_string(root().join("README.md")).expect("the page");
    let linked: BTreeSet<&str> = links(&readme).collect();
    for (file, _) in files(&[".md"]) {
        let path = file.strip_prefix(root()).expect("a path below the root");
        let is_linked = linked.iter().any(|link| Path::new(link) == path);
        assert!(is_linked || path == "README.md", "no link in README.md: {}", path.display());
    }
}
