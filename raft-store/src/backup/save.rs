//! Writes a running state as a backup in our own format, piece by piece.

use std::fs::File;
use std::io::{self, Read as _};

use bytes::Bytes;
use conclave_proto::internal::{self, BackupMeta};
use conclave_state_machine::head::Head;
use ring::digest::{Context, SHA256};

use super::format::{self, BLOCK_BYTES, CHECKSUM_BYTES};
use crate::codec;
use crate::engine::{Create, View, halt_to_io};
use crate::row::{self, Moment};
use crate::snapshot::{SnapshotFile, SnapshotSource};
use crate::store::Shared;

/// A backup in progress. It keeps the files of a checkpoint until it is dropped.
pub struct Backup {
    meta: BackupMeta,
    source: SnapshotSource,
    /// The rest of the header, still to be returned.
    header: Bytes,
    /// The file being read, and the number of bytes left in it.
    current: Option<(File, u64)>,
    next_file: usize,
    body_left: u64,
    checksum: u32,
    /// Bytes still to be returned, without the digest.
    left: u64,
    /// `None` once it was returned.
    digest: Option<Context>,
}

/// The next bytes of a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// At most 32 KiB.
    pub bytes: Bytes,
    /// Bytes that follow, without the digest.
    pub remaining: u64,
}

impl Backup {
    /// Starts a backup. Blocks for a flush; `version` is the program's.
    pub(crate) fn create(shared: &Shared, version: &str) -> io::Result<Self> {
        let source = SnapshotSource::create(shared)?;
        let meta = describe(shared, &source, version)?;
        let header = format::encode_header(&meta)?;
        let body_left = format::files_bytes(&meta).ok_or_else(too_large)?;
        let left = format::whole_bytes(header.len() as u64, body_left).ok_or_else(too_large)?;
        Ok(Self {
            meta,
            source,
            header: header.into(),
            current: None,
            next_file: 0,
            body_left,
            checksum: 0,
            left,
            digest: Some(Context::new(&SHA256)),
        })
    }

    /// Newest revision in the backup.
    #[must_use]
    pub fn revision(&self) -> i64 {
        self.meta.revision
    }

    /// The files of the state that it contains.
    #[must_use]
    pub fn files(&self) -> &[SnapshotFile] {
        self.source.files()
    }

    /// Bytes still to be returned, without the digest.
    #[must_use]
    pub fn remaining(&self) -> u64 {
        self.left
    }

    /// Reads the next piece; `None` after the last. Blocks on the disk.
    ///
    /// # Errors
    /// Any error of the system; the backup cannot be used afterwards.
    pub fn next_piece(&mut self) -> io::Result<Option<Piece>> {
        let bytes = if !self.header.is_empty() {
            self.header.split_to(self.header.len().min(BLOCK_BYTES))
        } else if self.body_left > 0 {
            self.block()?
        } else if self.left > 0 {
            // Padding, less than a sector.
            vec![0; usize::try_from(self.left).unwrap_or(0)].into()
        } else {
            let digest = self.digest.take().map(Context::finish);
            let bytes = digest.map(|digest| Bytes::copy_from_slice(digest.as_ref()));
            return Ok(bytes.map(|bytes| Piece { bytes, remaining: 0 }));
        };
        self.left -= bytes.len() as u64;
        if let Some(digest) = &mut self.digest {
            digest.update(&bytes);
        }
        Ok(Some(Piece { bytes, remaining: self.left }))
    }

    fn block(&mut self) -> io::Result<Bytes> {
        let length = usize::try_from(self.body_left).map_or(BLOCK_BYTES, |l| l.min(BLOCK_BYTES));
        let mut block = Vec::with_capacity(length + CHECKSUM_BYTES);
        block.resize(length, 0);
        let mut filled = 0;
        while filled < length {
            filled += self.read(&mut block[filled..])?;
        }
        self.body_left -= length as u64;
        self.checksum = crc32c::crc32c_append(self.checksum, &block);
        block.extend_from_slice(&self.checksum.to_le_bytes());
        Ok(block.into())
    }

    /// Reads some bytes of the current file, or of the next that is not empty.
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.current.is_none() {
            let size = self.source.files().get(self.next_file).map_or(0, |file| file.size);
            self.current = Some((self.source.open(self.next_file)?, size));
            self.next_file += 1;
        }
        let (file, left) = self.current.as_mut().expect("opened above");
        let wanted = usize::try_from(*left).map_or(into.len(), |left| left.min(into.len()));
        let read = file.read(&mut into[..wanted])?;
        if read == 0 && wanted > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        *left -= read as u64;
        if *left == 0 {
            self.current = None;
        }
        Ok(read)
    }
}

/// Reads the metadata from the checkpoint's own files, which may be newer than what was published
/// when they were made.
pub(super) fn describe(
    shared: &Shared,
    source: &SnapshotSource,
    version: &str,
) -> io::Result<BackupMeta> {
    let rows = shared.engine.open_at(source.path(), Create::ReadOnly)?;
    let head = Head::load(&View(&*rows)).map_err(halt_to_io)?;
    let identity = row::identity(&*rows)?;
    let applied = row::applied(&*rows, Moment::Now)?;
    let files = source.files().iter();
    Ok(BackupMeta {
        version: version.to_owned(),
        state_format: row::FORMAT_VERSION,
        cluster_id: identity.map_or(0, |identity| identity.cluster),
        member_id: identity.map_or(0, |identity| identity.member),
        applied: applied.as_ref().map(codec::log_id_message),
        revision: head.revision,
        compacted: head.compacted,
        keys: head.key_count,
        digest: head.digest,
        files: files
            .map(|file| internal::BackupFile { name: file.name.clone(), size: file.size })
            .collect(),
        ..BackupMeta::default()
    })
}

pub(super) fn too_large() -> io::Error {
    io::Error::other("the state is too large for a backup")
}
