//! A configuration that is made anew when one of its files changes.
//!
//! The files are looked at by name, size, time and inode rather than by notifications of the system:
//! Kubernetes replaces a directory of secrets by turning a symbolic link, which a watch of the file
//! misses. Whoever is between two files of a pair gets a failure now and the new pair at a later look.

use std::fmt;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::{Mutex, RwLock};

use crate::Error;

/// What a file looked like; `None` if it was not there.
type Stamp = Option<(u64, u64, Option<SystemTime>)>;

/// Makes a configuration from the files as they are now.
type Make<T> = Box<dyn Fn() -> Result<T, Error> + Send + Sync>;

/// A configuration with the files it is made from.
pub struct Followed<T> {
    current: RwLock<Arc<T>>,
    files: Vec<PathBuf>,
    seen: Mutex<Vec<Stamp>>,
    make: Make<T>,
}

impl<T> Followed<T> {
    /// Makes it for the first time.
    ///
    /// # Errors
    /// What `make` returns.
    pub(crate) fn new(
        files: Vec<PathBuf>,
        make: impl Fn() -> Result<T, Error> + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        // Before the files are read: a change in between is then seen by the next look.
        let seen = Mutex::new(stamps(&files));
        let current = RwLock::new(Arc::new(make()?));
        Ok(Self { current, files, seen, make: Box::new(make) })
    }

    /// As made last.
    pub fn current(&self) -> Arc<T> {
        self.current.read().clone()
    }

    /// The files that are followed.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Makes it anew if a file has changed since the last look. `None` if none has. Reads files.
    ///
    /// # Errors
    /// Inside: why the files cannot be used; what was made before stays.
    pub fn look(&self) -> Option<Result<(), Error>> {
        let mut seen = self.seen.lock();
        let now = stamps(&self.files);
        if *seen == now {
            return None;
        }
        *seen = now;
        Some((self.make)().map(|made| *self.current.write() = Arc::new(made)))
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
