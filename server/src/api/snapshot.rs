//! `Maintenance.Snapshot`: the state of this member as one stream of bytes, as fast as the client
//! takes them, if it takes any. Of any member: what was acknowledged before the call is in it, unless the member cannot
//! reach the others; then it is what the member has.
//!
//! What is sent is an etcd's database, for its own programs read that; who asks for our own form by a header gets that,
//! which costs less.

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

/// Most snapshots under way: each holds files that the store would delete otherwise.
pub(crate) const SNAPSHOTS_MAX: usize = 4;
/// How long one goes on whose client takes nothing: others may wait for its place, and the store for its files.
const STANDSTILL_MAX: Duration = Duration::from_secs(5 * 60);
/// How often it is looked for the leader.
const LEADER_LOOK: Duration = Duration::from_millis(100);
/// Pieces (of 32 KiB) that are read at a time.
const PIECES_MAX: usize = 16;

/// Header by which a client says which form it wants: `etcd`, as without it, or `conclave`.
const FORMAT: &str = "conclave-snapshot-format";

/// Answers of one call.
pub(crate) type Snapshots = Answers<etcd::SnapshotResponse>;

/// A snapshot, in the form that was asked for.
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

    /// As [`Export::prepare`].
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

/// A snapshot under way.
struct Sending {
    backup: Saved,
    is_prepared: bool,
    context: Context,
    began: Instant,
    _permit: OwnedSemaphorePermit,
}

/// Takes the state as of now; it is read as the stream is.
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
        // A leader may just have lost its quorum: that is when a backup is needed most, and nobody confirms any more.
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
    // It goes on for as long as its client takes: whoever is no administrator any more gets no more of it.
    Ok(context.auth.guard(caller, RightsCheck::Root, pieces))
}

/// Returns once this member knows of no leader that a quorum follows.
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

/// Does something of what comes before the first piece: whoever has gone meanwhile is noticed in between.
async fn prepare(mut sending: Sending) -> Result<Sending, Status> {
    let prepared = off_thread(move || {
        sending.is_prepared = sending.backup.prepare()?;
        Ok::<_, std::io::Error>(sending)
    });
    prepared.await?.map_err(|error| status::internal(&error))
}

/// As etcd's, without a header.
fn answer(Piece { bytes, remaining }: Piece) -> etcd::SnapshotResponse {
    etcd::SnapshotResponse {
        header: None,
        remaining_bytes: remaining,
        blob: bytes,
        version: version::STORAGE.to_owned(),
    }
}
