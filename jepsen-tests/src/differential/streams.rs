//! Calls whose answer is a stream, and what must be equal of it.

use conclave_proto::etcdserverpb::SnapshotRequest;
use conclave_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use conclave_proto::v3electionpb::LeaderRequest;
use conclave_proto::v3electionpb::election_client::ElectionClient;
use tonic::Status;

use super::normal::anonymous;
use super::session::Session;

/// A snapshot is whole pages and the checksum behind them.
const PAGE: usize = 512;
const CHECKSUM: usize = 32;

/// Who leads, as the first thing that an observer is told.
pub(super) async fn observe(session: Session, request: LeaderRequest) -> Result<String, Status> {
    let origin = session.origin();
    let mut answers =
        ElectionClient::with_origin(session, origin).observe(request).await?.into_inner();
    let mut first = answers.message().await?;
    first.iter_mut().for_each(|answer| anonymous(&mut answer.header));
    Ok(format!("{first:?}"))
}

/// Whether a snapshot came whole, and said how much was left.
pub(super) async fn snapshot(session: Session) -> Result<String, Status> {
    let origin = session.origin();
    let mut client = MaintenanceClient::with_origin(session, origin);
    let mut parts = client.snapshot(SnapshotRequest {}).await?.into_inner();
    let (mut bytes, mut left, mut is_falling) = (0, u64::MAX, true);
    while let Some(part) = parts.message().await? {
        bytes += part.blob.len();
        is_falling &= part.remaining_bytes < left || part.blob.len() == CHECKSUM;
        left = part.remaining_bytes;
    }
    Ok(format!("whole: {}, left: {left}, falling: {is_falling}", bytes % PAGE == CHECKSUM))
}
