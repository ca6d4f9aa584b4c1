//! Sending a snapshot: a header, the files in pieces, a checksum over all of it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use conclave_proto::internal::{self, snapshot_chunk};
use conclave_raft_store::apply::StateSnapshot;
use conclave_raft_store::codec;
use conclave_raft_store::snapshot::{SnapshotContent, SnapshotSource};
use conclave_raft_store::types::{TypeConfig, Vote};
use futures::stream::{self, Stream};
use openraft::error::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{NetSnapshot, RPCOption};
use openraft::raft::SnapshotResponse;
use parking_lot::Mutex;

use super::network::{Network, malformed, refused};
use crate::metrics::Pending;

/// Bytes of one piece.
const PIECE_BYTES: usize = 512 * 1024;
/// How long nothing of a snapshot may be taken before it is given up.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the receiver may verify and install what it has received.
const INSTALL_TIMEOUT: Duration = Duration::from_secs(600);

impl NetSnapshot<TypeConfig> for Network {
    type SnapshotData = SnapshotContent;

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: StateSnapshot,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let peer = self.link.peer();
        let (began, sending) = (Instant::now(), Pending::new(&peer.snapshots_sending));
        let sent = self.send(vote, snapshot, cancel).await;
        drop(sending);
        peer.snapshot_sent(began.elapsed(), sent.is_ok());
        sent
    }
}

impl Network {
    async fn send(
        &self,
        vote: Vote,
        snapshot: StateSnapshot,
        cancel: impl Future<Output = ReplicationClosed>,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let source = snapshot.snapshot.into_source().map_err(|error| local(&error))?;
        let header = internal::SnapshotHeader {
            sender: Some(self.sender()),
            vote: Some(codec::vote_message(&vote)),
            meta: Some(codec::snapshot_meta_message(&snapshot.meta)),
            files: files(&source),
        };
        let last_log_id = snapshot.meta.last_log_id;
        tracing::info!(
            member = %format_args!("{:x}", self.target),
            index = last_log_id.map_or(0, |id| id.index),
            bytes = header.files.iter().map(|file| file.size).sum::<u64>(),
            "sending a snapshot"
        );
        let progress = Arc::new(Progress::default());
        let pieces = pieces(Arc::new(source), header, progress.clone());
        let mut client = self.link.client().map_err(|status| refused(&status))?;
        let answer = tokio::select! {
            answer = client.install_snapshot(pieces) => answer,
            closed = cancel => return Err(closed.into()),
            () = stalled(&progress) => {
                self.link.reset();
                let text = "the receiver takes nothing of the snapshot";
                return Err(Unreachable::from_string(text).into());
            }
        };
        if let Some(error) = progress.failure.lock().take() {
            return Err(local(&error));
        }
        let answer = answer.map_err(|status| refused(&status))?.into_inner();
        let vote = answer.vote.ok_or_else(|| malformed("SnapshotResponse without vote"))?;
        Ok(SnapshotResponse::new(codec::vote(&vote)))
    }
}

fn files(source: &SnapshotSource) -> Vec<internal::SnapshotFile> {
    let files = source.files().iter();
    files.map(|f| internal::SnapshotFile { name: f.name.clone(), size: f.size }).collect()
}

fn local(error: &io::Error) -> StreamingError<TypeConfig> {
    // Not a storage error: that would stop this member, which may be healthy otherwise.
    let text = format!("cannot read the snapshot to send: {error}");
    RPCError::<TypeConfig>::Network(NetworkError::from_string(text)).into()
}

/// How far sending has come.
#[derive(Debug, Default)]
struct Progress {
    /// Pieces taken by the connection.
    taken: AtomicU64,
    /// Set when all pieces are taken; the receiver may then work silently.
    is_complete: std::sync::atomic::AtomicBool,
    failure: Mutex<Option<io::Error>>,
}

/// Returns when nothing was taken for too long.
async fn stalled(progress: &Progress) {
    let mut seen = None;
    loop {
        let is_complete = progress.is_complete.load(Ordering::Relaxed);
        let taken = (progress.taken.load(Ordering::Relaxed), is_complete);
        if seen == Some(taken) {
            return;
        }
        seen = Some(taken);
        tokio::time::sleep(if is_complete { INSTALL_TIMEOUT } else { IDLE_TIMEOUT }).await;
    }
}

/// Where reading stands.
struct Cursor {
    source: Arc<SnapshotSource>,
    header: Option<internal::SnapshotHeader>,
    file: usize,
    offset: u64,
    crc32c: u32,
    is_done: bool,
    progress: Arc<Progress>,
}

fn pieces(
    source: Arc<SnapshotSource>,
    header: internal::SnapshotHeader,
    progress: Arc<Progress>,
) -> impl Stream<Item = internal::SnapshotChunk> + Send + 'static {
    let header = Some(header);
    let cursor = Cursor { source, header, file: 0, offset: 0, crc32c: 0, is_done: false, progress };
    stream::unfold(cursor, |mut cursor| async move {
        let chunk = cursor.next().await?;
        cursor.progress.taken.fetch_add(1, Ordering::Relaxed);
        Some((internal::SnapshotChunk { chunk: Some(chunk) }, cursor))
    })
}

impl Cursor {
    /// The next piece; `None` at the end or, with the failure noted, when reading fails.
    async fn next(&mut self) -> Option<snapshot_chunk::Chunk> {
        if let Some(header) = self.header.take() {
            return Some(snapshot_chunk::Chunk::Header(header));
        }
        while self.source.files().get(self.file).is_some_and(|file| self.offset >= file.size) {
            self.file += 1;
            self.offset = 0;
        }
        if self.file >= self.source.files().len() {
            self.progress.is_complete.store(true, Ordering::Relaxed);
            let is_first = !std::mem::replace(&mut self.is_done, true);
            return is_first.then_some(snapshot_chunk::Chunk::EndCrc32c(self.crc32c));
        }
        let (source, file, offset) = (self.source.clone(), self.file, self.offset);
        let read = tokio::task::spawn_blocking(move || source.read_at(file, offset, PIECE_BYTES));
        let data = match read.await.map_err(io::Error::other).flatten() {
            Ok(data) => data,
            Err(error) => {
                *self.progress.failure.lock() = Some(error);
                return None;
            }
        };
        self.offset += data.len() as u64;
        self.crc32c = crc32c::crc32c_append(self.crc32c, &data);
        let crc32c = crc32c::crc32c(&data);
        let file = u32::try_from(file).expect("a snapshot has far fewer files");
        Some(snapshot_chunk::Chunk::Data(internal::SnapshotData { file, offset, data, crc32c }))
    }
}
