//! Receives a snapshot: staged and verified beside the live state, then offered to raft.
//!
//! Two situations must be kept from openraft (openraft issue 2116 and a related one): installing
//! what the log already contains, and a second installation while one runs. The first is answered
//! as done without installing, which is correct by log matching; the second is refused.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use conclave_proto::internal::{self, snapshot_chunk};
use conclave_raft_store::codec::{self, CodecError};
use conclave_raft_store::log::LogStore;
use conclave_raft_store::reader::Reader;
use conclave_raft_store::snapshot::{SnapshotContent, SnapshotFile, SnapshotSink, StagedFile};
use conclave_raft_store::types::{LogId, SnapshotMeta, TypeConfig, Vote};
use openraft::alias::SnapshotOf;
use openraft::async_runtime::WatchReceiver;
use openraft::error::Fatal;
use openraft::raft::SnapshotResponse;
use openraft::storage::{RaftLogReader as _, RaftLogStorage as _, Snapshot};
use tokio::sync::{Mutex, OwnedMutexGuard};
use tonic::{Status, Streaming};

use super::Raft;
use crate::metrics::{Counts, Pending};

/// Longest pause between two pieces from the sender.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// Receives one snapshot at a time.
pub(crate) struct SnapshotReceiver {
    raft: Raft,
    log: LogStore,
    reader: Reader,
    counts: Counts,
    /// Held from the first piece until raft has installed or refused the snapshot.
    is_busy: Arc<Mutex<()>>,
}

/// A decoded header.
struct Offered {
    vote: Vote,
    meta: SnapshotMeta,
    files: Vec<SnapshotFile>,
}

impl SnapshotReceiver {
    pub(crate) fn new(raft: Raft, log: LogStore, reader: Reader, counts: Counts) -> Self {
        Self { raft, log, reader, counts, is_busy: Arc::default() }
    }

    /// The files that an earlier transfer has staged, so that this one can resume.
    ///
    /// # Errors
    /// Aborted while a snapshot is being received: that transfer may have broken off unnoticed.
    pub(crate) fn staged(&self) -> Result<Vec<internal::StagedFile>, Status> {
        let _idle = self.begin()?;
        let staged = self.reader.staged_snapshot().into_iter();
        let message =
            |f: StagedFile| internal::StagedFile { name: f.name, bytes: f.bytes, crc32c: f.crc32c };
        Ok(staged.map(message).collect())
    }

    fn begin(&self) -> Result<OwnedMutexGuard<()>, Status> {
        let busy = |_| Status::aborted("another snapshot is being received");
        self.is_busy.clone().try_lock_owned().map_err(busy)
    }

    /// Receives and installs the snapshot that follows `header`; returns the vote to answer with.
    ///
    /// # Errors
    /// [`Status`] for the sender: aborted while another is received, data loss if pieces are
    /// damaged.
    pub(crate) async fn receive(
        &self,
        header: internal::SnapshotHeader,
        mut pieces: Streaming<internal::SnapshotChunk>,
    ) -> Result<Vote, Status> {
        let from = header.sender.map_or(0, |sender| sender.from);
        let offered = offered(header).map_err(|e| Status::invalid_argument(e.to_string()))?;
        let busy = self.begin()?;
        let index = offered.meta.last_log_id.map_or(0, |id| id.index);
        let own_vote = self.raft.metrics().borrow_watched().vote;
        if own_vote > offered.vote {
            return Ok(own_vote);
        }
        if self.is_contained(offered.meta.last_log_id).await? {
            tracing::info!(index, "the log contains what the offered snapshot covers");
            return Ok(offered.vote);
        }
        tracing::info!(index, files = offered.files.len(), "receiving a snapshot");
        let (vote, meta) = (offered.vote, offered.meta.clone());
        let began = Instant::now();
        let staged = self.stage(offered, &mut pieces).await;
        if let Some(peer) = self.counts.peers.caller(from) {
            peer.snapshot_received(began.elapsed(), staged.is_ok());
        }
        let staged = staged?;
        self.counts.snapshot_saves.observe(began.elapsed().as_secs_f64());
        // The log may have grown meanwhile, under a leader that did not need the snapshot.
        if self.is_contained(meta.last_log_id).await? {
            return Ok(vote);
        }
        let snapshot = Snapshot { meta, snapshot: staged };
        let installed = tokio::spawn(self.install(vote, snapshot, busy));
        let answer = installed.await.map_err(|error| Status::internal(error.to_string()))?;
        let answer = answer.map_err(|fatal| Status::internal(fatal.to_string()))?;
        tracing::info!(index, "installed a snapshot");
        Ok(answer.vote)
    }

