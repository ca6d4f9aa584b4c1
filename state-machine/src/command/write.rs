//! Writes that may come again (`conclave.v1`).

use bytes::Bytes;

use super::GuardedTxn;

/// Makes a write recognisable when it comes again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WriteId {
    /// Who writes: [`crate::writes::WRITER_BYTES`] random bytes.
    pub writer: Bytes,
    /// Counts the writes of the writer, from 1.
    pub sequence: u64,
    /// All writes of the writer with a smaller number are answered or given up.
    pub settled: u64,
    /// A revision that the writer had seen before it sent this write for the first time; 0 for none.
    pub since: i64,
}

/// A guarded transaction that takes effect once, however often it comes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Write {
    /// By what it is recognised.
    pub id: WriteId,
    /// What to do; guards may be missing.
    pub guarded: GuardedTxn,
}
