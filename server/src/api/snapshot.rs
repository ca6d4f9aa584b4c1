//! `Maintenance.Snapshot`: streams the state of this member at the pace of the client, and ends if
//! the client takes nothing for too long. Any member can serve it. It contains everything
//! acknowledged before the call, unless the member cannot reach a quorum; then it contains what the
//! member has.
//!
//! The default format is an etcd database, because etcd's own tools read that. A client can ask for
//! Conclave's own format, which is cheaper to make, with the header `conclave-snapshot-format`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use conclave_proto::etcdserverpb as etcd;
use conclave_raft_store::Reader;
use conclave_raft_store::backup::{Backup, Export, Piece};
use futures::stream::{self, TryStreamExt as _};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::metadata::MetadataMap;
use tonic::{Request, Status};

use super::context::{Context, must_have_leader};
use super::kv::off_thread;
use super::{stream_end, taken};
use crate::auth::{RightsCheck, caller_of};
use crate::metrics::Answers;
use crate::status::{self, Fault};
use crate::version;

/// Most snapshots at a time: each holds files that the store would otherwise delete.
pub(crate) const SNAPSHOTS_MAX: usize = 4;
/// How long a snapshot waits for a client that takes nothing: it occupies a permit, and files of
/// the store.
const STANDSTILL_MAX: Duration = Duration::from_secs(5 * 60);
/// How often the presence of a leader is checked.
const LEADER_LOOK: Duration = Duration::from_millis(100);
/// Pieces (of 32 KiB) read at a time.
const PIECES_MAX: usize = 16;

/// Header with the format that a client wants: `etcd` (the default) or `conclave`.
const FORMAT: &str = "conclave-snapshot-format";

/// The response stream of one call.
pub(crate) type Snapshots = Answers<etcd::SnapshotResponse>;

/// A snapshot in the requested format.
enum Saved {
    Etcd(Box<Export>),
    Own(Box<Backup>),
}

impl Saved {
    fn begin(reader: &Reader, format: Format) -> std::io::Result<Self> {
        Ok(match format {
            Format::Etcd => Self::Etcd(Box::new(reader.export(version::CONCLAVE)?)),
            Format::Own => Self::Own(Box::new(reader.backup(version::CONCLAVE)?)),
        })
    }

    fn revision(&self) -> i64 {
        match self {
            Self::Etcd(export) => export.revision(),
            Self::Own(backup) => backup.revision(),
        }
    }

    /// See [`Export::prepare`].
    fn prepare(&mut self) -> std::io::Result<bool> {
        match self {
            Self::Etcd(export) => export.prepare(),
            Self::Own(_) => Ok(true),
        }
    }

    fn next_piece(&mut self) -> std::io::Result<Option<Piece>> {
        match self {
            Self::Etcd(export) => export.next_piece(),
            Self::Own(backup) => backup.next_piece(),
        }
    }
}

#[derive(Clone, Copy)]
enum Format {
    Etcd,
    Own,
}

impl Format {
    fn asked_for(metadata: &MetadataMap) -> Result<Self, Status> {
        match metadata.get(FORMAT).map(|value| value.as_bytes()) {
            None | Some(b"etcd") => Ok(Self::Etcd),
            Some(b"conclave") => Ok(Self::Own),
            Some(_) => Err(Status::invalid_argument(format!(
                "conclave: the header {FORMAT} says neither `etcd` nor `conclave`"
            ))),
        }
    }
}

/// A snapshot that is being sent.
struct Sending {
    backup: Saved,
    is_prepared: bool,
    context: Context,
    began: Instant,
    _permit: OwnedSemaphorePermit,
}

/// Pins the current state; it is read later, as the stream is polled.
pub(crate) async fn open(
    context: &Context,
    permits: &Arc<Semaphore>,
    request: Request<etcd::SnapshotRequest>,
) -> Result<Snapshots, Status> {
    context.check_metadata(request.metadata())?;
    let caller = caller_of(request.extensions());
    let must_have_leader = must_have_leader(request.metadata());
    let format = Format::asked_for(request.metadata())?;
    let permit = permits.clone().try_acquire_owned().map_err(|_| Fault::TooManyRequests)?;
    if context.node.has_leader() && !context.node.is_learner() {
        // The leader may just have lost its quorum, so nobody confirms the barrier. A backup is
        // needed most then.
        let confirmed = tokio::select! {
            confirmed = context.read_barrier() => confirmed.map_err(|reason| reason.message().to_owned()),
            () = leader_missed(context) => Err("no leader is there any more".to_owned()),
        };
        if let Err(reason) = confirmed {
            tracing::warn!(reason, "a snapshot may lack the latest changes");
        }
    }
    let reader = context.node.reader().clone();
    let began = Instant::now();
    let backup = off_thread(move || Saved::begin(&reader, format)).await?;
    let backup = backup.map_err(|error| status::internal(&error))?;
    tracing::info!(revision = backup.revision(), "sending a snapshot to a client");
    let sending =
        Sending { backup, is_prepared: false, context: context.clone(), began, _permit: permit };
    let pieces = stream::try_unfold(sending, next).map_ok(|pieces| {
        stream::iter(pieces.into_iter().map(|piece| Ok::<_, Status>(answer(piece))))
    });
    let pieces = taken::patiently(pieces.try_flatten(), STANDSTILL_MAX, &context.background);
    let pieces = stream_end::guard(context, pieces, must_have_leader);
    // The stream lasts as long as its client reads: it ends if the caller loses the root role
    // meanwhile.
    Ok(context.auth.guard(caller, RightsCheck::Root, pieces))
}

/// Returns once this member knows of no leader with a quorum.
async fn leader_missed(context: &Context) {
    while context.node.has_leader() {
        tokio::time::sleep(LEADER_LOOK).await;
    }
}

async fn next(mut sending: Sending) -> Result<Option<(Vec<Piece>, Sending)>, Status> {
    while !sending.is_prepared {
        sending = prepare(sending).await?;
    }
    let read = off_thread(move || {
        let mut pieces = Vec::with_capacity(PIECES_MAX);
        while pieces.len() < PIECES_MAX
            && let Some(piece) = sending.backup.next_piece()?
        {
            pieces.push(piece);
        }
        Ok::<_, std::io::Error>((pieces, sending))
    });
    let (pieces, sending) = read.await?.map_err(|error| status::internal(&error))?;
    if pieces.is_empty() {
        let took = sending.began.elapsed();
        sending.context.metrics.snapshots.observe(took.as_secs_f64());
        tracing::info!(took = ?took, "sent a snapshot to a client");
        return Ok(None);
    }
    Ok(Some((pieces, sending)))
}

/// Does one step of the preparation before the first piece. Between steps it is noticed if the
/// client is gone.
async fn prepare(mut sending: Sending) -> Result<Sending, Status> {
    let prepared = off_thread(move || {
        sending.is_prepared = sending.backup.prepare()?;
        Ok::<_, std::io::Error>(sending)
    });
    prepared.await?.map_err(|error| status::internal(&error))
}

/// Like etcd's, without a header.
fn answer(Piece { bytes, remaining }: Piece) -> etcd::SnapshotResponse {
    etcd::SnapshotResponse {
        header: None,
        remaining_bytes: remaining,
        blob: bytes,
        version: version::STORAGE.to_owned(),
    }
}
