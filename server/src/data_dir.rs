//! The directories of a member's data: nobody but their owner may write there, by default nobody else reads, and
//! an etcd's are not taken for empty ones.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// etcd's database below its data directory.
pub(crate) const ETCD_DATABASE: &str = "member/snap/db";
/// etcd's log below its data directory, unless it has a directory of its own.
pub(crate) const ETCD_LOG: &str = "member/wal";
/// Ending of the names of its files.
const ETCD_LOG_FILE: &str = "wal";

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

/// What of an etcd's is in these directories, `None` if nothing is. Such a member would begin beside it, with
/// an empty store.
///
/// # Errors
/// Whatever the system reports.
pub(crate) fn of_etcd(data_dir: &Path, wal_dir: Option<&Path>) -> io::Result<Option<PathBuf>> {
    let database = data_dir.join(ETCD_DATABASE);
    if database.try_exists()? {
        return Ok(Some(database));
    }
    let below = data_dir.join(ETCD_LOG);
    for dir in [Some(below.as_path()), wal_dir].into_iter().flatten() {
        let entries = match fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for entry in entries {
            let path = entry?.path();
            if path.extension().is_some_and(|ending| ending == ETCD_LOG_FILE) {
                return Ok(Some(path));
            }
        }
    }
    Ok(None)
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

    #[test]
    fn what_an_etcd_left_is_found() {
        let root = tempfile::tempdir().unwrap();
        let (data, wal) = (root.path().join("data"), root.path().join("wal"));
        let found = || of_etcd(&data, Some(&wal)).unwrap();
        assert_eq!(found(), None, "nothing is there");
        create(&data.join("member/snap")).unwrap();
        for dir in [data.join(ETCD_LOG), wal.clone()] {
            create(&dir).unwrap();
            fs::write(dir.join("0000000000000001.segment"), "").unwrap();
            assert_eq!(found(), None, "our own log may be anywhere");
            let file = dir.join("0000000000000000-0000000000000000.wal");
            fs::write(&file, "").unwrap();
            assert_eq!(found(), Some(file.clone()));
            fs::remove_file(file).unwrap();
        }
        fs::write(data.join(ETCD_DATABASE), "").unwrap();
        assert_eq!(found(), Some(data.join(ETCD_DATABASE)));
    }
}
