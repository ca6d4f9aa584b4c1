//! Takes over a data directory that etcd's own `snapshot restore` made, when the member starts.
//!
//! Such a directory has the restored database and a WAL that only names the members. The WAL of an
//! etcd that has run may hold writes that the database lacks, so such a directory is refused.
//! etcd's files stay as they are. If the take-over is interrupted, the next start begins it again.

mod wal;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use conclave_raft_store::Identity;
use conclave_raft_store::backup::{self, BackupError, BackupFile, Check, NewMember};
use conclave_raft_store::types::{MemberNode, Nodes};
use serde_json::Value;

use self::wal::Founded;
use crate::data_dir;

/// Mark file that exists while a directory is being taken over.
const UNFINISHED: &str = "TAKEOVER_UNFINISHED";
/// Mark file that stays after a take-over: etcd's files in the directory are obsolete.
const DONE: &str = "TAKEN_OVER";

/// The directories involved.
#[derive(Debug)]
pub(crate) struct Dirs {
    /// The data directory, etcd's and ours.
    pub(crate) data: PathBuf,
    /// Our state.
    pub(crate) state: PathBuf,
    /// Our log.
    pub(crate) log: PathBuf,
}

/// Why a restored directory cannot be taken over.
#[derive(Debug, thiserror::Error)]
pub enum TakeOverError {
    /// The system failed.
    #[error("cannot take over the restored directory of an etcd: {path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system reports.
        #[source]
        source: io::Error,
    },
    /// The database cannot be read or restored.
    #[error("cannot take over the restored directory of an etcd: {0}")]
    Database(#[from] BackupError),
}

/// Whether a take-over was interrupted; our own files in the directory do not count then.
pub(crate) fn is_unfinished(data: &Path) -> bool {
    data.join(UNFINISHED).exists()
}

/// Takes over what etcd's `snapshot restore` left. Returns whether the member can start with the
/// result; `false` if the directory is no such directory.
///
/// # Errors
/// [`TakeOverError`].
pub(crate) fn take_over(dirs: &Dirs) -> Result<bool, TakeOverError> {
    let database = dirs.data.join(data_dir::ETCD_DATABASE);
    let log = dirs.data.join(data_dir::ETCD_LOG);
    let (done, is_unfinished) = (dirs.data.join(DONE), is_unfinished(&dirs.data));
    // A log of our own without the mark, or a completed take-over, means that the member has
    // served: its data must not be replaced by the state it once began with.
    if !database.exists() || (dirs.log.exists() && !is_unfinished) {
        return Ok(false);
    }
    let mark = dirs.data.join(UNFINISHED);
    if done.exists() {
        if is_unfinished {
            fs::remove_file(&mark).map_err(failed(&mark))?;
        }
        return Ok(is_unfinished);
    }
    let Some(founded) = wal::founded(&log).map_err(failed(&log))? else { return Ok(false) };
    let Some(member) = new_member(&founded) else { return Ok(false) };
    File::create(&mark).and_then(|mark| mark.sync_all()).map_err(failed(&mark))?;
    sync(&dirs.data)?;
    for dir in [&dirs.state, &dirs.log] {
        match fs::remove_dir_all(dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed(dir)(error));
            }
            _ => {}
        }
    }
    // It was checked when it was restored, and no longer has a digest.
    let file = BackupFile::open(&database, Check::Skip, &mut |_, _| {})?;
    let restored = file.restore_state(&dirs.state, &member, 0, &mut |_, _| {})?;
    backup::restore_log(&dirs.log, &member)?;
    for dir in [&dirs.log, &dirs.data] {
        sync(dir)?;
    }
    File::create(&done).and_then(|done| done.sync_all()).map_err(failed(&done))?;
    sync(&dirs.data)?;
    fs::remove_file(&mark).map_err(failed(&mark))?;
    sync(&dirs.data)?;
    if !restored.reduced_roles.is_empty() {
        let roles = restored.reduced_roles.join(", ");
        tracing::warn!(%roles, "permissions of these roles that etcd never grants were left out");
    }
    tracing::info!(
        dir = %dirs.data.display(),
        revision = restored.revision,
        keys = restored.keys,
        "took over what etcd's `snapshot restore` left; its directory `member` is needed no more"
    );
    Ok(true)
}

/// The members as the WAL names them; `None` if this member is not among them.
fn new_member(founded: &Founded) -> Option<NewMember> {
    let members: Option<Nodes> = founded
        .members
        .iter()
        .map(|(id, description)| {
            let described: Value = serde_json::from_slice(description).ok()?;
            let urls = described.get("peerURLs")?.as_array()?;
            let urls: Option<Vec<String>> =
                urls.iter().map(|url| url.as_str().map(str::to_owned)).collect();
            let name = described.get("name").and_then(Value::as_str).unwrap_or_default();
            let node = MemberNode { name: name.to_owned(), peer_urls: urls?, is_to_vote: true };
            Some((*id, node))
        })
        .collect();
    let members = members.filter(|members| members.contains_key(&founded.member))?;
    let identity = Identity { cluster: founded.cluster, member: founded.member };
    Some(NewMember { identity, members })
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> TakeOverError {
    let path = path.to_owned();
    |source| TakeOverError::Io { path, source }
}

fn sync(dir: &Path) -> Result<(), TakeOverError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed(dir))
}
