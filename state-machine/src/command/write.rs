//! Writes that may be retried (`conclave.v1`).

use bytes::Bytes;

use super::GuardedTxn;

/// Identifies a write when it is retried.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WriteId {
    /// The writer: [`crate::writes::WRITER_BYTES`] random bytes.
    pub writer: Bytes,
    /// Counts the writes of the writer, from 1.
    pub sequence: u64,
    /// All writes of the writer with a smaller number are answered or abandoned.
    pub settled: u64,
    /// A revision that the writer had seen before it sent this write the first time; 0 for none.
    pub since: i64,
}

/// A guarded transaction that takes effect once, however often it arrives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Write {
    /// Identifies retries.
    pub id: WriteId,
    /// What to do; there may be no guards.
    pub guarded: GuardedTxn,
}
