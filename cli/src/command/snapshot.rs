//! `snapshot`: saves a cluster's state to a file, describes such a file, and restores a new cluster
//! from it.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand, ValueEnum};
use conclave_client::{
    Client,
    snapshot::{Snapshot, SnapshotFormat},
};
use conclave_server::backup::{self, Check, Plan, Restored};

use super::Context;
use crate::{
    failure::Failure,
    output::{Held, complain, write},
    progress::Progress,
};

/// Raises the revision beyond any that clients of the old cluster may have seen since the snapshot.
const RAISE_DEFAULT: u64 = 1_000_000_000;
/// A snapshot holds everything, including password hashes, so only its owner may read it.
const MODE: u32 = 0o600;

/// What to do with snapshots.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Save the state of a member to a file.
    Save {
        /// The file; has a temporary name until it is complete.
        #[arg(value_name = "FILE")]
        file: Vec<PathBuf>,
        /// The form of the file.
        #[arg(long, value_enum, default_value_t = Format::Etcd)]
        format: Format,
    },
    /// Print what a snapshot file holds, of ours or of etcd's.
    Status {
        /// The file.
        #[arg(value_name = "FILE")]
        file: Vec<PathBuf>,
    },
    /// Make the data directory of a member of a new cluster from a snapshot file, of ours or of
    /// etcd's.
    Restore(RestoreArguments),
}

/// The form of a file. Each holds everything, and is restored by `snapshot restore`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Format {
    /// A database that etcdctl and etcdutl of etcd read and restore, too.
    Etcd,
    /// The files of the member: saved and restored faster, for large states.
    Conclave,
}

impl Format {
    fn wanted(self) -> SnapshotFormat {
        match self {
            Self::Etcd => SnapshotFormat::Etcd,
            Self::Conclave => SnapshotFormat::Conclave,
        }
    }
}

/// Flags of `snapshot restore`.
#[derive(Debug, Args)]
pub(crate) struct RestoreArguments {
    /// The file.
    #[arg(value_name = "FILE")]
    file: Vec<PathBuf>,
    /// Directory of the new member; must be empty or absent (default: NAME.etcd).
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Directory of its raft log if it is to be elsewhere.
    #[arg(long, value_name = "DIR")]
    wal_dir: Option<PathBuf>,
    /// Name of the new member.
    #[arg(long, default_value = "default")]
    name: String,
    /// All members of the new cluster.
    #[arg(long, value_name = "NAME=URL,...", default_value = "default=http://localhost:2380")]
    initial_cluster: String,
    /// Token of the new cluster.
    #[arg(long, value_name = "TOKEN", default_value = "etcd-cluster")]
    initial_cluster_token: String,
    /// Peer URLs of the new member.
    #[arg(long, value_name = "URLS", default_value = "http://localhost:2380")]
    initial_advertise_peer_urls: String,
    /// Accept a file whose SHA-256 is missing or wrong.
    #[arg(long)]
    skip_hash_check: bool,
    /// How much to raise the revision, so that clients do not mistake new changes for old ones.
    #[arg(long, value_name = "N", default_value_t = RAISE_DEFAULT)]
    bump_revision: u64,
    /// Mark everything up to the raised revision as compacted; must be true if --bump-revision is
    /// above 0, else false.
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        value_parser = crate::parse::boolean
    )]
    mark_compacted: Option<bool>,
}

pub(super) async fn run(context: &Context, verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::Save { file, format } => {
            let file = one(file, "save")?;
            let endpoints = context.client.endpoints();
            if endpoints.len() != 1 {
                return Err(Failure::bad_arguments(format!(
                    "snapshot must be requested to one selected node, not multiple [{}]",
                    endpoints.join(" ")
                )));
            }
            save(&context.client, &file, format.wanted()).await.map_err(Failure::interrupting)?;
            write(format!("Snapshot saved at {}\n", file.display()).as_bytes())
        }
        Verb::Status { file } => {
            let file = one(file, "status")?;
            // A file copied from a data directory has no digest.
            let status = blocking(move || backup::status(&file, Check::DigestIfThere)).await?;
            context.print(&Held(status.map_err(|error| Failure::error(error.to_string()))?))
        }
        Verb::Restore(arguments) => restore(arguments).await,
    }
}

fn one(mut files: Vec<PathBuf>, verb: &str) -> Result<PathBuf, Failure> {
    match (files.pop(), files.is_empty()) {
        (Some(file), true) => Ok(file),
        _ => Err(Failure::bad_arguments(format!("snapshot {verb} expects one argument"))),
    }
}

