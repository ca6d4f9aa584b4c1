//! Snapshots: files of a checkpoint at the sender, a staged database at the receiver.
//!
//! Building one in order to purge the log is just a flush: all that counts is that the durable
//! state covers the log. A copy of the files is made only when a follower needs it
//! ([`SnapshotSource`]: hard links, removed on drop). The receiver writes the files beside its live
//! database ([`SnapshotSink`]), syncs, opens and verifies them, and only then offers the result to
//! raft ([`SnapshotContent::Staged`]); installing it means replacing a pointer. A build cannot
//! interfere with an installation, because it writes no file that a later start would look at.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use crate::directory::{StateDir, sync_dir};
use crate::engine::{Create, Rows};
use crate::row::{self, Moment};
use crate::store::{Published, Shared, Visible};
use crate::types::SnapshotMeta;

/// Most files of one snapshot; at 64 MiB per file this is 6 TiB.
const FILES_MAX: usize = 100_000;
const NAME_BYTES_MAX: usize = 64;

/// One file of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotFile {
    /// Name without directories.
    pub name: String,
    /// Size in bytes.
    pub size: u64,
    /// Bytes at the beginning that are not sent, because the receiver has staged exactly that many.
    pub kept: u64,
}

/// What a receiver has staged of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StagedFile {
    /// Name without directories.
    pub name: String,
    /// Bytes received, from the beginning on.
    pub bytes: u64,
    /// CRC-32C of these bytes.
    pub crc32c: u32,
}

/// What a broken-off transfer has left, for the next one to continue from.
#[derive(Debug)]
pub(crate) struct Partial {
    dir: StateDir,
    files: Vec<StagedFile>,
    /// Last log index of the snapshot: a member that has applied it no longer needs this.
    pub(crate) index: u64,
}

impl Partial {
    pub(crate) fn files(&self) -> &[StagedFile] {
        &self.files
    }

    /// Moves a file, of which exactly `bytes` are staged, to `to`.
    fn hand_over(&self, name: &str, bytes: u64, to: &Path) -> io::Result<StagedFile> {
        let staged = self.files.iter().find(|file| file.name == name && file.bytes == bytes);
        let staged = staged.ok_or_else(|| not_staged(name))?;
        let to = to.join(name);
        std::fs::rename(self.dir.path().join(name), &to)?;
        // It may be the one that was being written, and not synced.
        File::open(to)?.sync_all()?;
        Ok(staged.clone())
    }
}

/// What raft passes around as a snapshot of this state machine.
pub enum SnapshotContent {
    /// The flushed state: enough to purge the log; there is nothing to send.
    Flushed,
    /// Files to send.
    Source(SnapshotSource),
    /// A received and verified snapshot, ready to be installed.
    Staged(StagedSnapshot),
}

impl SnapshotContent {
    /// The files to send.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] if this is not a snapshot to send.
    pub fn into_source(self) -> io::Result<SnapshotSource> {
        match self {
            Self::Source(source) => Ok(source),
            Self::Flushed | Self::Staged(_) => Err(invalid("not a snapshot to send")),
        }
    }
}

/// Files of a consistent state; removed on drop.
pub struct SnapshotSource {
    dir: StateDir,
    files: Vec<SnapshotFile>,
}

impl SnapshotSource {
    /// Creates a checkpoint. Blocks for a flush.
    pub(crate) fn create(shared: &Shared) -> io::Result<Self> {
        let dir = shared.directory.new_sending();
        shared.published().rows.checkpoint(dir.path())?;
        let mut files = Vec::new();
        for entry in std::fs::read_dir(dir.path())? {
            let entry = entry?;
            let name = entry.file_name().into_string();
            let name = name.map_err(|name| invalid(format!("odd file name {name:?}")))?;
            files.push(SnapshotFile { name, size: entry.metadata()?.len(), kept: 0 });
        }
        files.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Self { dir, files })
    }

    /// Directory of the files.
    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The files, in the order in which they are to be sent.
    #[must_use]
    pub fn files(&self) -> &[SnapshotFile] {
        &self.files
    }

    /// Opens a file, given by its index in [`SnapshotSource::files`].
    ///
    /// # Errors
    /// Any error of the system.
    pub fn open(&self, file: usize) -> io::Result<File> {
        let file = self.files.get(file).ok_or_else(|| invalid("no such file"))?;
        File::open(self.dir.path().join(&file.name))
    }

    /// Reads up to `length` bytes at `offset`; less only at the end of the file.
    ///
    /// # Errors
    /// Any error of the system.
    pub fn read_at(&self, file: usize, offset: u64, length: usize) -> io::Result<Bytes> {
        let left = self.files.get(file).map_or(0, |file| file.size.saturating_sub(offset));
        let mut buffer = vec![0; length.min(usize::try_from(left).unwrap_or(usize::MAX))];
        self.open(file)?.read_exact_at(&mut buffer, offset)?;
        Ok(buffer.into())
    }
}

