//! Every public type of the client crate is shown at work where it is declared.

use crate::{files, root};

/// Whose types are public. The file of the other crate holds those that `conclave_client::registry` passes on.
const PLACES: [&str; 2] = ["client/src", "state-machine/src/registry/record.rs"];

/// The name of the type that a line declares. The lint `unreachable_pub` sees to it that what is `pub` can be
/// reached by users.
fn declared(line: &str) -> Option<&str> {
    let (kind, rest) = line.strip_prefix("pub ")?.split_once(' ')?;
    let name = rest.split(|c: char| !c.is_alphanumeric() && c != '_').next();
    name.filter(|_| ["struct", "enum", "union", "trait", "type"].contains(&kind))
}

/// Whether a doc comment has code that is at least compiled.
fn has_example(doc: &[&str]) -> bool {
    let fences = doc.iter().filter_map(|line| line.trim_start().strip_prefix("```"));
    fences.step_by(2).any(|language| ["", "no_run", "should_panic"].contains(&language))
}

/// The public types of a file, and whether they have an example. Between a doc comment and its item there
/// is no empty line.
fn types(text: &str) -> Vec<(&str, bool)> {
    let (mut types, mut doc) = (Vec::new(), Vec::new());
    for line in text.lines() {
        if let Some(line) = line.strip_prefix("///") {
            doc.push(line);
        } else if let Some(name) = declared(line) {
            types.push((name, has_example(&doc)));
            doc.clear();
        } else if line.is_empty() {
            doc.clear();
        }
    }
    types
}

#[test]
fn every_public_type_of_the_client_has_an_example() {
    let (mut faults, mut count) = (Vec::new(), 0);
    for (file, text) in files(&[".rs"]) {
        if !PLACES.iter().any(|place| file.starts_with(root().join(place))) {
            continue;
        }
        for (name, is_shown) in types(&text) {
            count += 1;
            if !is_shown {
                faults.push(format!("{}: {name} has no example", file.display()));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(count > 100, "the types were found");
}

#[test]
fn a_picture_is_no_example() {
    let text = "/// A.\n/// ```text\n/// a ─► b\n/// ```\n#[derive(Debug)]\npub struct A<T>(T);\n\
                /// ```no_run\n/// B;\n/// ```\npub struct B;\n\
                /// ```\n/// c();\n/// ```\nfn c() {}\n\npub enum C {}\n";
    assert_eq!(types(text), [("A", false), ("B", true), ("C", false)]);
}
