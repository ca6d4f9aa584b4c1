//! Backups: a state as one file, and a new member restored from such a file or from an etcd
//! snapshot.
//!
//! ```text
//! header   magic, version, length, BackupMeta, CRC-32C of all that
//! body     the files of a checkpoint, one after the other, in blocks of 32,764 bytes; after each
//!          block the CRC-32C of the whole body so far
//! zeros    up to a multiple of 512, as etcdctl requires
//! digest   SHA-256 of everything before
//! ```
//! The files are the engine's own: saving means a flush and hard links, restoring a copy, and
//! neither looks at single rows. Every byte is covered twice: by the digest of the stream, and (if
//! that was cut off or is not to be checked) by the checksums of the blocks.
//!
//! Unless this format is requested, `Maintenance.Snapshot` streams an etcd database instead,
//! followed by the same kind of digest: etcd's own programs read and restore it. It has one more
//! bucket with everything that etcd has no place for, so we restore it without loss.
//!
//! | module | what |
//! |---|---|
//! | `format` | encoding of header and body |
//! | `save` | writes a running state in this format |
//! | `export`, `buckets` | write a running state as an etcd database |
//! | `pages` | builds the pages of such a database, without I/O |
//! | `own` | writes and reads the bucket with what etcd has no place for |
//! | `file` | opens and checks a file of either format, or of an etcd |
//! | `bolt`, `etcd` | read etcd's database, and convert its content |
//! | `restore` | makes the directory of a new member |

mod bolt;
mod buckets;
mod etcd;
mod export;
mod file;
mod format;
mod own;
mod pages;
mod restore;
mod save;

use std::io;
use std::path::{Path, PathBuf};

pub use export::Export;
pub use file::{BackupFile, BackupStatus, Check};
pub use restore::{NewMember, Restored, restore_log};
pub use save::{Backup, Piece};

/// Called with the number of bytes done and the total.
pub type OnProgress<'a> = &'a mut dyn FnMut(u64, u64);

/// Why a file cannot be restored, or not into this directory.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The system failed.
    #[error("{path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// Neither a file of ours nor one of etcd's.
    #[error("{path} is neither a backup of Conclave nor a snapshot of etcd")]
    Unknown {
        /// The file.
        path: PathBuf,
    },
    /// The end of the file is missing, or it was not made by a snapshot.
    #[error(
        "{path} does not end with a SHA-256: it was cut off, or it was copied from a data directory \
         (--skip-hash-check takes those)"
    )]
    NoDigest {
        /// The file.
        path: PathBuf,
    },
    /// The content was changed since it was saved.
    #[error("{path} is damaged: it has the SHA-256 {found}, and says that it should be {expected}")]
    Digest {
        /// The file.
        path: PathBuf,
        /// SHA-256 of the content.
        found: String,
        /// SHA-256 at the end of the file.
        expected: String,
    },
    /// The content is impossible.
    #[error("{path} is damaged: {detail}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// Another version of the program saved it.
    #[error(
        "{path} has format {found}, this version knows {known}: restore it with the version that saved it"
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// Format found.
        found: u32,
        /// Format that this version knows.
        known: u32,
    },
    /// The revision cannot be raised that far.
    #[error("revision {revision} cannot be raised by {by}")]
    Bump {
        /// Revision of the backup.
        revision: i64,
        /// By how much it was to be raised.
        by: i64,
    },
    /// The new raft log cannot be created.
    #[error(transparent)]
    Log(#[from] crate::log::OpenError),
}

impl BackupError {
    pub(crate) fn io(path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                Self::Damaged { path, detail: source.to_string() }
            }
            _ => Self::Io { path, source },
        }
    }
}
