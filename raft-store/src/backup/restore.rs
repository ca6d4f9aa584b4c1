//! Makes a new member from a backup: its state with new ids and a raised revision, and a raft log
//! that begins after it.
//!
//! Each member of the new cluster is restored separately from the same file, so everything follows
//! from the file and the list of members: they start as if they had all installed the same
//! snapshot.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;

use conclave_proto::internal::BackupMeta;
use conclave_state_machine::head::Head;
use conclave_state_machine::overlay::Overlay;
use conclave_state_machine::restore;

use super::file::Content;
use super::format::{self, BLOCK_BYTES, CHECKSUM_BYTES};
use super::{BackupError, BackupFile, OnProgress, own};
use crate::directory::{Directory, StateDir, sync_dir};
use crate::engine::{Create, EngineKind, Rows, halt_to_io};
use crate::log::{LogOptions, LogStore};
use crate::row::{self, Identity};
use crate::types::{CommittedLeaderId, LogId, Membership, Nodes, StoredMembership};

/// Where the log of a restored cluster begins, on all members.
const FIRST_TERM: u64 = 1;
const FIRST_INDEX: u64 = 1;

/// The member that a backup is restored for.
#[derive(Clone, Debug)]
pub struct NewMember {
    /// Ids of the cluster and the member.
    pub identity: Identity,
    /// All members of the new cluster; all of them are voters.
    pub members: Nodes,
}

/// What was restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// Revision of the backup.
    pub revision_saved: i64,
    /// Current revision of the new cluster.
    pub revision: i64,
    /// Its compacted revision; negative if there is none.
    pub compacted: i64,
    /// Number of live keys.
    pub keys: i64,
    /// Rolling hash over all events up to the revision of the backup.
    pub digest: u64,
    /// Whether it was etcd's database from a data directory: entries that were only in that etcd's
    /// log are missing.
    pub is_copy: bool,
    /// Roles of an etcd that had permissions for no keys, which were left out.
    pub reduced_roles: Vec<String>,
}

impl BackupFile {
    /// Creates the state of a member in `dir`, which must not have one. Raises the revision by
    /// `by`; if that is above 0, everything up to the new revision is compacted. Blocks.
    ///
    /// # Errors
    /// [`BackupError`]; what is left in `dir` cannot be used then.
    pub fn restore_state(
        &self,
        dir: &Path,
        member: &NewMember,
        by: i64,
        on_progress: OnProgress<'_>,
    ) -> Result<Restored, BackupError> {
        let failed = |source| BackupError::io(dir, source);
        let (directory, live) = Directory::open(dir).map_err(failed)?;
        if live.is_some() {
            let text = "a state is there already";
            return Err(failed(io::Error::new(io::ErrorKind::AlreadyExists, text)));
        }
        let mut reduced_roles = Vec::new();
        let rows = match &self.content {
            Content::Own(meta, body_at) => {
                let database = directory.new_database();
                self.copy(meta, *body_at, &database, on_progress)
                    .map_err(|source| BackupError::io(&self.path, source))?;
                let rows = open(database, meta);
                rows.map_err(|source| BackupError::io(&self.path, source))?
            }
            Content::Etcd(snapshot) => {
                let database = directory.new_database();
                let rows = EngineKind::default().open(database, Create::New).map_err(failed)?;
                let of_file = |source| BackupError::io(&self.path, source);
                if let Some(meta) = snapshot.own() {
                    own::restore(snapshot, meta, &rows, on_progress).map_err(of_file)?;
                    check(&rows, meta).map_err(of_file)?;
                } else {
                    rows.write(&mut [row::format_row()].into_iter()).map_err(failed)?;
                    reduced_roles = snapshot.import(&rows, on_progress).map_err(of_file)?;
                }
                rows
            }
        };
        let saved = Head::load(&rows).map_err(|halt| failed(halt_to_io(halt)))?;
        let head = begin_anew(&rows, member, by).map_err(failed)?;
        let head = head.ok_or(BackupError::Bump { revision: saved.revision, by })?;
        rows.flush().map_err(failed)?;
        directory.point_to(rows.dir()).map_err(failed)?;
        Ok(Restored {
            revision_saved: saved.revision,
            revision: head.revision,
            compacted: head.compacted,
            keys: head.key_count,
            digest: head.digest,
            is_copy: self.is_copy(),
            reduced_roles,
        })
    }

