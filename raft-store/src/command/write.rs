//! Writes that may come again, as they travel.

use conclave_proto::v1;
use conclave_state_machine::command::{Write, WriteId};
use conclave_state_machine::response::Rejection;

use super::lock;

/// The command of a write.
///
/// # Errors
/// As [`super::txn`].
pub fn write(request: v1::WriteRequest) -> Result<Write, Rejection> {
    let v1::WriteRequest { writer, sequence, settled, since, guards, txn } = request;
    Ok(Write {
        id: WriteId { writer, sequence, settled, since },
        guarded: lock::guarded_txn(v1::CommitRequest { guards, txn })?,
    })
}
