//! Sends a snapshot: a header, the files in pieces, a checksum over all of it.
//!
//! An interrupted transfer resumes: the receiver lists what it has staged, and files whose staged
//! bytes equal ours are not sent again. They are compared by content, because the next attempt may
//! send a later state or come from another member. Large store files never change, so most of them
//! match.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use conclave_proto::internal::{self, snapshot_chunk};
use conclave_raft_store::apply::StateSnapshot;
use conclave_raft_store::codec;
use conclave_raft_store::snapshot::{SnapshotContent, SnapshotFile, SnapshotSource};
use conclave_raft_store::types::{TypeConfig, Vote};
use futures::stream::{self, Stream};
use openraft::error::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{NetSnapshot, RPCOption};
use openraft::raft::SnapshotResponse;
use parking_lot::Mutex;

use super::network::{Network, malformed, refused};
use super::pace::Pace;
use crate::metrics::Pending;

/// Bytes of one piece.
const PIECE_BYTES: usize = 512 * 1024;
/// How long the receiver may accept nothing before the transfer is given up.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// Timeout of asking the receiver what it has.
const STAGED_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause before asking again, and the number of attempts: half a minute if the receiver is down.
/// Giving up at once would mean another checkpoint, and so a flush of the state, for every attempt
/// to reach it.
const STAGED_PAUSE: Duration = Duration::from_millis(300);
const STAGED_ATTEMPTS: usize = 100;
/// How long the receiver may take to verify and install the snapshot.
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
            files: Vec::new(),
        };
        tokio::select! {
            answer = self.transfer(Arc::new(source), header) => answer,
            closed = cancel => Err(closed.into()),
        }
    }

    /// Sends the parts of `source` that the receiver lacks; `header` lacks only the files.
    async fn transfer(
        &self,
        source: Arc<SnapshotSource>,
        mut header: internal::SnapshotHeader,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let staged = self.staged().await?;
        let mut pace = Pace::new(Instant::now());
        let kept = kept(&source, &staged, &mut pace).await.map_err(|error| local(&error))?;
        header.files = files(&source, &kept);
        tracing::info!(
            member = %format_args!("{:x}", self.target),
            index = header.meta.as_ref().and_then(|meta| meta.last_log_id).map_or(0, |id| id.index),
            bytes = header.files.iter().map(|file| file.size - file.kept).sum::<u64>(),
            kept_bytes = kept.iter().sum::<u64>(),
            "sending a snapshot"
        );
        let progress = Arc::new(Progress::default());
        let pieces = pieces(Cursor::new(source, header, kept, pace, progress.clone()));
        let mut client = self.link.client().map_err(|status| refused(&status))?;
        let answer = tokio::select! {
            answer = client.install_snapshot(pieces) => answer,
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

    /// What the receiver has already staged; waits for a receiver that is down.
    async fn staged(&self) -> Result<Vec<internal::StagedFile>, StreamingError<TypeConfig>> {
        let mut failure = None;
        for _ in 0..STAGED_ATTEMPTS {
            let mut client = self.link.client().map_err(|status| refused(&status))?;
            let request = internal::StagedSnapshotRequest { sender: Some(self.sender()) };
            match tokio::time::timeout(STAGED_TIMEOUT, client.staged_snapshot(request)).await {
                Ok(Ok(answer)) => return Ok(answer.into_inner().files),
                Ok(Err(status)) => failure = Some(refused(&status)),
                Err(_elapsed) => failure = Some(Unreachable::from_string("no answer").into()),
            }
            tokio::time::sleep(STAGED_PAUSE).await;
        }
        Err(failure.expect("there was an attempt").into())
    }
}

fn files(source: &SnapshotSource, kept: &[u64]) -> Vec<internal::SnapshotFile> {
    let files = source.files().iter().zip(kept);
    let file = |(f, kept): (&SnapshotFile, &u64)| internal::SnapshotFile {
        name: f.name.clone(),
        size: f.size,
        kept: *kept,
    };
    files.map(file).collect()
}

/// Number of leading bytes of each file that the receiver already has.
async fn kept(
    source: &Arc<SnapshotSource>,
    staged: &[internal::StagedFile],
    pace: &mut Pace,
) -> io::Result<Vec<u64>> {
    let mut kept = vec![0; source.files().len()];
    for (number, file) in source.files().iter().enumerate() {
        let Some(staged) = staged.iter().find(|staged| staged.name == file.name) else { continue };
        let mut crc32c = 0;
        let mut offset = 0;
        while offset < staged.bytes && staged.bytes <= file.size {
            let length =
                PIECE_BYTES.min(usize::try_from(staged.bytes - offset).unwrap_or(PIECE_BYTES));
            pace.wait(length as u64).await;
            let data = read(source, number, offset, length).await?;
            crc32c = crc32c::crc32c_append(crc32c, &data);
            offset += data.len() as u64;
        }
        if offset == staged.bytes && crc32c == staged.crc32c {
            kept[number] = offset;
        }
    }
    Ok(kept)
}

async fn read(
    source: &Arc<SnapshotSource>,
    file: usize,
    offset: u64,
    length: usize,
) -> io::Result<Bytes> {
    let source = source.clone();
    let read = tokio::task::spawn_blocking(move || source.read_at(file, offset, length));
    read.await.map_err(io::Error::other)?
}

fn local(error: &io::Error) -> StreamingError<TypeConfig> {
    // Not a storage error: that would stop this member, which may otherwise be healthy.
    let text = format!("cannot read the snapshot to send: {error}");
    RPCError::<TypeConfig>::Network(NetworkError::from_string(text)).into()
}

/// Progress of a transfer.
#[derive(Debug, Default)]
struct Progress {
    /// Pieces that the connection has accepted.
    taken: AtomicU64,
    /// Set when all pieces are accepted; the receiver may then be silent while it works.
    is_complete: std::sync::atomic::AtomicBool,
    failure: Mutex<Option<io::Error>>,
}

/// Returns when no piece has been accepted for too long.
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

/// Position of reading.
struct Cursor {
    source: Arc<SnapshotSource>,
    header: Option<internal::SnapshotHeader>,
    /// Number of leading bytes of each file that are not sent.
    kept: Vec<u64>,
    file: usize,
    offset: u64,
    crc32c: u32,
    is_done: bool,
    pace: Pace,
    progress: Arc<Progress>,
}

fn pieces(cursor: Cursor) -> impl Stream<Item = internal::SnapshotChunk> + Send + 'static {
    stream::unfold(cursor, |mut cursor| async move {
        let chunk = cursor.next().await?;
        cursor.progress.taken.fetch_add(1, Ordering::Relaxed);
        Some((internal::SnapshotChunk { chunk: Some(chunk) }, cursor))
    })
}