    /// Writes the files of the body into a new directory.
    fn copy(
        &self,
        meta: &BackupMeta,
        body_at: u64,
        database: &StateDir,
        on_progress: OnProgress<'_>,
    ) -> io::Result<()> {
        std::fs::create_dir(database.path())?;
        let mut file = &self.file;
        file.seek(SeekFrom::Start(body_at))?;
        let total = format::files_bytes(meta).unwrap_or(u64::MAX);
        let mut body =
            Body { file: BufReader::new(file), left: total, block: Vec::new(), at: 0, checksum: 0 };
        for saved in &meta.files {
            let mut target = File::create_new(database.path().join(&saved.name))?;
            let mut left = saved.size;
            while left > 0 {
                let piece = body.piece(left)?;
                target.write_all(piece)?;
                left -= piece.len() as u64;
                on_progress(total - body.left, total);
            }
            target.sync_all()?;
        }
        sync_dir(database.path())
    }
}

/// Reads the concatenated files of a backup and checks every checksum.
struct Body<R> {
    file: R,
    /// Bytes after the current block.
    left: u64,
    block: Vec<u8>,
    /// How much of the block was taken.
    at: usize,
    checksum: u32,
}

impl<R: Read> Body<R> {
    /// The next bytes: at least one, at most `length`.
    fn piece(&mut self, length: u64) -> io::Result<&[u8]> {
        if self.at == self.block.len() {
            self.next_block()?;
        }
        let start = self.at;
        let rest = self.block.len() - start;
        self.at += usize::try_from(length).map_or(rest, |length| length.min(rest));
        Ok(&self.block[start..self.at])
    }

    fn next_block(&mut self) -> io::Result<()> {
        let length = usize::try_from(self.left).map_or(BLOCK_BYTES, |left| left.min(BLOCK_BYTES));
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.block.resize(length, 0);
        self.at = 0;
        self.file.read_exact(&mut self.block)?;
        let mut expected = [0; CHECKSUM_BYTES];
        self.file.read_exact(&mut expected)?;
        self.checksum = crc32c::crc32c_append(self.checksum, &self.block);
        if self.checksum != u32::from_le_bytes(expected) {
            return Err(format::damaged("a block has a wrong checksum"));
        }
        self.left -= length as u64;
        Ok(())
    }
}

/// Opens the copied files, verifies all rows, and compares them with the metadata.
fn open(database: StateDir, meta: &BackupMeta) -> io::Result<Rows> {
    let engine = EngineKind::default();
    let rows = engine.open(database, Create::Never)?;
    rows.verify()?;
    check(&rows, meta)?;
    Ok(rows)
}

/// Compares the rows with the metadata.
fn check(rows: &Rows, meta: &BackupMeta) -> io::Result<()> {
    if row::format(&**rows)? != Some(meta.state_format) {
        return Err(format::damaged("its rows have another format than it says"));
    }
    let head = Head::load(rows).map_err(halt_to_io)?;
    if (head.revision, head.key_count, head.digest) != (meta.revision, meta.keys, meta.digest) {
        return Err(format::damaged("its rows are not what its description says"));
    }
    Ok(())
}

/// Turns the rows into those of a new member; `None` if there are not enough revisions left.
fn begin_anew(rows: &Rows, member: &NewMember, by: i64) -> io::Result<Option<Head>> {
    let mut overlay = Overlay::new(rows);
    let Some(head) = restore::begin_anew(&mut overlay, by).map_err(halt_to_io)? else {
        return Ok(None);
    };
    let voters: BTreeSet<u64> = member.members.keys().copied().collect();
    let membership = Membership::new(vec![voters], member.members.clone());
    let membership = membership.map_err(|error| io::Error::other(error.to_string()))?;
    let raft = [
        row::identity_row(member.identity),
        row::applied_row(&first()),
        row::membership_row(&StoredMembership::new(Some(first()), membership)),
    ];
    rows.write(&mut overlay.into_writes().chain(raft))?;
    Ok(Some(head))
}

fn first() -> LogId {
    LogId::new(CommittedLeaderId::new(FIRST_TERM), FIRST_INDEX)
}

/// Creates the log of a restored member in `dir`, which must be empty or absent. Blocks; must not
/// be called on a thread of an async runtime.
///
/// # Errors
/// [`BackupError`].
pub fn restore_log(dir: &Path, member: &NewMember) -> Result<(), BackupError> {
    let id = member.identity.member;
    let log = LogStore::open(dir, LogOptions::new(id))?;
    log.begin_behind(first(), id).map_err(|source| BackupError::io(dir, source))
}
