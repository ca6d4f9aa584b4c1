//! Checks of requests that need no store: the server makes them before it proposes.
//!
//! Order of checks and what they answer are etcd's (`server/etcdserver/api/v3rpc/key.go`, as facts).

use std::collections::BTreeSet;

use crate::command::{DeleteRange, Put, Range, Txn, TxnOp};
use crate::response::Rejection;
use crate::span::Span;

/// Deepest nesting of transactions, for requests and for what the log says: they are walked by recursion.
/// The wire format alone would allow 100 levels of messages, which is about 50 transactions.
pub const TXN_DEPTH_MAX: usize = 32;

/// Checks a put.
///
/// # Errors
/// [`Rejection::EmptyKey`], [`Rejection::ValueProvided`], [`Rejection::LeaseProvided`].
pub fn put(request: &Put) -> Result<(), Rejection> {
    if request.key.is_empty() {
        return Err(Rejection::EmptyKey);
    }
    if request.ignore_value && !request.value.is_empty() {
        return Err(Rejection::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(Rejection::LeaseProvided);
    }
    Ok(())
}

/// Checks a range delete.
///
/// # Errors
/// [`Rejection::EmptyKey`].
pub fn delete_range(request: &DeleteRange) -> Result<(), Rejection> {
    if request.key.is_empty() { Err(Rejection::EmptyKey) } else { Ok(()) }
}

/// Checks a range read.
///
/// # Errors
/// [`Rejection::EmptyKey`].
pub fn range(request: &Range) -> Result<(), Rejection> {
    if request.key.is_empty() { Err(Rejection::EmptyKey) } else { Ok(()) }
}

/// Checks a transaction with everything nested in it; `max_ops` bounds compares and operations of
/// each branch, and a nested transaction gets what its parent left.
///
/// # Errors
/// [`Rejection::TooManyOps`], [`Rejection::EmptyKey`], [`Rejection::DuplicateKey`], and what the
/// checks of the single operations answer.
pub fn txn(request: &Txn, max_ops: usize) -> Result<(), Rejection> {
    operations(request, max_ops, TXN_DEPTH_MAX)?;
    Touched::by(&request.success)?;
    Touched::by(&request.failure)?;
    Ok(())
}

fn operations(txn: &Txn, max_ops: usize, depth_left: usize) -> Result<(), Rejection> {
    let ops = txn.compare.len().max(txn.success.len()).max(txn.failure.len());
    let ops_left = max_ops.checked_sub(ops).ok_or(Rejection::TooManyOps)?;
    let depth_left = depth_left.checked_sub(1).ok_or(Rejection::TooManyOps)?;
    if txn.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(Rejection::EmptyKey);
    }
    for op in txn.success.iter().chain(&txn.failure) {
        match op {
            TxnOp::Range(request) => range(request)?,
            TxnOp::Put(request) => put(request)?,
            TxnOp::DeleteRange(request) => delete_range(request)?,
            TxnOp::Txn(nested) => operations(nested, ops_left, depth_left)?,
        }
    }
    Ok(())
}

/// Keys of a delete that must not be put as well; none for an unbounded delete, which etcd takes for an
/// empty interval here (3.4 and 3.7): such a put and delete run in the order given.
fn checked_span(delete: &DeleteRange) -> Option<Span<'_>> {
    match Span::new(&delete.key, &delete.range_end) {
        Span::Keys { end: None, .. } => None,
        span @ (Span::One(_) | Span::Keys { .. }) => Some(span),
    }
}

/// Keys that one branch of a transaction would change, with what is nested in it.
#[derive(Default)]
struct Touched<'a> {
    puts: BTreeSet<&'a [u8]>,
    deletes: Vec<Span<'a>>,
}

impl<'a> Touched<'a> {
    /// Refuses two puts of one key, and a put of a key that is also deleted. Like etcd, it lets a
    /// nested transaction delete what an earlier one beside it put, but not the other way round.
    ///
    /// The depth was bounded by [`operations`].
    fn by(branch: &'a [TxnOp]) -> Result<Touched<'a>, Rejection> {
        let mut touched = Touched::default();
        for op in branch {
            if let TxnOp::DeleteRange(delete) = op {
                touched.deletes.extend(checked_span(delete));
            }
        }
        for op in branch {
            if let TxnOp::Txn(nested) = op {
                touched.add_nested(Touched::by(&nested.success)?, Touched::by(&nested.failure)?)?;
            }
        }
        for op in branch {
            if let TxnOp::Put(put) = op {
                touched.check_not_deleted(&put.key)?;
                if !touched.puts.insert(&put.key) {
                    return Err(Rejection::DuplicateKey);
                }
            }
        }
        Ok(touched)
    }

    /// Only one of the branches will run, so they may put the same keys.
    fn add_nested(&mut self, then: Touched<'a>, or_else: Touched<'a>) -> Result<(), Rejection> {
        for key in then.puts.iter().chain(&or_else.puts) {
            self.check_not_deleted(key)?;
            if self.puts.contains(key) {
                return Err(Rejection::DuplicateKey);
            }
        }
        self.puts.extend(then.puts);
        self.puts.extend(or_else.puts);
        self.deletes.extend(then.deletes);
        self.deletes.extend(or_else.deletes);
        Ok(())
    }

    fn check_not_deleted(&self, key: &[u8]) -> Result<(), Rejection> {
        if self.deletes.iter().any(|deleted| deleted.contains(key)) {
            return Err(Rejection::DuplicateKey);
        }
        Ok(())
    }
}
