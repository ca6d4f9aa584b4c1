//! A configuration that is reloaded when one of its files changes.
//!
//! Changes are found by comparing name, size, time and inode rather than by file system
//! notifications: Kubernetes replaces a directory of secrets by changing a symbolic link, which a
//! watch on the file misses. A reload between the replacement of two files of a pair fails; a later
//! check then finds the new pair.

use std::fmt;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::{Mutex, RwLock};

use crate::Error;

/// Inode, size and modification time of a file; `None` if it does not exist.
type Stamp = Option<(u64, u64, Option<SystemTime>)>;

/// Makes a configuration from the files as they are now.
type Make<T> = Box<dyn Fn() -> Result<T, Error> + Send + Sync>;

/// Called with the result of each reload.
type Observer = Box<dyn Fn(Result<(), &Error>) + Send + Sync>;

/// A configuration and the files it is made from.
pub struct Followed<T> {
    current: RwLock<Arc<T>>,
    files: Vec<PathBuf>,
    seen: Mutex<Seen>,
    make: Make<T>,
    observer: Option<Observer>,
}

/// Results of the checks so far.
struct Seen {
    /// State of the files that the current configuration was made from.
    made: Vec<Stamp>,
    /// State of the files that last failed to load, and the error.
    refused: Option<(Vec<Stamp>, String)>,
}

impl<T> Followed<T> {
    /// Makes the configuration for the first time.
    ///
    /// # Errors
    /// What `make` returns.
    pub(crate) fn new(
        files: Vec<PathBuf>,
        make: impl Fn() -> Result<T, Error> + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        // Before the files are read, so that the next check sees a change made in between.
        let seen = Mutex::new(Seen { made: stamps(&files), refused: None });
        let current = RwLock::new(Arc::new(make()?));
        Ok(Self { current, files, seen, make: Box::new(make), observer: None })
    }

    /// Adds an observer, which is called with the result of every reload that [`Followed::look`]
    /// reports.
    #[must_use]
    pub fn observed(
        mut self,
        observer: impl Fn(Result<(), &Error>) + Send + Sync + 'static,
    ) -> Self {
        self.observer = Some(Box::new(observer));
        self
    }

    /// The configuration as last loaded.
    pub fn current(&self) -> Arc<T> {
        self.current.read().clone()
    }

    /// The files that are checked.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Reloads if a file has changed since the last load. `None` if none has, or if the same
    /// failure was reported before. Reads files.
    ///
    /// # Errors
    /// Inside: why the files cannot be used; the previous configuration then stays in use.
    pub fn look(&self) -> Option<Result<(), Error>> {
        let outcome = self.make_anew()?;
        if let Some(observer) = &self.observer {
            observer(outcome.as_ref().copied());
        }
        Some(outcome)
    }

    fn make_anew(&self) -> Option<Result<(), Error>> {
        let mut seen = self.seen.lock();
        let now = stamps(&self.files);
        if seen.made == now {
            seen.refused = None;
            return None;
        }
        // Tried again even if the same files failed before: one may have become readable, which the
        // stamps do not show.
        match (self.make)() {
            Ok(made) => {
                *self.current.write() = Arc::new(made);
                *seen = Seen { made: now, refused: None };
                Some(Ok(()))
            }
            Err(error) => {
                let refused = Some((now, error.to_string()));
                let is_told = seen.refused == refused;
                seen.refused = refused;
                (!is_told).then_some(Err(error))
            }
        }
    }
}

impl<T> fmt::Debug for Followed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Followed").field("files", &self.files).finish_non_exhaustive()
    }
}

fn stamps(files: &[PathBuf]) -> Vec<Stamp> {
    let stamp = |file: &PathBuf| {
        let data = std::fs::metadata(Path::new(file)).ok()?;
        Some((data.ino(), data.len(), data.modified().ok()))
    };
    files.iter().map(stamp).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn files_that_become_usable_without_looking_different_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        fs::write(&file, "one").unwrap();
        let is_readable = Arc::new(AtomicBool::new(true));
        let (readable, read) = (is_readable.clone(), file.clone());
        let make = move || {
            let source = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
            if !readable.load(Ordering::Relaxed) {
                return Err(Error::Read { what: "the key", path: read.clone(), source });
            }
            fs::read_to_string(&read).map_err(|source| Error::Read {
                what: "the key",
                path: read.clone(),
                source,
            })
        };
        let heard = Arc::new(Mutex::new(Vec::new()));
        let hearing = heard.clone();
        let followed = Followed::new(vec![file.clone()], make).unwrap();
        let followed = followed.observed(move |outcome| hearing.lock().push(outcome.is_ok()));

        // As when a key is copied first and given to its owner afterwards.
        fs::write(&file, "another").unwrap();
        is_readable.store(false, Ordering::Relaxed);
        assert!(matches!(followed.look(), Some(Err(Error::Read { .. }))));
        assert!(followed.look().is_none(), "the same breakage is told once");
        assert_eq!(*followed.current(), "one");
        is_readable.store(true, Ordering::Relaxed);
        assert!(matches!(followed.look(), Some(Ok(()))));
        assert_eq!(*followed.current(), "another");
        assert!(followed.look().is_none(), "nothing has changed");
        assert_eq!(*heard.lock(), [false, true], "each is told once");
    }
}
