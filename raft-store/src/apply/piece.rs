//! Groups committed entries that are applied together.

use bytes::Bytes;
use conclave_proto::internal;
use openraft::storage::{ApplyResponder, EntryResponder};
use prost::Message;

use crate::command::length;
use crate::types::{Batch, EntryPayload, LogId, StoredMembership, TypeConfig};

/// Bounds of one piece. Larger ones do not write faster, and a piece keeps a worker thread busy for
/// about 10 us per command.
const COMMANDS_MAX: usize = 1_024;
const BYTES_MAX: usize = 4 << 20;

pub(super) type Waiting = ApplyResponder<TypeConfig>;

/// Content of an entry that is not blank.
pub(super) enum Work {
    Batch(internal::Batch),
    Membership(StoredMembership),
}

/// Entries that are applied together.
#[derive(Default)]
pub(super) struct Piece {
    /// Log id of the last entry.
    pub(super) applied: Option<LogId>,
    pub(super) work: Vec<(LogId, Work)>,
    pub(super) waiting: Vec<Waiting>,
    /// Whether its cost may grow with the number of keys.
    pub(super) is_long: bool,
    commands: usize,
    bytes: usize,
}

impl Piece {
    pub(super) fn push(&mut self, (entry, waiting): EntryResponder<TypeConfig>) {
        let log_id = entry.log_id;
        match entry.payload {
            EntryPayload::Blank => {}
            EntryPayload::Normal(Batch { bytes }) => {
                self.bytes += bytes.len();
                let batch = decode(log_id, bytes);
                self.commands += batch.commands.len();
                self.is_long |= batch.commands.iter().any(length::is_long);
                self.work.push((log_id, Work::Batch(batch)));
            }
            EntryPayload::Membership(membership) => {
                let membership = StoredMembership::new(Some(log_id), membership);
                self.work.push((log_id, Work::Membership(membership)));
            }
        }
        self.applied = Some(log_id);
        self.waiting.extend(waiting);
    }

    pub(super) fn is_full(&self) -> bool {
        self.commands >= COMMANDS_MAX || self.bytes >= BYTES_MAX
    }
}

/// Decodes a batch. Bytes that are not one change nothing, alike on every replica.
fn decode(log_id: LogId, bytes: Bytes) -> internal::Batch {
    internal::Batch::decode(bytes).unwrap_or_else(|error| {
        tracing::error!(index = log_id.index, %error, "a log entry is no batch");
        internal::Batch::default()
    })
}
