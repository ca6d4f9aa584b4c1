//! Key-value commands, one file each: `put`, `delete`, `txn`, and the `compare`s of transactions.

mod compare;
pub(crate) mod delete;
pub(crate) mod put;
pub(crate) mod txn;

use crate::head::Head;
use crate::outcome::split;
use crate::read::Read;
use crate::response::{Halt, Rejection, TxnResponse};

/// Answers a read-only transaction without the log: all its compares and ranges are evaluated at
/// `head`.
///
/// Same condition on compaction as [`crate::range::range`], for the revision of `head` and every
/// revision that the ranges name.
///
/// # Errors
/// [`Halt`] if the storage fails or a row is damaged. In the inner result: what the ranges return,
/// and [`Rejection::Malformed`] if an operation writes.
pub fn read_txn<R: Read>(
    rows: &R,
    head: &Head,
    txn: &crate::command::Txn,
) -> Result<Result<TxnResponse, Rejection>, Halt> {
    split(txn::read(rows, head, txn))
}
