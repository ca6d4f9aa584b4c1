//! Why a log cannot be opened.

use std::io;
use std::path::PathBuf;

const ADVICE: &str = "This member must not start with it: remove it from the cluster, delete its data \
                      directory and add it as a new member";

/// Why a log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file system reported an error.
    #[error("raft log at {path}: {source}")]
    Io {
        /// What was being read or written.
        path: PathBuf,
        /// The error.
        #[source]
        source: io::Error,
    },
    /// Another process has it open.
    #[error("raft log at {path} is in use by another process")]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// It belongs to another member.
    #[error("raft log at {path} belongs to member {found:x}, not to member {expected:x}")]
    OtherMember {
        /// The identity file.
        path: PathBuf,
        /// Member that the log says it belongs to.
        found: u64,
        /// Member that tried to open it.
        expected: u64,
    },
    /// Written by a version that this program does not know.
    #[error("{path} has raft log format {found}, this program knows {known}: use a newer program")]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The version known here.
        known: u32,
    },
    /// A setting is out of bounds.
    #[error("segment size {bytes} is not between {min} and {max}")]
    SegmentBytes {
        /// The setting.
        bytes: u64,
        /// Smallest allowed.
        min: u64,
        /// Largest allowed.
        max: u64,
    },
    /// A leader found that records which this member had acknowledged are gone
    /// ([`LogStore::condemn`]).
    ///
    /// [`LogStore::condemn`]: crate::log::LogStore::condemn
    #[error("raft log at {path} lost records or leads to a wrong state: {reason}. {ADVICE}")]
    Lost {
        /// The directory.
        path: PathBuf,
        /// How this is known.
        reason: String,
    },
    /// Records that were durable are unreadable. A member that forgets what it acknowledged could
    /// elect a leader without committed entries, so it must not take part again with this
    /// directory.
    #[error("raft log is damaged: {path} at byte {offset}: {reason}. {ADVICE}")]
    Damaged {
        /// The damaged file.
        path: PathBuf,
        /// Offset of the damage in the file.
        offset: u64,
        /// What is wrong there, and how this is known.
        reason: String,
    },
}
