//! Disks that lose power, fill up and fail: file systems on loop devices, which root can make on most Linux machines.
//!
//! ```text
//! home/outer.img ──loop──► home/outer/inner.img ──loop──► the directory of the member
//! ```
//! The member writes to the inner file system. Its image lies in the outer one, which plays the volatile cache of a
//! drive: it keeps what the member synced (a sync of the inner file system becomes a flush of its device, and that a
//! sync of the image) and forgets everything else when the power is cut, including what was written past the page cache.

mod leftovers;
mod system;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};

use self::system::{mount, run, shut_down, unmount};

/// The outer file system has this much more space than the image in it, for its own structures.
const OUTER_EXTRA_MEGABYTES: u64 = 48;
/// Size of the disk that [`available`] tries.
const TRIAL_MEGABYTES: u64 = 16;

/// The disk of one member, unmounted and detached on drop.
#[derive(Debug)]
pub struct Disk {
    /// Holds the outer image and its mount point.
    home: PathBuf,
    /// Where the inner file system is mounted.
    at: PathBuf,
}

impl Disk {
    /// Makes an empty disk of `megabytes` and mounts it at `at`; `home` must stay while this lives.
    ///
    /// # Errors
    /// If a step fails, such as where there are no loop devices.
    pub fn create(home: &Path, at: &Path, megabytes: u64) -> Result<Self> {
        leftovers::sweep();
        fs::create_dir_all(home.join("outer"))?;
        fs::create_dir_all(at)?;
        // As the kernel lists them.
        let (home, at) = (home.canonicalize()?, at.canonicalize()?);
        leftovers::note_owner(&home, &at)?;
        let disk = Self { home, at };
        system::format(&disk.outer_image(), megabytes + OUTER_EXTRA_MEGABYTES)?;
        mount(&disk.outer_image(), &disk.outer())?;
        system::format(&disk.inner_image(), megabytes)?;
        mount(&disk.inner_image(), &disk.at)?;
        for mounted in [&disk.at, &disk.outer()] {
            run("sync", ["--file-system".as_ref(), mounted.as_os_str()])?;
        }
        Ok(disk)
    }

    fn outer_image(&self) -> PathBuf {
        self.home.join("outer.img")
    }

    fn outer(&self) -> PathBuf {
        self.home.join("outer")
    }

    fn inner_image(&self) -> PathBuf {
        self.outer().join("inner.img")
    }

    /// Mounts the disk again after a fault, as a machine does when it starts: journals are replayed. Nobody may use
    /// the disk.
    ///
    /// # Errors
    /// If somebody does, or the file systems cannot be mounted.
    pub fn restore(&self) -> Result<()> {
        unmount(&self.at)?;
        unmount(&self.outer())?;
        mount(&self.outer_image(), &self.outer())?;
        mount(&self.inner_image(), &self.at)
    }

    /// From now on every write and sync fails with EIO; what was synced is still there after [`Disk::restore`].
    ///
    /// # Errors
    /// If the file system refuses.
    pub fn fail(&self) -> Result<()> {
        shut_down(&[&self.at])
    }

    /// From now on the file system is read-only (EROFS), as Linux makes it after an error of the device.
    ///
    /// # Errors
    /// If the kernel offers no way to report an error to the file system.
    pub fn make_read_only(&self) -> Result<()> {
        let device = system::device_of(&self.at)?;
        let trigger = Path::new("/sys/fs/ext4").join(device).join("trigger_fs_error");
        fs::write(&trigger, "an error by a test")
            .with_context(|| format!("write {}", trigger.display()))
    }

    /// Takes all space that is left.
    ///
    /// # Errors
    /// If the file that takes it cannot be written for another reason.
    pub fn fill(&self) -> Result<()> {
        let mut filler = File::options().create(true).append(true).open(self.filler())?;
        let Err(error) = io::copy(&mut io::repeat(7), &mut filler) else { return Ok(()) };
        ensure!(error.kind() == io::ErrorKind::StorageFull, "fill the disk: {error}");
        Ok(())
    }

    /// Gives the space back that [`Disk::fill`] took.
    ///
    /// # Errors
    /// If the file cannot be removed.
    pub fn free(&self) -> Result<()> {
        Ok(fs::remove_file(self.filler())?)
    }

    fn filler(&self) -> PathBuf {
        self.at.join("filler")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: after a failed test a member may still run for a moment.
        leftovers::detach(&self.home, &self.at);
    }
}

/// Cuts the power of these disks within microseconds of each other. Members that use them get EIO, and what they did
/// not sync is gone after [`Disk::restore`].
///
/// # Errors
/// If a file system refuses.
pub fn cut_power(disks: &[&Disk]) -> Result<()> {
    let outer: Vec<PathBuf> = disks.iter().map(|disk| disk.outer()).collect();
    shut_down(&outer.iter().collect::<Vec<_>>())
}

/// Whether such disks can be made here; the error says what is missing. Tried once, with a disk that loses power.
///
/// # Errors
/// If they cannot.
pub fn available() -> Result<(), String> {
    static AVAILABLE: OnceLock<Result<(), String>> = OnceLock::new();
    let tried = || {
        trial().map_err(|error| {
            format!(
                "needs root, loop devices, ext4 (apt-get install e2fsprogs) and perl: {error:#}"
            )
        })
    };
    AVAILABLE.get_or_init(tried).clone()
}

fn trial() -> Result<()> {
    let dir = tempfile::Builder::new().prefix("conclave-disk-").tempdir()?;
    let at = dir.path().join("disk");
    let disk = Disk::create(&dir.path().join("home"), &at, TRIAL_MEGABYTES)?;
    let [synced, unsynced] = ["synced", "unsynced"].map(|name| at.join(name));
    fs::write(&synced, "kept")?;
    File::open(&synced)?.sync_all()?;
    fs::write(&unsynced, "lost")?;
    cut_power(&[&disk])?;
    disk.restore()?;
    ensure!(fs::read(&synced)? == b"kept", "a disk that lost power forgot what was synced");
    ensure!(!unsynced.exists(), "a disk that lost power kept what was not synced");
    Ok(())
}
