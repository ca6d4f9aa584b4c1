//! Disks of tests that were killed before they could unmount them: the next test that makes a disk does so.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::system::run;

/// In the home of a disk: the process that made it, and where the member's directory is.
const OWNER: &str = "owner";

/// Writes down for [`sweep`] who makes a disk.
pub(super) fn note_owner(home: &Path, at: &Path) -> io::Result<()> {
    fs::write(home.join(OWNER), format!("{}\n{}", std::process::id(), at.display()))
}

/// Detaches the disks whose processes are gone. The images stay in the temporary directories of those.
pub(super) fn sweep() {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for line in mounts.lines() {
        let Some(outer) = line.split(' ').nth(1).map(Path::new) else { continue };
        let Some(home) = outer.parent().filter(|_| outer.ends_with("outer")) else { continue };
        if let Some(at) = abandoned(home) {
            eprintln!("detaching the disk {}, whose test is gone", home.display());
            detach(home, &at);
        }
    }
}

/// Where the inner file system of the disk in `home` is mounted, if its process is gone.
fn abandoned(home: &Path) -> Option<PathBuf> {
    let owner = fs::read_to_string(home.join(OWNER)).ok()?;
    let (pid, at) = owner.split_once('\n')?;
    let is_gone = !Path::new("/proc").join(pid).exists();
    is_gone.then(|| PathBuf::from(at))
}

/// Unmounts both file systems of the disk in `home`, as soon as nobody uses them any more; the loop devices go with
/// them.
pub(super) fn detach(home: &Path, at: &Path) {
    for mounted in [at, &home.join("outer")] {
        if is_mounted(mounted)
            && let Err(error) = run("umount", ["--lazy".as_ref(), mounted.as_os_str()])
        {
            eprintln!("could not unmount {}: {error:#}", mounted.display());
        }
    }
}

fn is_mounted(at: &Path) -> bool {
    super::system::device_of(at).is_ok()
}
