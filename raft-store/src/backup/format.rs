//! Encoding of a backup's header, and the lengths of its parts.

use std::io::{self, Read};

use conclave_proto::internal::BackupMeta;
use prost::Message;

/// First bytes of every backup.
pub(super) const MAGIC: [u8; 16] = *b"conclave backup\n";
/// Version of the file format that this code writes.
pub(super) const VERSION: u32 = 1;
/// Most bytes of the metadata: a hundred thousand files need a third of this.
const META_BYTES_MAX: usize = 16 << 20;
/// Bytes of a block without its checksum.
pub(super) const BLOCK_BYTES: usize = 32 * 1024 - CHECKSUM_BYTES;
pub(super) const CHECKSUM_BYTES: usize = 4;
/// The length before the digest is a multiple of this; otherwise etcdctl considers the file
/// damaged.
pub(super) const SECTOR_BYTES: u64 = 512;
pub(super) const DIGEST_BYTES: usize = 32;

/// Encodes a header.
pub(super) fn encode_header(meta: &BackupMeta) -> io::Result<Vec<u8>> {
    let meta = meta.encode_to_vec();
    let length = u32::try_from(meta.len()).ok().filter(|_| meta.len() <= META_BYTES_MAX);
    let length = length.ok_or_else(|| io::Error::other("too many files for a backup"))?;
    let mut header = MAGIC.to_vec();
    header.extend_from_slice(&VERSION.to_le_bytes());
    header.extend_from_slice(&length.to_le_bytes());
    header.extend_from_slice(&meta);
    let checksum = crc32c::crc32c(&header);
    header.extend_from_slice(&checksum.to_le_bytes());
    Ok(header)
}

/// A decoded header.
#[derive(Debug)]
pub(super) enum Header {
    /// The metadata.
    Known(Box<BackupMeta>),
    /// A later version of the file format.
    Version(u32),
}

/// Reads a header.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] and [`io::ErrorKind::UnexpectedEof`] if it is damaged.
pub(super) fn read_header(file: &mut impl Read) -> io::Result<Header> {
    let mut header = vec![0; MAGIC.len() + 8];
    file.read_exact(&mut header)?;
    let number = |at: usize| {
        let bytes = header[at..at + 4].try_into().expect("four bytes are four bytes");
        u32::from_le_bytes(bytes)
    };
    let (version, length) = (number(MAGIC.len()), number(MAGIC.len() + 4) as usize);
    if version != VERSION {
        return Ok(Header::Version(version));
    }
    if length > META_BYTES_MAX {
        return Err(damaged("its header is too long"));
    }
    let meta_at = header.len();
    header.resize(meta_at + length, 0);
    file.read_exact(&mut header[meta_at..])?;
    let mut checksum = [0; CHECKSUM_BYTES];
    file.read_exact(&mut checksum)?;
    if crc32c::crc32c(&header) != u32::from_le_bytes(checksum) {
        return Err(damaged("its header has a wrong checksum"));
    }
    let meta = BackupMeta::decode(&header[meta_at..]);
    meta.map(|meta| Header::Known(Box::new(meta))).map_err(|_| damaged("its header has no meaning"))
}

/// Bytes of all files together; `None` if the sum overflows.
pub(super) fn files_bytes(meta: &BackupMeta) -> Option<u64> {
    meta.files.iter().try_fold(0u64, |sum, file| sum.checked_add(file.size))
}

/// Bytes of a whole backup without the digest; `None` if the sum overflows.
pub(super) fn whole_bytes(header_bytes: u64, files_bytes: u64) -> Option<u64> {
    let checksums = files_bytes.div_ceil(BLOCK_BYTES as u64).checked_mul(CHECKSUM_BYTES as u64)?;
    let bytes = header_bytes.checked_add(files_bytes)?.checked_add(checksums)?;
    bytes.checked_next_multiple_of(SECTOR_BYTES)
}

pub(super) fn damaged(detail: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, detail.to_owned())
}
