//! Opens and checks backup files, and describes their content.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use conclave_proto::internal::BackupMeta;
use ring::digest::{Context, SHA256};

use super::etcd::EtcdSnapshot;
use super::format::{self, DIGEST_BYTES, Header, MAGIC, SECTOR_BYTES};
use super::{BackupError, OnProgress};
use crate::row;
use crate::snapshot::{self, SnapshotFile};

/// Bytes to hash at a time.
const READ_BYTES: usize = 1 << 20;

/// Whether the digest at the end of a file is required.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// It must exist and be right.
    Digest,
    /// It must be right if it exists.
    DigestIfThere,
    /// It may be missing or wrong: for a database copied from a data directory.
    Skip,
}

/// An open backup file.
#[derive(Debug)]
pub struct BackupFile {
    pub(super) path: PathBuf,
    pub(super) file: File,
    /// Length without the digest.
    bytes: u64,
    fingerprint: [u8; DIGEST_BYTES],
    has_digest: bool,
    pub(super) content: Content,
}

/// The kind of a backup file.
#[derive(Debug)]
pub(super) enum Content {
    /// Our own format: its metadata, and the offset of the body.
    Own(Box<BackupMeta>, u64),
    /// An etcd database, possibly written by us.
    Etcd(EtcdSnapshot),
}

/// Description of a backup's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupStatus {
    /// Checksum of the content.
    pub hash: u32,
    /// Newest revision.
    pub revision: i64,
    /// Number of live keys; for an etcd database, the number of keys in all its buckets.
    pub keys: i64,
    /// Bytes of the file, without the digest.
    pub bytes: u64,
    /// Version of the program that saved it; for etcd, its storage version; empty if not recorded.
    pub version: String,
}

impl BackupFile {
    /// Opens a backup and verifies its digest, reading all of it.
    ///
    /// # Errors
    /// [`BackupError`] for a file that cannot be used.
    pub fn open(
        path: &Path,
        check: Check,
        on_progress: OnProgress<'_>,
    ) -> Result<Self, BackupError> {
        let failed = |source| BackupError::io(path, source);
        let mut file = File::open(path).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        let has_digest = length % SECTOR_BYTES == DIGEST_BYTES as u64;
        if check == Check::Digest && !has_digest {
            return Err(BackupError::NoDigest { path: path.to_owned() });
        }
        let bytes = if has_digest { length - DIGEST_BYTES as u64 } else { length };
        let mut hashing = Hashing { file: &mut file, bytes, on_progress };
        let (fingerprint, expected) = hashing.run(has_digest).map_err(failed)?;
        if check != Check::Skip && has_digest && fingerprint != expected {
            let (path, found) = (path.to_owned(), hex(&fingerprint));
            return Err(BackupError::Digest { path, found, expected: hex(&expected) });
        }
        let content = content(path, &mut file, bytes)?;
        Ok(Self { path: path.to_owned(), file, bytes, fingerprint, has_digest, content })
    }

    /// SHA-256 of the content: the same for every copy of it.
    #[must_use]
    pub fn fingerprint(&self) -> &[u8; DIGEST_BYTES] {
        &self.fingerprint
    }

    /// Bytes of the file, without the digest.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether it is etcd's database from a data directory, and not a snapshot of it.
    pub(super) fn is_copy(&self) -> bool {
        !self.has_digest
            && matches!(&self.content, Content::Etcd(snapshot) if snapshot.own().is_none())
    }

    /// Describes the content. Reads all of an etcd database.
    ///
    /// # Errors
    /// [`BackupError`] for a file that cannot be read.
    pub fn status(&self) -> Result<BackupStatus, BackupError> {
        match &self.content {
            Content::Own(meta, _) => Ok(BackupStatus {
                hash: crc32c::crc32c(&meta.digest.to_be_bytes()),
                revision: meta.revision,
                keys: meta.keys,
                bytes: self.bytes,
                version: format!("conclave {}", meta.version),
            }),
            Content::Etcd(snapshot) => {
                snapshot.status().map_err(|source| BackupError::io(&self.path, source))
            }
        }
    }
}

