//! The house rules that a machine can check: module docs and file sizes here, [dependencies](crates),
//! [examples](examples) and [pages](pages) in files of their own. Needs no network and changes nothing.

mod crates;
mod examples;
mod pages;

use std::fs;
use std::path::{Path, PathBuf};

/// Longest source file, in lines.
const FILE_LINES_MAX: usize = 800;

fn root() -> PathBuf {
    let package = std::env::var("CARGO_MANIFEST_DIR").expect("cargo runs the tests");
    Path::new(&package).parent().expect("cli/ lies in the root").to_path_buf()
}

/// Files of the repository whose names end in one of `endings`, and their texts.
fn files(endings: &[&str]) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut directories = vec![root()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).expect("readable") {
            let path = entry.expect("entry").path();
            let name = path.file_name().expect("name").to_string_lossy().into_owned();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                directories.push(path);
            } else if endings.iter().any(|ending| name.ends_with(ending)) {
                let text = fs::read_to_string(&path).expect("utf-8");
                found.push((path, text));
            }
        }
    }
    assert!(found.len() > 8, "the walk found the sources");
    found.sort();
    found
}

#[test]
fn every_source_file_is_introduced_and_readable_in_size() {
    let mut faults = Vec::new();
    for (file, text) in files(&[".rs"]) {
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

/// Whoever opens a crate or a folder finds each of its modules said in a word.
#[test]
fn every_module_is_named_where_it_is_declared() {
    let mut faults = Vec::new();
    for (file, text) in files(&["lib.rs", "main.rs", "mod.rs"]) {
        if !file.components().any(|part| part.as_os_str() == "src") {
            continue;
        }
        let doc: String = text.lines().filter(|line| line.starts_with("//")).collect();
        for line in text.lines() {
            let Some((_, name)) = line.split_once("mod ") else { continue };
            let Some(name) = name.strip_suffix(';') else { continue };
            let is_private_test = name == "tests";
            let is_named =
                doc.contains(&format!("`{name}`")) || doc.contains(&format!("`{name}.rs`"));
            if !is_named && !is_private_test {
                faults.push(format!("{}: says nothing of `{name}`", file.display()));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
