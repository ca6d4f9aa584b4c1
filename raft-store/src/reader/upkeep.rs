//! What a state is beside its rows: its sizes, whose it is, files on the disk, backups and snapshots.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Reader;
use crate::backup::{Backup, Export};
use crate::row::{self, Identity, Moment};
use crate::snapshot::{SnapshotFile, SnapshotSink, StagedFile};
use crate::types::{LogId, SnapshotMeta};

/// Sizes of the state in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Logical size, at its largest since the start or the last defragmentation (`dbSize`).
    pub total: i64,
    /// Logical size now, equal on all replicas (`dbSizeInUse`).
    pub in_use: i64,
    /// Files on disk.
    pub disk: u64,
    /// Write buffers, caches and file indexes in memory.
    pub memory: u64,
}

impl Reader {
    /// Sizes now.
    #[must_use]
    pub fn sizes(&self) -> Sizes {
        let seen = self.shared.published();
        let in_use = seen.head.size_in_use();
        Sizes {
            total: in_use.max(self.shared.bytes_high.load(Ordering::Relaxed)),
            in_use,
            disk: seen.rows.disk_bytes(),
            memory: seen.rows.memory_bytes(),
        }
    }

    /// [`Sizes::total`] alone, at no cost.
    #[must_use]
    pub fn total_bytes(&self) -> i64 {
        self.shared
            .show(|published| published.head.size_in_use())
            .max(self.shared.bytes_high.load(Ordering::Relaxed))
    }

    /// Makes everything applied so far durable, also what is being applied. Blocks on that and on the disk.
    ///
    /// # Errors
    /// Whatever the storage reports.
    pub fn flush(&self) -> io::Result<()> {
        let _applied = self.shared.writing.lock();
        self.shared.published().rows.flush()
    }

    /// What a crash now would leave applied. The log up to it may be purged.
    ///
    /// # Errors
    /// Whatever the storage reports.
    pub fn flushed(&self) -> io::Result<Option<LogId>> {
        row::applied(&*self.shared.published().rows, Moment::Flushed)
    }

    /// Rewrites files without dead rows. Blocks, possibly long, without holding up writers; a
    /// second call while one runs waits for that one.
    ///
    /// # Errors
    /// Whatever the storage reports.
    pub fn defragment(&self) -> io::Result<()> {
        let defragmenting = &self.shared.defragmenting;
        let Some(_alone) = defragmenting.try_lock() else {
            drop(defragmenting.lock());
            return Ok(());
        };
        let seen = self.shared.published();
        let result = seen.rows.compact();
        self.shared.bytes_high.store(self.head().size_in_use(), Ordering::Relaxed);
        result
    }

    /// Whose directory this is; `None` before the first [`Reader::claim`].
    ///
    /// # Errors
    /// Whatever the storage reports.
    pub fn identity(&self) -> io::Result<Option<Identity>> {
        row::identity(&*self.shared.published().rows)
    }

    /// Marks a fresh directory as `identity`'s, durably, or checks that it is.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] if it is another's; else whatever the storage reports.
    pub fn claim(&self, identity: Identity) -> io::Result<()> {
        let rows = self.shared.published().rows;
        match row::identity(&*rows)? {
            Some(found) if found == identity => Ok(()),
            Some(found) => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "the data directory belongs to member {:x} of cluster {:x}, not to member {:x} \
                     of cluster {:x}",
                    found.member, found.cluster, identity.member, identity.cluster
                ),
            )),
            None => {
                rows.write(&mut [row::identity_row(identity)].into_iter())?;
                rows.flush()
            }
        }
    }

    /// Begins a backup in etcd's form of the state as of one moment; `version` is the program's. Blocks on the disk.
    ///
    /// # Errors
    /// Whatever the storage reports.
    pub fn export(&self, version: &str) -> io::Result<Export> {
        Export::create(&self.shared, version)
    }

    /// Begins a backup in our form of the state as of one moment; `version` is the program's. Blocks on the disk.
    ///
    /// # Errors
    /// Whatever the storage reports.
    pub fn backup(&self, version: &str) -> io::Result<Backup> {
        Backup::create(&self.shared, version)
    }

    /// What was received of a snapshot whose transfer broke off, in no particular order.
    #[must_use]
    pub fn staged_snapshot(&self) -> Vec<StagedFile> {
        let partial = self.shared.partial.lock();
        partial.as_ref().map(|partial| partial.files().to_vec()).unwrap_or_default()
    }

    /// Begins to receive the snapshot that `meta` describes, as `files`; what is to be kept of an
    /// earlier attempt must be staged, anything else of that is given up.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] while another is being received;
    /// [`io::ErrorKind::InvalidInput`] for names or sizes that cannot be;
    /// [`io::ErrorKind::NotFound`] if what is to be kept is not there; else what the system reports.
    pub fn receive_snapshot(
        &self,
        meta: SnapshotMeta,
        files: Vec<SnapshotFile>,
    ) -> io::Result<SnapshotSink> {
        SnapshotSink::create(Arc::clone(&self.shared), meta, files)
    }
}
