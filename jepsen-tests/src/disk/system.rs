//! The system's programs that make, mount and shut down file systems: this workspace has no unsafe code.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Only what is synced reaches the disk: the journal does not commit by itself within a test (in seconds). The first
/// error makes the file system read-only.
const OPTIONS: &str = "loop,noatime,commit=3600,errors=remount-ro";
/// Processes that were killed, and loop devices, let go of a file system a moment later.
const UNMOUNT_TIMEOUT: Duration = Duration::from_secs(20);
const UNMOUNT_PAUSE: Duration = Duration::from_millis(10);
/// `EXT4_IOC_SHUTDOWN` with `EXT4_GOING_FLAGS_NOLOGFLUSH` on directories that are opened before the first of them is
/// shut down.
const SHUT_DOWN: &str = r#"
    my $without_flush = pack("L", 2);
    my @directories = map { open(my $it, "<", $_) or die "$_: $!\n"; $it } @ARGV;
    for (@directories) { defined(ioctl($_, 0x8004587d, $without_flush)) or die "ioctl: $!\n" }
"#;

/// Runs a program; what it says on standard error becomes the error.
pub(super) fn run<S: AsRef<OsStr>>(
    program: &str,
    arguments: impl IntoIterator<Item = S>,
) -> Result<()> {
    let output = Command::new(program).args(arguments).output();
    let output = output.with_context(|| format!("start {program}"))?;
    if !output.status.success() {
        bail!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Makes an ext4 of `megabytes` in a new file, all of it for ordinary use.
pub(super) fn format(image: &Path, megabytes: u64) -> Result<()> {
    File::create(image)?.set_len(megabytes << 20)?;
    let options = ["-q", "-F", "-m", "0", "-E", "nodiscard"].map(OsStr::new);
    run("mkfs.ext4", options.into_iter().chain([image.as_os_str()]))
}

/// Mounts the file system of an image.
pub(super) fn mount(image: &Path, at: &Path) -> Result<()> {
    let arguments = ["-t", "ext4", "-o", OPTIONS].map(OsStr::new);
    run("mount", arguments.into_iter().chain([image.as_os_str(), at.as_os_str()]))
}

/// Unmounts a file system; waits while somebody still holds it. Its loop device goes with it.
pub(super) fn unmount(at: &Path) -> Result<()> {
    let deadline = Instant::now() + UNMOUNT_TIMEOUT;
    loop {
        match run("umount", [at]) {
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => thread::sleep(UNMOUNT_PAUSE),
            Ok(()) => return Ok(()),
        }
    }
}

/// Shuts down the file systems that are mounted at these places, one right after the other, without another write.
pub(super) fn shut_down(mounted: &[impl AsRef<OsStr>]) -> Result<()> {
    let script = ["-e", SHUT_DOWN].map(OsStr::new);
    run("perl", script.into_iter().chain(mounted.iter().map(AsRef::as_ref)))
}

/// The name of the device, such as `loop1`, that is mounted at a place.
pub(super) fn device_of(at: &Path) -> Result<String> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let device = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let device = fields.next()?.strip_prefix("/dev/")?;
        (fields.next()? == at.to_str()?).then_some(device)
    });
    device.map(str::to_owned).with_context(|| format!("nothing is mounted at {}", at.display()))
}
