//! Transactions: decide which branches run, make all checks they need, then run them at one
//! revision.
//!
//! All compares, including those of nested transactions, see the state before the transaction.
//! Nothing is written before all checks of the branches taken have passed, so a rejected
//! transaction changes nothing.

use crate::change::Change;
use crate::command::{Range, Txn, TxnOp};
use crate::head::Head;
use crate::kv::{compare, delete, put};
use crate::outcome::Stop;
use crate::range;
use crate::read::Read;
use crate::response::{Halt, OpResponse, RangeResponse, Rejection, TxnResponse};
use crate::validate::{self, TXN_DEPTH_MAX};

/// A transaction whose compares were evaluated.
struct Decided<'a> {
    succeeded: bool,
    branch: &'a [TxnOp],
    /// The nested transactions of `branch`, in order.
    nested: Vec<Decided<'a>>,
}

/// Carries out a transaction.
pub(crate) fn apply<R: Read>(
    change: &mut Change<'_, '_, R>,
    txn: &Txn,
) -> Result<TxnResponse, Stop> {
    let decided = decide(change.rows, change.head.revision, txn, TXN_DEPTH_MAX)?;
    check_writes(change.rows, &decided)?;
    check_ranges(change.head, &decided)?;
    Ok(run(change, &decided)?)
}

/// Evaluates a read-only transaction at `head`.
pub(crate) fn read<R: Read>(rows: &R, head: &Head, txn: &Txn) -> Result<TxnResponse, Stop> {
    let decided = decide(rows, head.revision, txn, TXN_DEPTH_MAX)?;
    check_ranges(head, &decided)?;
    run_reads(rows, head, &decided)
}

/// Whether any branch, including those of nested transactions, puts a key.
pub(crate) fn has_put(txn: &Txn) -> bool {
    has(txn, |op| matches!(op, TxnOp::Put(_)))
}

/// Whether any branch, including those of nested transactions, may return the keys of a span, whose
/// number is unbounded.
pub(crate) fn tells_spans(txn: &Txn) -> bool {
    has(txn, |op| match op {
        TxnOp::Range(range) => !range.range_end.is_empty() && !range.count_only,
        TxnOp::DeleteRange(delete) => !delete.range_end.is_empty() && delete.prev_kv,
        TxnOp::Put(_) | TxnOp::Txn(_) => false,
    })
}

fn has(txn: &Txn, is_wanted: impl Fn(&TxnOp) -> bool) -> bool {
    let mut pending = vec![txn];
    while let Some(txn) = pending.pop() {
        for op in txn.success.iter().chain(&txn.failure) {
            if is_wanted(op) {
                return true;
            }
            if let TxnOp::Txn(nested) = op {
                pending.push(nested);
            }
        }
    }
    false
}

fn decide<'a, R: Read>(
    rows: &R,
    at: i64,
    txn: &'a Txn,
    depth_left: usize,
) -> Result<Decided<'a>, Stop> {
    let depth_left = depth_left.checked_sub(1).ok_or(Rejection::TooManyOps)?;
    let mut succeeded = true;
    for compare in &txn.compare {
        if compare.key.is_empty() {
            return Err(Rejection::EmptyKey.into());
        }
        succeeded = succeeded && compare::holds(rows, at, compare)?;
    }
    let branch = if succeeded { &txn.success } else { &txn.failure };
    let mut nested = Vec::new();
    for op in branch {
        if let TxnOp::Txn(txn) = op {
            nested.push(decide(rows, at, txn, depth_left)?);
        }
    }
    Ok(Decided { succeeded, branch, nested })
}

fn check_writes<R: Read>(rows: &R, txn: &Decided<'_>) -> Result<(), Stop> {
    let mut nested = txn.nested.iter();
    for op in txn.branch {
        match op {
            TxnOp::Put(put) => put::check_in_txn(rows, put)?,
            TxnOp::DeleteRange(delete) => validate::key(&delete.key)?,
            TxnOp::Range(_) => {}
            TxnOp::Txn(_) => check_writes(rows, next(&mut nested))?,
        }
    }
    Ok(())
}

fn check_ranges(head: &Head, txn: &Decided<'_>) -> Result<(), Stop> {
    let mut nested = txn.nested.iter();
    for op in txn.branch {
        match op {
            TxnOp::Range(range) => check_range(head, range)?,
            TxnOp::Put(_) | TxnOp::DeleteRange(_) => {}
            TxnOp::Txn(_) => check_ranges(head, next(&mut nested))?,
        }
    }
    Ok(())
}

/// As in etcd, the revision that the transaction itself creates counts as a future one.
fn check_range(head: &Head, range: &Range) -> Result<(), Rejection> {
    validate::key(&range.key)?;
    if range.revision > head.revision {
        return Err(Rejection::FutureRevision);
    }
    if range.revision != 0 && range.revision < head.compacted {
        return Err(Rejection::Compacted);
    }
    Ok(())
}

fn run<R: Read>(change: &mut Change<'_, '_, R>, txn: &Decided<'_>) -> Result<TxnResponse, Halt> {
    let mut nested = txn.nested.iter();
    let mut responses = Vec::with_capacity(txn.branch.len());
    for op in txn.branch {
        let response = match op {
            TxnOp::Range(_) if !change.is_awaited() => OpResponse::Range(RangeResponse::default()),
            TxnOp::Range(request) => match range::range(change.rows, change.head, request)? {
                Ok(response) => OpResponse::Range(response),
                Err(rejection) => return Err(missed_check(&rejection)),
            },
            TxnOp::Put(request) => OpResponse::Put(put::apply_in_txn(change, request)?),
            TxnOp::DeleteRange(request) => {
                OpResponse::DeleteRange(delete::apply_in_txn(change, request)?)
            }
            TxnOp::Txn(_) => OpResponse::Txn(run(change, next(&mut nested))?),
        };
        responses.push((change.head.revision, response));
    }
    Ok(TxnResponse { succeeded: txn.succeeded, responses })
}

fn run_reads<R: Read>(rows: &R, head: &Head, txn: &Decided<'_>) -> Result<TxnResponse, Stop> {
    let mut nested = txn.nested.iter();
    let mut responses = Vec::with_capacity(txn.branch.len());
    for op in txn.branch {
        let response = match op {
            TxnOp::Range(request) => OpResponse::Range(range::read(rows, head, request)?),
            TxnOp::Txn(_) => OpResponse::Txn(run_reads(rows, head, next(&mut nested))?),
            TxnOp::Put(_) | TxnOp::DeleteRange(_) => {
                return Err(Rejection::Malformed("a read-only transaction writes").into());
            }
        };
        responses.push((head.revision, response));
    }
    Ok(TxnResponse { succeeded: txn.succeeded, responses })
}

fn next<'a, 'b>(nested: &mut std::slice::Iter<'a, Decided<'b>>) -> &'a Decided<'b> {
    nested.next().expect("every nested transaction of the branch was decided")
}

/// All rejections are found before the first write. One that is found later cannot be undone, so
/// the node stops.
fn missed_check(rejection: &Rejection) -> Halt {
    Halt::CorruptRow { table: "head", detail: format!("refused inside a transaction: {rejection}") }
}
