//! The directory of the state: which database in it is the live one, and what to delete.
//!
//! ```text
//! state/CURRENT_DB   "db-3": replaced by rename, so a crash leaves the old or the new one
//! state/db-3/        the live database
//! state/db-4/        a snapshot being received; a leftover if a start finds it
//! state/sending-7/   a checkpoint being sent; a leftover if a start finds it
//! ```

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const POINTER: &str = "CURRENT_DB";
const POINTER_NEW: &str = "CURRENT_DB.tmp";
const DATABASE: &str = "db-";
const SENDING: &str = "sending-";

/// The root directory, with a counter for names in it.
#[derive(Debug)]
pub(crate) struct Directory {
    root: PathBuf,
    last_number: AtomicU64,
}

impl Directory {
    /// Creates `root` if needed and deletes leftovers. Also returns the live database, if any.
    pub(crate) fn open(root: &Path) -> io::Result<(Self, Option<StateDir>)> {
        fs::create_dir_all(root)?;
        if let Some(parent) = std::path::absolute(root)?.parent() {
            sync_dir(parent)?;
        }
        let current = read_pointer(root)?;
        let last_number = current.as_deref().and_then(number_of).unwrap_or(0);
        if let Some(name) = &current
            && !root.join(name).is_dir()
        {
            let text = format!("{POINTER} names {name}, which is missing");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        sweep(root, current.as_deref())?;
        let directory = Self { root: root.to_owned(), last_number: AtomicU64::new(last_number) };
        let live = current.map(|name| StateDir::kept(root.join(name)));
        Ok((directory, live))
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// A name for a new database; nothing is created. The directory is removed on drop unless it is
    /// kept.
    pub(crate) fn new_database(&self) -> StateDir {
        self.new_dir(DATABASE)
    }

    /// A name for a checkpoint; nothing is created. The directory is removed on drop.
    pub(crate) fn new_sending(&self) -> StateDir {
        self.new_dir(SENDING)
    }

    fn new_dir(&self, prefix: &str) -> StateDir {
        let number = self.last_number.fetch_add(1, Ordering::Relaxed) + 1;
        StateDir::temporary(self.root.join(format!("{prefix}{number}")))
    }

    /// Makes `database` the live one, atomically and durably; from then on it is kept. After an
    /// error it is not known which one is live, so both stay, and the next start deletes the other.
    pub(crate) fn point_to(&self, database: &StateDir) -> io::Result<()> {
        let name = database
            .path
            .file_name()
            .and_then(|name| name.to_str())
            .expect("databases are named by new_database");
        // The files in the new database's directory, and its own name, must be durable first.
        sync_dir(&database.path)?;
        sync_dir(&self.root)?;
        let temporary = self.root.join(POINTER_NEW);
        let mut file = File::create(&temporary)?;
        writeln!(file, "{name}")?;
        file.sync_all()?;
        database.keep();
        fs::rename(&temporary, self.root.join(POINTER))?;
        sync_dir(&self.root)
    }
}

fn read_pointer(root: &Path) -> io::Result<Option<String>> {
    let text = match fs::read_to_string(root.join(POINTER)) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let name = text.trim_end();
    if number_of(name).is_none() {
        let text = format!("{POINTER} holds {name:?}, which names no database");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Ok(Some(name.to_owned()))
}

fn number_of(name: &str) -> Option<u64> {
    name.strip_prefix(DATABASE)?.parse().ok()
}

/// Deletes what an earlier run left: databases other than the live one, checkpoints, a half-written
/// pointer. Other names are not ours and stay.
fn sweep(root: &Path, current: Option<&str>) -> io::Result<()> {
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| Some(*name) != current) else { continue };
        if name == POINTER_NEW {
            fs::remove_file(entry.path())?;
        } else if number_of(name).is_some() || name.starts_with(SENDING) {
            tracing::info!(directory = %entry.path().display(), "removing a leftover");
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// One directory below the root, removed with its last owner unless it is to be kept.
#[derive(Debug)]
pub(crate) struct StateDir {
    path: PathBuf,
    keep: AtomicBool,
}

impl StateDir {
    fn kept(path: PathBuf) -> Self {
        Self { path, keep: AtomicBool::new(true) }
    }

    fn temporary(path: PathBuf) -> Self {
        Self { path, keep: AtomicBool::new(false) }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Keeps the directory when its last owner is dropped.
    fn keep(&self) {
        self.keep.store(true, Ordering::Relaxed);
    }

    /// Removes the directory when its last owner is dropped.
    pub(crate) fn discard(&self) {
        self.keep.store(false, Ordering::Relaxed);
    }
}

impl Drop for StateDir {
    fn drop(&mut self) {
        if self.keep.load(Ordering::Relaxed) {
            return;
        }
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                // The next start deletes it.
                tracing::warn!(directory = %self.path.display(), %error, "cannot remove");
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_live_database_survives_a_start() {
        let root = tempfile::tempdir().unwrap();
        let (directory, live) = Directory::open(root.path()).unwrap();
        assert!(live.is_none());
        let first = directory.new_database();
        fs::create_dir(first.path()).unwrap();
        directory.point_to(&first).unwrap();
        for leftover in ["db-7", "sending-9"] {
            fs::create_dir(root.path().join(leftover)).unwrap();
        }
        fs::write(root.path().join("note"), "not ours").unwrap();
        drop((first, directory));

        let (directory, live) = Directory::open(root.path()).unwrap();
        let live = live.unwrap();
        assert_eq!(live.path(), root.path().join("db-1"));
        assert_eq!(directory.new_database().path(), root.path().join("db-2"));
        let mut names: Vec<_> = fs::read_dir(root.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["CURRENT_DB", "db-1", "note"]);
    }

    #[test]
    fn a_pointer_to_nothing_is_refused() {
        let root = tempfile::tempdir().unwrap();
        for pointer in ["db-1\n", "../elsewhere\n", ""] {
            fs::write(root.path().join(POINTER), pointer).unwrap();
            let error = Directory::open(root.path()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
    }

    #[test]
    fn what_may_be_the_live_database_is_not_removed() {
        let root = tempfile::tempdir().unwrap();
        let (directory, _) = Directory::open(root.path()).unwrap();
        // Makes it impossible to replace the pointer.
        fs::create_dir(root.path().join(POINTER)).unwrap();
        let new = directory.new_database();
        fs::create_dir(new.path()).unwrap();
        directory.point_to(&new).unwrap_err();
        let path = new.path().to_owned();
        drop(new);
        assert!(path.is_dir());
    }
}