    /// Installs to completion even if the sender gives up its call: raft carries on, so no other
    /// transfer may begin before that.
    fn install(
        &self,
        vote: Vote,
        snapshot: SnapshotOf<TypeConfig, SnapshotContent>,
        busy: OwnedMutexGuard<()>,
    ) -> impl Future<Output = Result<SnapshotResponse<TypeConfig>, Fatal<TypeConfig>>> + use<> {
        let (raft, pending) = (self.raft.clone(), self.counts.snapshots_installing.clone());
        async move {
            let installing = Pending::new(&pending);
            let installed = raft.install_full_snapshot(vote, snapshot).await;
            drop(installing);
            drop(busy);
            installed
        }
    }

    /// Whether this member's log contains the entry, or has committed past it.
    async fn is_contained(&self, id: Option<LogId>) -> Result<bool, Status> {
        let Some(id) = id else { return Ok(true) };
        let failed = |error: io::Error| Status::internal(format!("cannot read the log: {error}"));
        let committed = self.raft.with_raft_state(|state| state.local_committed().copied()).await;
        let committed = committed.map_err(|fatal| Status::internal(fatal.to_string()))?;
        if committed.is_some_and(|committed| committed.index >= id.index) {
            return Ok(true);
        }
        let mut log = self.log.clone().get_log_reader().await;
        let found = log.try_get_log_entries(id.index..id.index + 1).await.map_err(failed)?;
        Ok(found.first().is_some_and(|entry| entry.log_id == id))
    }

    async fn stage(
        &self,
        offered: Offered,
        pieces: &mut Streaming<internal::SnapshotChunk>,
    ) -> Result<SnapshotContent, Status> {
        let reader = self.reader.clone();
        let begin = move || reader.receive_snapshot(offered.meta, offered.files);
        let mut sink = blocking(begin).await?;
        let mut crc32c = 0;
        loop {
            let piece = tokio::time::timeout(IDLE_TIMEOUT, pieces.message())
                .await
                .map_err(|_elapsed| Status::deadline_exceeded("the snapshot stopped coming"))??;
            match piece.and_then(|piece| piece.chunk) {
                Some(snapshot_chunk::Chunk::Data(data)) => {
                    crc32c = crc32c::crc32c_append(crc32c, &data.data);
                    sink = write(sink, data).await?;
                }
                Some(snapshot_chunk::Chunk::EndCrc32c(sent)) if sent == crc32c => break,
                Some(snapshot_chunk::Chunk::EndCrc32c(_)) => {
                    sink.discard();
                    return Err(Status::data_loss("snapshot: the checksum of all data differs"));
                }
                Some(snapshot_chunk::Chunk::Header(_)) => {
                    return Err(Status::invalid_argument("snapshot: a second header"));
                }
                None => return Err(Status::aborted("snapshot: the end is missing")),
            }
        }
        let began = Instant::now();
        let staged = blocking(move || sink.finish()).await;
        self.counts.snapshot_syncs.observe(began.elapsed().as_secs_f64());
        staged
    }
}

fn offered(header: internal::SnapshotHeader) -> Result<Offered, CodecError> {
    let missing = |field| CodecError::Missing { message: "SnapshotHeader", field };
    let files = header.files.into_iter();
    Ok(Offered {
        vote: codec::vote(&header.vote.ok_or(missing("vote"))?),
        meta: codec::snapshot_meta(&header.meta.ok_or(missing("meta"))?)?,
        files: files.map(|f| SnapshotFile { name: f.name, size: f.size, kept: f.kept }).collect(),
    })
}

async fn write(
    mut sink: SnapshotSink,
    data: internal::SnapshotData,
) -> Result<SnapshotSink, Status> {
    if crc32c::crc32c(&data.data) != data.crc32c {
        return Err(Status::data_loss("snapshot: the checksum of a piece differs"));
    }
    let file = usize::try_from(data.file).expect("32 bits fit");
    blocking(move || {
        sink.write(file, data.offset, &data.data)?;
        Ok(sink)
    })
    .await
}

/// Runs disk work off the async workers.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, Status> {
    let done = tokio::task::spawn_blocking(work).await.map_err(io::Error::other).flatten();
    done.map_err(|error| match error.kind() {
        // A staged file that was to be kept is gone: the sender asks again.
        io::ErrorKind::WouldBlock | io::ErrorKind::NotFound => Status::aborted(error.to_string()),
        io::ErrorKind::InvalidInput => Status::invalid_argument(error.to_string()),
        io::ErrorKind::InvalidData => Status::data_loss(error.to_string()),
        _ => Status::internal(error.to_string()),
    })
}
