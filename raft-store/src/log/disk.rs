//! The file operations that the log needs, and their implementation on a real directory.
//!
//! The trait exists for crash tests: [`crate::log::sim::SimDisk`] implements it in memory, loses
//! what was not synced, and fails on demand. It is not a general file system.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::direct::End;

/// One flat directory of files, used by one log.
pub trait Disk: Send + Sync + 'static {
    /// Names of all files.
    ///
    /// # Errors
    /// Any error of the file system.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Creates `name`, which must not exist.
    ///
    /// # Errors
    /// Any error of the file system.
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// Opens `name`, which must exist, for reading and writing.
    ///
    /// # Errors
    /// Any error of the file system.
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// Renames a file, replacing `to`. Durable after [`Disk::sync_dir`].
    ///
    /// # Errors
    /// Any error of the file system.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file. Durable after [`Disk::sync_dir`].
    ///
    /// # Errors
    /// Any error of the file system.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes changes of names durable: creations, renames and removals.
    ///
    /// # Errors
    /// Any error of the file system.
    fn sync_dir(&self) -> io::Result<()>;
    /// The path of `name`, for messages.
    fn path(&self, name: &str) -> PathBuf;
}

/// An open file. Offsets are explicit, so that readers and the writer can share it.
pub trait DiskFile: Send + Sync {
    /// Length in bytes.
    ///
    /// # Errors
    /// Any error of the file system.
    fn bytes(&self) -> io::Result<u64>;
    /// Truncates or extends the file.
    ///
    /// # Errors
    /// Any error of the file system.
    fn set_bytes(&self, bytes: u64) -> io::Result<()>;
    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// Any error of the file system; `UnexpectedEof` if the file ends before that.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all of `bytes` at `offset`. Durable after [`DiskFile::sync`].
    ///
    /// # Errors
    /// Any error of the file system.
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// As [`DiskFile::write_all_at`], for the end of a file: up to the end of the last block, the
    /// content after `bytes` may be replaced by zeros, and the file may become longer. Faster if
    /// the bytes are synced right afterwards.
    ///
    /// # Errors
    /// Any error of the file system.
    fn write_end_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Makes all written bytes durable, and the length if it changed (`fdatasync`).
    ///
    /// # Errors
    /// Any error of the file system. After one, nothing is known about the bytes written before.
    fn sync(&self) -> io::Result<()>;
}

/// A directory of the file system, locked against other processes as long as this value lives.
#[derive(Debug)]
pub struct RealDisk {
    dir: PathBuf,
    _lock: File,
    end: Arc<Mutex<End>>,
}

impl RealDisk {
    /// Opens and locks `dir`; creates it if absent.
    ///
    /// # Errors
    /// `WouldBlock` if another process has locked it; otherwise any error of the file system.
    pub fn open(dir: &Path) -> io::Result<Self> {
        if !dir.is_dir() {
            std::fs::create_dir_all(dir)?;
            if let Some(parent) = dir.parent().filter(|p| !p.as_os_str().is_empty()) {
                File::open(parent)?.sync_all()?;
            }
        }
        let lock =
            OpenOptions::new().create(true).write(true).truncate(false).open(dir.join("LOCK"))?;
        lock.try_lock().map_err(io::Error::from)?;
        Ok(Self { dir: dir.to_owned(), _lock: lock, end: Arc::default() })
    }

    fn file(&self, options: &mut OpenOptions, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let path = self.path(name);
        let file = options.read(true).write(true).open(&path)?;
        Ok(Arc::new(RealFile { path, file, end: Arc::clone(&self.end) }))
    }
}

impl Disk for RealDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for item in std::fs::read_dir(&self.dir)? {
            // A name that is not UTF-8 is not one of ours.
            if let Ok(name) = item?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.file(OpenOptions::new().create_new(true), name)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.file(&mut OpenOptions::new(), name)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path(from), self.path(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.path(name))
    }

    fn sync_dir(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

struct RealFile {
    path: PathBuf,
    file: File,
    end: Arc<Mutex<End>>,
}

impl DiskFile for RealFile {
    fn bytes(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn set_bytes(&self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(&self.file, buffer, offset)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        FileExt::write_all_at(&self.file, bytes, offset)
    }

    fn write_end_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.end.lock().write((&self.path, &self.file), bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}