/// Runs blocking disk work on another thread.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Failure::error(error.to_string()))
}

async fn save(client: &Client, file: &Path, format: SnapshotFormat) -> Result<(), Failure> {
    let part = Part::create(file).map_err(|error| failed(file, &error))?;
    let snapshot = client.snapshot_as(format).await?;
    part.fill(snapshot).await?;
    part.publish(file).map_err(|error| failed(file, &error))
}

fn failed(file: &Path, error: &io::Error) -> Failure {
    Failure::error(format!("{}: {error}", file.display()))
}

/// A partial file under a temporary name, removed unless it is completed.
struct Part {
    path: PathBuf,
    file: File,
    is_published: bool,
}

impl Part {
    fn create(target: &Path) -> io::Result<Self> {
        let name = target.file_name().ok_or(io::ErrorKind::InvalidFilename)?;
        let mut name = name.to_owned();
        name.push(".part");
        let path = target.with_file_name(name);
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).mode(MODE).open(&path)?;
        Ok(Self { path, file, is_published: false })
    }

    async fn fill(&self, mut snapshot: Snapshot) -> Result<(), Failure> {
        let progress = Progress::new("saving");
        let mut file = &self.file;
        let mut written = 0;
        while let Some(piece) = snapshot.next().await? {
            file.write_all(&piece.bytes).map_err(|error| failed(&self.path, &error))?;
            written += piece.bytes.len() as u64;
            progress.set(written, written + piece.remaining);
        }
        Ok(())
    }

    /// Renames it to `target` once it is durable.
    fn publish(mut self, target: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        std::fs::rename(&self.path, target)?;
        self.is_published = true;
        let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.is_published {
            // Cannot be reported: the failure that led here has been reported.
            std::fs::remove_file(&self.path).ok();
        }
    }
}

async fn restore(arguments: RestoreArguments) -> Result<(), Failure> {
    let plan = plan(arguments)?;
    let (file, dir) = (plan.file.clone(), plan.data_dir.clone());
    let restored = blocking(move || {
        let progress = Progress::new("restoring");
        backup::restore(&plan, &mut |done, total| progress.set(done, total))
    });
    let restored = restored.await?.map_err(|error| Failure::error(error.to_string()))?;
    warn(&restored);
    let Restored { keys, revision_saved, revision, .. } = restored;
    let (file, dir) = (file.display(), dir.display());
    let raised = if revision == revision_saved {
        format!("at revision {revision}")
    } else {
        format!("saved at revision {revision_saved}, now at revision {revision} and compacted")
    };
    complain(&format!("restored {file} to {dir}: {keys} keys, {raised}"));
    Ok(())
}

/// Warns about what a file of etcd's lacked, or what was left out of it.
fn warn(restored: &Restored) {
    if restored.is_copy {
        complain(
            "Warning: this is the database out of an etcd's data directory. What that etcd had acknowledged, \
             and then in its WAL only, is missing, unless it was stopped by SIGTERM and was as far as any \
             other member; a snapshot (etcdctl snapshot save) holds everything",
        );
    }
    for role in &restored.reduced_roles {
        complain(&format!(
            "Warning: role {role:?} had permissions for no keys (their range ends before it begins); they \
             gave no right and were left out"
        ));
    }
}

fn plan(arguments: RestoreArguments) -> Result<Plan, Failure> {
    let file = one(arguments.file, "restore")?;
    let raise = arguments.bump_revision;
    if arguments.mark_compacted.is_some_and(|is_marked| is_marked != (raise > 0)) {
        let text = "--mark-compacted goes with --bump-revision above 0, and only with it";
        return Err(Failure::bad_arguments(text));
    }
    let raise_revision = i64::try_from(raise)
        .map_err(|_| Failure::bad_arguments(format!("--bump-revision {raise} is too large")))?;
    let name = arguments.name;
    Ok(Plan {
        file,
        check: if arguments.skip_hash_check { Check::Skip } else { Check::Digest },
        data_dir: arguments.data_dir.unwrap_or_else(|| PathBuf::from(format!("{name}.etcd"))),
        name,
        initial_cluster: arguments.initial_cluster,
        token: arguments.initial_cluster_token,
        advertise_peer_urls: arguments.initial_advertise_peer_urls,
        wal_dir: arguments.wal_dir,
        raise_revision,
    })
}
