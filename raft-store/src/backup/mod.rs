//! Backups: a state as one file, and a new member made of such a file or of an etcd's.
//!
//! ```text
//! header   magic, version, length, BackupMeta, CRC-32C of all that
//! body     the files of a checkpoint, one behind the other, in blocks of 32,764 bytes; behind each
//!          block the CRC-32C of the whole body so far
//! zeros    up to a multiple of 512, as etcdctl wants it
//! digest   SHA-256 of everything before
//! ```
//! The files are the engine's own: saving is a flush and hard links, restoring a copy, and neither looks
//! at single rows. Every byte is covered twice: by the digest of the stream, and (if that is cut off
//! or not to be checked) by the checksums of the blocks.
//!
//! What `Maintenance.Snapshot` streams, unless our form is asked for, is an etcd's database instead, with the same digest behind it:
//! etcd's own programs read and restore it. It has a bucket more, with all that etcd has no place for, and comes back as it was.
//!
//! | module | what |
//! |---|---|
//! | `format` | the bytes of header and body |
//! | `save` | a running state as such bytes |
//! | `export`, `buckets` | a running state as an etcd's database |
//! | `pages` | the pages of such a database, without I/O |
//! | `own` | the bucket with what etcd has no place for, and back |
//! | `file` | a file of either form, or of an etcd, opened and checked |
//! | `bolt`, `etcd` | etcd's database read, and what it means |
//! | `restore` | a new member's directory |

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

/// Hears how many bytes of how many are worked off.
pub type OnProgress<'a> = &'a mut dyn FnMut(u64, u64);

/// Why a file cannot be restored, or not here.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The system failed.
    #[error("{path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system reports.
        #[source]
        source: io::Error,
    },
    /// Not a file of ours, nor one of etcd's.
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
    /// Not the bytes that were saved.
    #[error("{path} is damaged: it has the SHA-256 {found}, and says that it should be {expected}")]
    Digest {
        /// The file.
        path: PathBuf,
        /// Of the bytes.
        found: String,
        /// At the end of the file.
        expected: String,
    },
    /// What is in it cannot be.
    #[error("{path} is damaged: {detail}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// Another version saved it.
    #[error(
        "{path} has format {found}, this version knows {known}: restore it with the version that saved it"
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// As found.
        found: u32,
        /// As known.
        known: u32,
    },
    /// The revision cannot be raised that far.
    #[error("revision {revision} cannot be raised by {by}")]
    Bump {
        /// Of the backup.
        revision: i64,
        /// As asked for.
        by: i64,
    },
    /// The new raft log refuses.
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
