//! Backups as files: what one holds, and a data directory made of it.
//!
//! The ids of a restored cluster follow from its members, its token and the content of the file: all
//! members compute the same, and they are not those of the cluster that was saved, even if it had the
//! same members and token. So what is left of that one is refused by the new one, and the other way round.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use conclave_raft_store::Identity;
use conclave_raft_store::backup::{self, BackupFile, NewMember};
use conclave_raft_store::types::{MemberNode, Nodes};

pub use conclave_raft_store::backup::{BackupError, BackupStatus, Check, OnProgress, Restored};

use crate::config::{self, ConfigError, InitialCluster, member_id};
use crate::data_dir;

/// There while a directory is being restored: a server refuses to start with it.
pub(crate) const UNFINISHED: &str = "RESTORE_UNFINISHED";
/// Bytes of the file's SHA-256 that enter the ids.
const FINGERPRINT_BYTES: usize = 8;

/// What is to be restored, and for whom.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The file.
    pub file: PathBuf,
    /// Whether the digest at its end counts.
    pub check: Check,
    /// Name of the new member.
    pub name: String,
    /// All members of the new cluster, as `name=url,name=url`.
    pub initial_cluster: String,
    /// Token of the new cluster.
    pub token: String,
    /// Where the others will reach the new member, with commas between.
    pub advertise_peer_urls: String,
    /// Directory of the new member; must be empty or absent.
    pub data_dir: PathBuf,
    /// Directory of its raft log if it is to be elsewhere; must be empty or absent.
    pub wal_dir: Option<PathBuf>,
    /// How much the revision is raised; above 0 everything up to there is compacted.
    pub raise_revision: i64,
}

/// Why nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The plan contradicts itself.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The file, or writing its content.
    #[error(transparent)]
    Backup(#[from] BackupError),
    /// There is something already.
    #[error("{0} is not empty: a backup is restored into a new directory only")]
    NotEmpty(PathBuf),
    /// The system refuses a directory.
    #[error("{path}: {source}")]
    Io {
        /// The directory.
        path: PathBuf,
        /// What the system reports.
        #[source]
        source: io::Error,
    },
}

impl RestoreError {
    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        |source| Self::Io { path, source }
    }
}

/// What a file holds. Reads all of it.
///
/// # Errors
/// [`BackupError`]: why it is no backup, or a damaged one.
pub fn status(file: &Path, check: Check) -> Result<BackupStatus, BackupError> {
    BackupFile::open(file, check, &mut |_, _| {})?.status()
}

/// Makes the data directory of a new member out of a file. Blocks; not to be called on a thread of an
/// async runtime. Whatever goes wrong, nothing is left behind.
///
/// # Errors
/// [`RestoreError`].
pub fn restore(plan: &Plan, on_progress: OnProgress<'_>) -> Result<Restored, RestoreError> {
    let cluster = InitialCluster::parse(&plan.initial_cluster)?;
    let urls = config::peer_urls(std::slice::from_ref(&plan.advertise_peer_urls));
    verify(&cluster, &plan.name, urls.as_deref())?;
    let log_dir = config::log_dir(&plan.data_dir, plan.wal_dir.as_deref());
    for dir in [&plan.data_dir, &log_dir] {
        if !is_empty(dir)? {
            return Err(RestoreError::NotEmpty(dir.clone()));
        }
    }
    let file = BackupFile::open(&plan.file, plan.check, on_progress)?;
    let member = new_member(&cluster, plan, file.fingerprint());
    let unfinished = Unfinished::begin(&plan.data_dir, &log_dir)?;
    let state_dir = config::state_dir(&plan.data_dir);
    let restored = file.restore_state(&state_dir, &member, plan.raise_revision, on_progress)?;
    backup::restore_log(&log_dir, &member)?;
    unfinished.finish()?;
    Ok(restored)
}

/// The new member must be in its own cluster.
fn verify(
    cluster: &InitialCluster,
    name: &str,
    urls: Option<&[String]>,
) -> Result<(), ConfigError> {
    let Some(urls) = urls else {
        return Err(ConfigError::Rule("--initial-advertise-peer-urls holds no URLs".to_owned()));
    };
    config::verify_own(cluster, name, urls)
}

fn new_member(cluster: &InitialCluster, plan: &Plan, fingerprint: &[u8; 32]) -> NewMember {
    let fingerprint = &fingerprint[..FINGERPRINT_BYTES];
    let fingerprint: String = fingerprint.iter().map(|byte| format!("{byte:02x}")).collect();
    let token = format!("{}/{fingerprint}", plan.token);
    let node = |(name, urls): (&String, &Vec<String>)| {
        let node = MemberNode { name: name.clone(), peer_urls: urls.clone(), is_to_vote: true };
        (member_id(urls, &token), node)
    };
    let members: Nodes = cluster.members.iter().map(node).collect();
    let member = cluster.member_id(&plan.name, &token).expect("verified to be a member");
    let identity = Identity { cluster: cluster.cluster_id(&token), member };
    NewMember { identity, members }
}

/// A directory that does not exist is empty.
fn is_empty(dir: &Path) -> Result<bool, RestoreError> {
    match fs::read_dir(dir) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(RestoreError::io(dir)(error)),
    }
}

/// Directories that are being filled; emptied on drop.
struct Unfinished {
    data_dir: PathBuf,
    log_dir: PathBuf,
    /// Directories that did not exist before, to be removed again.
    created: Vec<PathBuf>,
    is_finished: bool,
}

impl Unfinished {
    fn begin(data_dir: &Path, log_dir: &Path) -> Result<Self, RestoreError> {
        let mut unfinished = Self {
            data_dir: data_dir.to_owned(),
            log_dir: log_dir.to_owned(),
            created: Vec::new(),
            is_finished: false,
        };
        for dir in [data_dir, log_dir] {
            if !dir.exists() {
                unfinished.created.push(dir.to_owned());
                data_dir::create(dir).map_err(RestoreError::io(dir))?;
            }
        }
        let mark = data_dir.join(UNFINISHED);
        File::create_new(&mark)
            .and_then(|mark| mark.sync_all())
            .map_err(RestoreError::io(&mark))?;
        sync_dir(data_dir)?;
        Ok(unfinished)
    }

    /// Removes the mark once all the rest is durable.
    fn finish(mut self) -> Result<(), RestoreError> {
        for dir in [&self.log_dir, &self.data_dir] {
            sync_dir(dir)?;
        }
        for dir in &self.created {
            if let Some(parent) = dir.parent().filter(|parent| parent.as_os_str() != "") {
                sync_dir(parent)?;
            }
        }
        let mark = self.data_dir.join(UNFINISHED);
        fs::remove_file(&mark).map_err(RestoreError::io(&mark))?;
        self.is_finished = true;
        sync_dir(&self.data_dir)
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if self.is_finished {
            return;
        }
        for dir in [&self.log_dir, &self.data_dir] {
            let removed = if self.created.contains(dir) {
                fs::remove_dir_all(dir)
            } else {
                remove_content(dir)
            };
            if let Err(error) = removed {
                // The mark is removed last, if at all, so that no server starts with the rest.
                tracing::warn!(directory = %dir.display(), %error, "cannot remove");
            }
        }
    }
}

fn remove_content(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name() == UNFINISHED {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    match fs::remove_file(dir.join(UNFINISHED)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn sync_dir(dir: &Path) -> Result<(), RestoreError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(RestoreError::io(dir))
}
