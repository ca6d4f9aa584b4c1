//! The directories of a member's data: nobody but their owner may write there, and by default nobody else reads.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;

/// What a directory is created with.
const MODE: u32 = 0o700;
/// Anybody may change what is in it; with [`STICKY`] anybody may only add to it, as in a fresh tmpfs.
const WRITABLE_BY_ALL: u32 = 0o002;
/// Entries can be renamed and removed by their owners only.
const STICKY: u32 = 0o1000;
/// Others than its owner may do something with it.
const FOR_OTHERS: u32 = 0o077;

/// Creates a directory for its owner alone, with those above it; one that is there stays as it is. What it
/// creates is still there after a power failure.
///
/// # Errors
/// Whatever the system reports.
pub(crate) fn create(dir: &Path) -> io::Result<()> {
    let dir = std::path::absolute(dir)?;
    let missing: Vec<&Path> = dir.ancestors().take_while(|dir| !dir.exists()).collect();
    DirBuilder::new().recursive(true).mode(MODE).create(&dir)?;
    for parent in missing.iter().filter_map(|dir| dir.parent()) {
        File::open(parent)?.sync_all()?;
    }
    Ok(())
}

/// Looks at a directory, if there is one: what others may read deserves a warning, and in one that anybody
/// may write to nothing can be relied on.
///
/// # Errors
/// Whatever the system reports; [`io::ErrorKind::PermissionDenied`] if anybody may change what is there.
pub(crate) fn check(dir: &Path) -> io::Result<()> {
    let mode = match fs::metadata(dir) {
        Ok(metadata) => metadata.permissions().mode() & 0o7777,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if mode & WRITABLE_BY_ALL != 0 && mode & STICKY == 0 {
        let advice = format!(
            "anybody may write to {dir} (mode {mode:o}): chmod 700 it and see that nobody did",
            dir = dir.display()
        );
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, advice));
    }
    if mode & FOR_OTHERS != 0 {
        let mode = format!("{mode:o}");
        tracing::warn!(dir = %dir.display(), mode, "others may look into the data; chmod 700 it");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;

    use super::*;

    #[test]
    fn what_is_created_is_its_owners_alone() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("a/b");
        check(&dir).unwrap();
        create(&dir).unwrap();
        check(&dir).unwrap();
        for dir in [dir.parent().unwrap(), &dir] {
            assert_eq!(fs::metadata(dir).unwrap().permissions().mode() & 0o7777, MODE);
        }
    }

    #[test]
    fn a_directory_that_anybody_may_change_is_refused() {
        let root = tempfile::tempdir().unwrap();
        for (mode, is_refused) in
            [(0o777, true), (0o1777, false), (0o702, true), (0o755, false), (0o2770, false)]
        {
            fs::set_permissions(root.path(), Permissions::from_mode(mode)).unwrap();
            let checked = check(root.path());
            assert_eq!(checked.is_err(), is_refused, "{mode:o}: {checked:?}");
            if let Err(error) = checked {
                assert!(error.to_string().contains(&format!("mode {mode:o}")), "{error}");
            }
        }
    }
}
