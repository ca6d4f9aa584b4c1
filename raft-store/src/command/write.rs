//! Converts writes that may be retried from messages to commands.

use conclave_proto::v1;
use conclave_state_machine::command::{Write, WriteId};
use conclave_state_machine::response::Rejection;

use super::lock;

/// Converts a write.
///
/// # Errors
/// Those of [`super::txn`].
pub fn write(request: v1::WriteRequest) -> Result<Write, Rejection> {
    let id = id(&request);
    let v1::WriteRequest { guards, txn, .. } = request;
    Ok(Write { id, guarded: lock::guarded_txn(v1::CommitRequest { guards, txn })? })
}

/// The id by which retries of a write are recognised.
#[must_use]
pub fn id(request: &v1::WriteRequest) -> WriteId {
    let v1::WriteRequest { writer, sequence, settled, since, .. } = request;
    WriteId { writer: writer.clone(), sequence: *sequence, settled: *settled, since: *since }
}
