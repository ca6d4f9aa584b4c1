//! Finds how the reader of a hint can call this program and `etcdctl`.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// Commands that work in the reader's shell.
pub(crate) struct Programs {
    /// This program: its name if `PATH` leads to it, else its full path.
    pub(crate) ours: String,
    /// The program for etcd's verbs: `etcdctl` if it is installed, else this program.
    pub(crate) etcdctl: String,
}

impl Programs {
    /// Determines the commands from the environment.
    pub(crate) fn find() -> Self {
        let path = env::var_os("PATH").unwrap_or_default();
        Self::among(&path, env::current_exe().ok().as_deref())
    }

    fn among(path: &OsStr, this: Option<&Path>) -> Self {
        let ours = match this {
            Some(this) if !leads_to(path, "conclave", this) => quoted(&this.to_string_lossy()),
            Some(_) | None => "conclave".to_owned(),
        };
        let etcdctl = match installed(path, "etcdctl") {
            Some(_) => "ETCDCTL_API=3 etcdctl".to_owned(),
            None => ours.clone(),
        };
        Self { ours, etcdctl }
    }
}

fn leads_to(path: &OsStr, name: &str, program: &Path) -> bool {
    let found = installed(path, name).and_then(|found| found.canonicalize().ok());
    found.is_some() && found == program.canonicalize().ok()
}

fn installed(path: &OsStr, name: &str) -> Option<PathBuf> {
    env::split_paths(path).map(|dir| dir.join(name)).find(|program| program.is_file())
}

/// Quotes a word for a shell.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+".contains(c);
    if word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn names_are_short_only_if_the_shell_finds_them() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("conclave");
        fs::write(&program, "").unwrap();
        let nowhere = Programs::among(OsStr::new("/nonexistent"), Some(&program));
        assert_eq!(nowhere.ours, program.to_str().unwrap());
        assert_eq!(nowhere.etcdctl, nowhere.ours);

        fs::write(dir.path().join("etcdctl"), "").unwrap();
        let found = Programs::among(dir.path().as_os_str(), Some(&program));
        assert_eq!(found.ours, "conclave");
        assert_eq!(found.etcdctl, "ETCDCTL_API=3 etcdctl");

        let other = Programs::among(dir.path().as_os_str(), Some(Path::new("/it's/conclave")));
        assert_eq!(other.ours, r"'/it'\''s/conclave'");
    }
}