/// Reads and hashes a whole file.
struct Hashing<'a> {
    file: &'a mut File,
    bytes: u64,
    on_progress: OnProgress<'a>,
}

impl Hashing<'_> {
    /// Returns the digest of the content, and the one stored at the end, if any.
    fn run(&mut self, has_digest: bool) -> io::Result<([u8; DIGEST_BYTES], [u8; DIGEST_BYTES])> {
        let mut hash = Context::new(&SHA256);
        let mut buffer = vec![0; READ_BYTES];
        let mut left = self.bytes;
        while left > 0 {
            let wanted = usize::try_from(left).map_or(READ_BYTES, |left| left.min(READ_BYTES));
            self.file.read_exact(&mut buffer[..wanted])?;
            hash.update(&buffer[..wanted]);
            left -= wanted as u64;
            (self.on_progress)(self.bytes - left, self.bytes);
        }
        let mut expected = [0; DIGEST_BYTES];
        if has_digest {
            self.file.read_exact(&mut expected)?;
        }
        let mut found = [0; DIGEST_BYTES];
        found.copy_from_slice(hash.finish().as_ref());
        Ok((found, expected))
    }
}

fn content(path: &Path, file: &mut File, bytes: u64) -> Result<Content, BackupError> {
    let failed = |source| BackupError::io(path, source);
    file.seek(SeekFrom::Start(0)).map_err(failed)?;
    let mut magic = [0; MAGIC.len()];
    let is_own = match file.read_exact(&mut magic) {
        Ok(()) => magic == MAGIC,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => false,
        Err(error) => return Err(failed(error)),
    };
    if !is_own {
        let snapshot = file.try_clone().and_then(|file| EtcdSnapshot::open(file, bytes));
        let snapshot = snapshot.map_err(failed)?;
        let snapshot = snapshot.ok_or_else(|| BackupError::Unknown { path: path.to_owned() });
        let snapshot = snapshot?;
        let own_format = snapshot.own().map(|meta| meta.state_format);
        return match own_format.filter(|found| *found != row::FORMAT_VERSION) {
            Some(found) => Err(another_format(path, found, row::FORMAT_VERSION)),
            None => Ok(Content::Etcd(snapshot)),
        };
    }
    file.seek(SeekFrom::Start(0)).map_err(failed)?;
    let mut reader = BufReader::new(file);
    let (found, known) = match format::read_header(&mut reader).map_err(failed)? {
        Header::Version(found) => (found, format::VERSION),
        Header::Known(meta) if meta.state_format != row::FORMAT_VERSION => {
            (meta.state_format, row::FORMAT_VERSION)
        }
        Header::Known(meta) => {
            let body_at = reader.stream_position().map_err(failed)?;
            check(&meta, body_at, bytes).map_err(failed)?;
            return Ok(Content::Own(meta, body_at));
        }
    };
    Err(another_format(path, found, known))
}

fn another_format(path: &Path, found: u32, known: u32) -> BackupError {
    BackupError::Format { path: path.to_owned(), found, known }
}

/// Rejects a backup that cannot be restored, before anything is written.
fn check(meta: &BackupMeta, body_at: u64, bytes: u64) -> io::Result<()> {
    let files: Vec<SnapshotFile> = meta
        .files
        .iter()
        .map(|file| SnapshotFile { name: file.name.clone(), size: file.size, kept: 0 })
        .collect();
    snapshot::check(&files).map_err(|error| format::damaged(&error.to_string()))?;
    let expected = format::files_bytes(meta).and_then(|body| format::whole_bytes(body_at, body));
    if expected != Some(bytes) {
        let expected = expected.map_or_else(|| "more".to_owned(), |bytes| bytes.to_string());
        let text = format!("it has {bytes} bytes and should have {expected}");
        return Err(format::damaged(&text));
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
