//! Checks of requests that need no store: the server makes them before it proposes.
//!
//! Order of checks and what they answer are etcd's (`server/etcdserver/api/v3rpc/key.go`, as facts).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

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

/// Keys that one branch of a transaction would change, with what is nested in it.
#[derive(Default)]
struct Touched<'a> {
    puts: BTreeSet<&'a [u8]>,
    deletes: Deleted<'a>,
}

/// Keys that are deleted. A look-up costs the logarithm of the number of deletes: a request may have tens of
/// thousands of them, and as many puts to be looked up.
#[derive(Default)]
struct Deleted<'a> {
    points: BTreeSet<&'a [u8]>,
    /// Ends by starts, none of which overlap.
    spans: BTreeMap<&'a [u8], &'a [u8]>,
}

impl<'a> Deleted<'a> {
    /// Adds the keys of a delete, except of an unbounded one, which etcd takes for an empty interval here
    /// (3.4 and 3.7): such a put and delete run in the order given.
    fn add(&mut self, delete: &'a DeleteRange) {
        match Span::new(&delete.key, &delete.range_end) {
            Span::One(key) => _ = self.points.insert(key),
            Span::Keys { start, end: Some(end) } if start < end => self.add_span(start, end),
            Span::Keys { .. } => {}
        }
    }

    /// Adds `[start, end)`, one with all spans that it overlaps or touches.
    fn add_span(&mut self, mut start: &'a [u8], mut end: &'a [u8]) {
        while let Some((other_start, other_end)) =
            self.last_begun(end).filter(|(_, at)| *at >= start)
        {
            self.spans.remove(other_start);
            start = start.min(other_start);
            end = end.max(other_end);
        }
        self.spans.insert(start, end);
    }

    /// The last span that begins at `key` or before.
    fn last_begun(&self, key: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
        let begun = (Bound::Unbounded, Bound::Included(key));
        self.spans.range::<[u8], _>(begun).next_back().map(|(start, end)| (*start, *end))
    }

    fn extend(&mut self, other: Deleted<'a>) {
        self.points.extend(other.points);
        for (start, end) in other.spans {
            self.add_span(start, end);
        }
    }

    fn contains(&self, key: &[u8]) -> bool {
        self.points.contains(key) || self.last_begun(key).is_some_and(|(_, end)| key < end)
    }
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
                touched.deletes.add(delete);
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
        if self.deletes.contains(key) {
            return Err(Rejection::DuplicateKey);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    fn key() -> impl Strategy<Value = Bytes> {
        prop::collection::vec(b'a'..b'd', 1..3).prop_map(Bytes::from)
    }

    fn end() -> impl Strategy<Value = Bytes> {
        prop_oneof![2 => Just(Bytes::new()), 5 => key(), 1 => Just(Bytes::from_static(b"\0"))]
    }

    proptest! {
        #[test]
        fn deleted_keys_are_those_of_any_delete(
            requests in prop::collection::vec((key(), end()), 0..12),
            more in prop::collection::vec((key(), end()), 0..4),
            looked_up in key(),
        ) {
            let delete = |(key, range_end): (Bytes, Bytes)| DeleteRange { key, range_end, prev_kv: false };
            let [requests, more] = [requests, more].map(|list| Vec::from_iter(list.into_iter().map(delete)));
            let mut deleted = Deleted::default();
            requests.iter().for_each(|request| deleted.add(request));
            let mut others = Deleted::default();
            more.iter().for_each(|request| others.add(request));
            deleted.extend(others);
            let is_meant = requests.iter().chain(&more).any(|request| {
                let span = Span::new(&request.key, &request.range_end);
                !matches!(span, Span::Keys { end: None, .. }) && span.contains(&looked_up)
            });
            prop_assert_eq!(deleted.contains(&looked_up), is_meant);
            let ends: Vec<_> = deleted.spans.iter().flat_map(|(start, end)| [*start, *end]).collect();
            prop_assert!(ends.is_sorted_by(|a, b| a < b), "spans do not overlap");
        }
    }
}