/// A snapshot being received, one at a time. If it is dropped unfinished, the next transfer can
/// continue from what has been received.
pub struct SnapshotSink {
    current: Option<(usize, File)>,
    /// `None` once it is finished or unusable.
    dir: Option<StateDir>,
    files: Vec<SnapshotFile>,
    received: Vec<StagedFile>,
    meta: SnapshotMeta,
    // Dropped last, because another transfer may begin as soon as it is.
    shared: Receiving,
}

/// Marks the store as receiving until it is dropped.
struct Receiving(Arc<Shared>);

impl Drop for Receiving {
    fn drop(&mut self) {
        self.0.is_receiving.store(false, Ordering::Release);
    }
}

impl SnapshotSink {
    pub(crate) fn create(
        shared: Arc<Shared>,
        meta: SnapshotMeta,
        files: Vec<SnapshotFile>,
    ) -> io::Result<Self> {
        if shared.is_receiving.swap(true, Ordering::AcqRel) {
            let text = "another snapshot is being received";
            return Err(io::Error::new(io::ErrorKind::WouldBlock, text));
        }
        let shared = Receiving(shared);
        let partial = shared.0.partial.lock().take();
        check(&files)?;
        let dir = shared.0.directory.new_database();
        std::fs::create_dir(dir.path())?;
        let mut received = Vec::with_capacity(files.len());
        for SnapshotFile { name, kept, .. } in &files {
            received.push(if *kept > 0 {
                let partial = partial.as_ref().ok_or_else(|| not_staged(name))?;
                partial.hand_over(name, *kept, dir.path())?
            } else {
                File::create_new(dir.path().join(name))?;
                StagedFile { name: name.clone(), bytes: 0, crc32c: 0 }
            });
        }
        Ok(Self { current: None, dir: Some(dir), files, received, meta, shared })
    }

    /// Bytes of `file` received so far.
    #[must_use]
    pub fn received(&self, file: usize) -> u64 {
        self.received.get(file).map_or(0, |file| file.bytes)
    }

    /// Appends to a file. The transport has checked `data`'s checksum.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] if this is not the next piece; otherwise any error of the
    /// system, after which the received data cannot be used.
    pub fn write(&mut self, file: usize, offset: u64, data: &[u8]) -> io::Result<()> {
        let expected = self.files.get(file).ok_or_else(|| invalid("no such file"))?;
        let at = self.received[file].bytes;
        if offset != at || data.len() as u64 > expected.size - offset {
            let name = &expected.name;
            return Err(invalid(format!("{name}: a piece at {offset}, expected one at {at}")));
        }
        self.append(file, data).inspect_err(|_| self.discard())?;
        let received = &mut self.received[file];
        received.bytes += data.len() as u64;
        received.crc32c = crc32c::crc32c_append(received.crc32c, data);
        Ok(())
    }

    fn append(&mut self, file: usize, data: &[u8]) -> io::Result<()> {
        if self.current.as_ref().is_none_or(|(open, _)| *open != file) {
            self.close_current()?;
            let dir = self.dir.as_ref().ok_or_else(|| invalid("an earlier piece failed"))?;
            let path = dir.path().join(&self.files[file].name);
            self.current = Some((file, File::options().write(true).open(path)?));
        }
        let (_, open) = self.current.as_ref().expect("opened above");
        open.write_all_at(data, self.received[file].bytes)
    }

    /// Discards the received data.
    pub fn discard(&mut self) {
        self.current = None;
        self.dir = None;
    }

    fn close_current(&mut self) -> io::Result<()> {
        match self.current.take() {
            Some((_, file)) => file.sync_all(),
            None => Ok(()),
        }
    }

    /// Verifies that everything was received, is undamaged and matches `meta`. Blocks, because it
    /// reads all the data.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] if it must not be installed; otherwise any error of the
    /// system.
    pub fn finish(mut self) -> io::Result<SnapshotContent> {
        self.close_current()?;
        let mut files = self.files.iter().zip(&self.received);
        if let Some((file, _)) = files.find(|(file, received)| file.size != received.bytes) {
            return Err(damaged(format!("{} is incomplete", file.name)));
        }
        let dir = self.dir.take().ok_or_else(|| invalid("an earlier piece failed"))?;
        StagedSnapshot::open(&self.shared.0, dir, &self.meta).map(SnapshotContent::Staged)
    }
}