impl Cursor {
    fn new(
        source: Arc<SnapshotSource>,
        header: internal::SnapshotHeader,
        kept: Vec<u64>,
        pace: Pace,
        progress: Arc<Progress>,
    ) -> Self {
        let offset = kept.first().copied().unwrap_or(0);
        let header = Some(header);
        Self { source, header, kept, file: 0, offset, crc32c: 0, is_done: false, pace, progress }
    }

    /// The next piece. `None` at the end, or when reading fails (the error is kept in `progress`).
    async fn next(&mut self) -> Option<snapshot_chunk::Chunk> {
        if let Some(header) = self.header.take() {
            return Some(snapshot_chunk::Chunk::Header(header));
        }
        while self.source.files().get(self.file).is_some_and(|file| self.offset >= file.size) {
            self.file += 1;
            self.offset = self.kept.get(self.file).copied().unwrap_or(0);
        }
        if self.file >= self.source.files().len() {
            self.progress.is_complete.store(true, Ordering::Relaxed);
            let is_first = !std::mem::replace(&mut self.is_done, true);
            return is_first.then_some(snapshot_chunk::Chunk::EndCrc32c(self.crc32c));
        }
        self.pace.wait(PIECE_BYTES as u64).await;
        let (file, offset) = (self.file, self.offset);
        let data = match read(&self.source, file, offset, PIECE_BYTES).await {
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
