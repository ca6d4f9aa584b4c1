//! Errors in the files and settings of TLS.

use std::io;
use std::path::{Path, PathBuf};

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("cannot read the {what} {}: {source}", path.display())]
    Read {
        /// What the file is for.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// What the system reports.
        #[source]
        source: io::Error,
    },
    /// A file's content cannot be used.
    #[error("the {what} {} cannot be used: {reason}", path.display())]
    Content {
        /// What the file is for.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Certificate and key do not match.
    #[error("the key {} does not belong to the certificate {}", key.display(), cert.display())]
    Mismatch {
        /// Path of the certificate.
        cert: PathBuf,
        /// Path of the key.
        key: PathBuf,
    },
    /// Settings that cannot be honoured.
    #[error("{0}")]
    Setting(String),
}

impl Error {
    pub(crate) fn content(what: &'static str, path: &Path, reason: impl ToString) -> Self {
        Self::Content { what, path: path.to_owned(), reason: reason.to_string() }
    }
}