impl Drop for SnapshotSink {
    fn drop(&mut self) {
        self.current = None;
        if let Some(dir) = self.dir.take() {
            let files = std::mem::take(&mut self.received);
            let index = self.meta.last_log_id.map_or(0, |id| id.index);
            *self.shared.0.partial.lock() = Some(Partial { dir, files, index });
        }
    }
}

/// Rejects a list of files that cannot be that of a state.
pub(crate) fn check(files: &[SnapshotFile]) -> io::Result<()> {
    if files.len() > FILES_MAX {
        return Err(invalid("too many files"));
    }
    let is_plain = |name: &str| {
        (1..=NAME_BYTES_MAX).contains(&name.len())
            && !name.starts_with('.')
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    };
    if let Some(file) = files.iter().find(|file| !is_plain(&file.name)) {
        return Err(invalid(format!("odd file name {:?}", file.name)));
    }
    match files.iter().find(|file| file.kept > file.size) {
        Some(file) => Err(invalid(format!("{} is smaller than what is kept of it", file.name))),
        None => Ok(()),
    }
}

/// A complete database beside the live one; removed on drop unless installed.
pub struct StagedSnapshot {
    pub(crate) visible: Visible,
}

impl StagedSnapshot {
    fn open(shared: &Shared, dir: StateDir, meta: &SnapshotMeta) -> io::Result<Self> {
        sync_dir(dir.path())?;
        let rows = shared.engine.open(dir, Create::Never)?;
        rows.verify()?;
        if row::format(&*rows)? != Some(row::FORMAT_VERSION) {
            return Err(damaged("it is of another format"));
        }
        let published = Published::load(rows)?;
        if published.applied != meta.last_log_id || *published.membership != meta.last_membership {
            return Err(damaged("its content is not what its description says"));
        }
        adopt(&shared.published().rows, &published.rows)?;
        let counts = published.count()?;
        Ok(Self { visible: Visible { published, counts } })
    }

    /// Copies files on this machine to a staged snapshot.
    pub(crate) fn copy(
        shared: &Shared,
        source: &SnapshotSource,
        meta: &SnapshotMeta,
    ) -> io::Result<Self> {
        let dir = shared.directory.new_database();
        std::fs::create_dir(dir.path())?;
        for file in &source.files {
            copy_synced(&source.dir.path().join(&file.name), &dir.path().join(&file.name))?;
        }
        Self::open(shared, dir, meta)
    }

    pub(crate) fn meta(&self) -> SnapshotMeta {
        meta_of(&self.visible.published)
    }
}

/// Replaces the sender's identity in the staged rows by this member's.
fn adopt(live: &Rows, staged: &Rows) -> io::Result<()> {
    let Some(own) = row::identity(&**live)? else { return Ok(()) };
    if row::identity(&**staged)?.is_some_and(|sender| sender.cluster != own.cluster) {
        return Err(damaged("it is of another cluster"));
    }
    staged.write(&mut [row::identity_row(own)].into_iter())?;
    staged.flush()
}

fn copy_synced(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::copy(from, to)?;
    File::open(to)?.sync_all()
}

/// The metadata of the published state.
pub(crate) fn meta_of(published: &Published) -> SnapshotMeta {
    SnapshotMeta {
        last_log_id: published.applied,
        last_membership: (*published.membership).clone(),
    }
}

/// Flushes, and returns the metadata of what a crash now would leave. Blocks.
pub(crate) fn flush(shared: &Shared) -> io::Result<SnapshotMeta> {
    let rows = shared.published().rows;
    rows.flush()?;
    // Two rows, read one after the other while a flush in the background may replace both: read
    // again until the membership is the same before and after.
    let mut last_membership = row::membership(&*rows, Moment::Flushed)?;
    loop {
        let last_log_id = row::applied(&*rows, Moment::Flushed)?;
        let again = row::membership(&*rows, Moment::Flushed)?;
        if again == last_membership {
            return Ok(SnapshotMeta { last_log_id, last_membership });
        }
        last_membership = again;
    }
}

fn invalid(text: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text.into())
}

fn not_staged(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("{name} is not staged as far as that"))
}

fn damaged(text: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("snapshot refused: {}", text.into()))
}
