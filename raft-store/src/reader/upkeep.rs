//! A state's sizes, identity, files, backups and snapshots.

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
    /// Largest logical size since the start or the last defragmentation (`dbSize`).
    pub total: i64,
    /// Present logical size, equal on all replicas (`dbSizeInUse`).
    pub in_use: i64,
    /// Size of the files on disk.
    pub disk: u64,
    /// Memory for write buffers, caches and file indexes.
    pub memory: u64,
}

impl Reader {
    /// The present sizes.
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

    /// [`Sizes::total`] alone, which is cheap.
    #[must_use]
    pub fn total_bytes(&self) -> i64 {
        self.shared
            .show(|published| published.head.size_in_use())
            .max(self.shared.bytes_high.load(Ordering::Relaxed))
    }

    /// Makes everything applied so far durable, including a piece being applied. Waits for that and
    /// for the disk.
    ///
    /// # Errors
    /// Any error of the storage.
    pub fn flush(&self) -> io::Result<()> {
        let _applied = self.shared.writing.lock();
        self.shared.published().rows.flush()
    }

    /// The log id up to which a crash now would leave entries applied. The log up to it may be
    /// purged.
    ///
    /// # Errors
    /// Any error of the storage.
    pub fn flushed(&self) -> io::Result<Option<LogId>> {
        row::applied(&*self.shared.published().rows, Moment::Flushed)
    }

    /// Rewrites files without dead rows. Blocks, possibly for long, without delaying writers. A
    /// second call while one runs waits for that one.
    ///
    /// # Errors
    /// Any error of the storage.
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

    /// The owner of this directory; `None` before the first [`Reader::claim`].
    ///
    /// # Errors
    /// Any error of the storage.
    pub fn identity(&self) -> io::Result<Option<Identity>> {
        row::identity(&*self.shared.published().rows)
    }

    /// Makes `identity` the owner of a new directory, durably, or checks that it is.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] if another member owns it; otherwise any error of the
    /// storage.
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

    /// Starts a backup of the present state in etcd's format; `version` is the program's. Blocks on
    /// the disk.
    ///
    /// # Errors
    /// Any error of the storage.
    pub fn export(&self, version: &str) -> io::Result<Export> {
        Export::create(&self.shared, version)
    }

    /// Starts a backup of the present state in our format; `version` is the program's. Blocks on
    /// the disk.
    ///
    /// # Errors
    /// Any error of the storage.
    pub fn backup(&self, version: &str) -> io::Result<Backup> {
        Backup::create(&self.shared, version)
    }

    /// What was received of a snapshot whose transfer broke off, in no particular order.
    #[must_use]
    pub fn staged_snapshot(&self) -> Vec<StagedFile> {
        let partial = self.shared.partial.lock();
        partial.as_ref().map(|partial| partial.files().to_vec()).unwrap_or_default()
    }

    /// Starts to receive the snapshot that `meta` describes, as `files`. What they are to keep of
    /// an earlier attempt must be staged; anything else of that attempt is dropped.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] while another is being received;
    /// [`io::ErrorKind::InvalidInput`] for impossible names or sizes; [`io::ErrorKind::NotFound`]
    /// if what is to be kept is not staged; otherwise any error of the system.
    pub fn receive_snapshot(
        &self,
        meta: SnapshotMeta,
        files: Vec<SnapshotFile>,
    ) -> io::Result<SnapshotSink> {
        SnapshotSink::create(Arc::clone(&self.shared), meta, files)
    }
}
