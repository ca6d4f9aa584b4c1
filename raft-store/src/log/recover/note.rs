//! Small files beside the segments: the owner of the log, and why it must not be used any more.

use std::hash::{BuildHasher as _, Hasher as _};
use std::io;

use super::{io_error, version};
use crate::log::disk::Disk;
use crate::log::error::OpenError;
use crate::log::format::{HeaderError, Identity};
use crate::log::segments;

pub(super) const IDENTITY: &str = "identity";
/// File with the reason why the log must not be used any more.
pub(super) const CONDEMNED: &str = "condemned";
/// Most bytes to read of a small file.
const NOTE_BYTES_MAX: u64 = 4096;

/// Makes every later start fail.
pub(in crate::log) fn condemn(disk: &dyn Disk, reason: &str) -> io::Result<OpenError> {
    let refusal = lost(disk, reason.to_owned());
    publish(disk, CONDEMNED, reason.as_bytes())?;
    Ok(refusal)
}

pub(super) fn lost(disk: &dyn Disk, reason: String) -> OpenError {
    OpenError::Lost { path: disk.path(""), reason }
}

pub(super) fn read(disk: &dyn Disk, name: &str) -> io::Result<Vec<u8>> {
    let file = disk.open(name)?;
    let bytes = usize::try_from(file.bytes()?.min(NOTE_BYTES_MAX)).map_err(io::Error::other)?;
    let mut bytes = vec![0; bytes];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// Creates a small file durably: completely or not at all.
fn publish(disk: &dyn Disk, name: &str, content: &[u8]) -> io::Result<()> {
    let unfinished = segments::unfinished(name);
    let file = disk.create(&unfinished)?;
    file.write_all_at(content, 0)?;
    file.sync()?;
    disk.rename(&unfinished, name)?;
    disk.sync_dir()
}

pub(super) fn read_identity(disk: &dyn Disk, node: u64) -> Result<Identity, OpenError> {
    let bytes = read(disk, IDENTITY).map_err(|e| io_error(disk, IDENTITY, e))?;
    let path = disk.path(IDENTITY);
    match Identity::decode(&bytes) {
        Ok(identity) if identity.node == node => Ok(identity),
        Ok(identity) => Err(OpenError::OtherMember { path, found: identity.node, expected: node }),
        Err(HeaderError::Version(found)) => Err(version(disk, IDENTITY, found)),
        Err(HeaderError::Invalid) => {
            Err(OpenError::Damaged { path, offset: 0, reason: "not an identity file".to_owned() })
        }
    }
}

pub(super) fn create_identity(disk: &dyn Disk, node: u64) -> io::Result<Identity> {
    // The standard library's hash keys are random numbers from the operating system.
    let salt = std::hash::RandomState::new().build_hasher().finish();
    let identity = Identity { node, salt };
    publish(disk, IDENTITY, &identity.encode())?;
    Ok(identity)
}
