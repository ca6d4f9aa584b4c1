//! `Maintenance.Snapshot`: the state of this member as one stream of bytes, as fast as the client
//! takes them, if it takes any. Of any member: what was acknowledged before the call is in it, unless the member cannot
//! reach the others; then it is what the member has.

use std::sync::Arc;
use std::time::{Duration, Instant};

use conclave_proto::etcdserverpb as etcd;
use conclave_raft_store::backup::{Backup, Piece};
use futures::stream::{self, TryStreamExt as _};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
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

/// Answers of one call.
pub(crate) type Snapshots = Answers<etcd::SnapshotResponse>;

/// A snapshot under way.
struct Sending {
    backup: Backup,
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
    let backup = off_thread(move || reader.backup(version::CONCLAVE)).await?;
    let backup = backup.map_err(|error| status::internal(&error))?;
    let bytes = backup.remaining();
    tracing::info!(bytes, revision = backup.revision(), "sending a snapshot to a client");
    let sending = Sending { backup, context: context.clone(), began, _permit: permit };
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

/// As etcd's, without a header.
fn answer(Piece { bytes, remaining }: Piece) -> etcd::SnapshotResponse {
    etcd::SnapshotResponse {
        header: None,
        remaining_bytes: remaining,
        blob: bytes,
        version: version::STORAGE.to_owned(),
    }
}
