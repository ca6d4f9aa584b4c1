//! Checks of requests that need no store: the server makes them before it proposes.
//!
//! Order of checks and what they answer are etcd's (`server/etcdserver/api/v3rpc/key.go`, as facts).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use crate::command::{DeleteRange, Put, Txn, TxnOp};
use crate::response::Rejection;
use crate::span::Span;

/// Deepest nesting of transactions, in requests and in log entries, because they are walked by
/// recursion. The wire format alone would allow 100 levels of messages, about 50 transactions.
pub const TXN_DEPTH_MAX: usize = 32;

/// The fields of a put that validation needs: from a command, or from a request as it arrived.
#[derive(Clone, Copy, Debug)]
pub struct PutFields<'a> {
    /// Key.
    pub key: &'a [u8],
    /// Value.
    pub value: &'a [u8],
    /// Lease, 0 for none.
    pub lease: i64,
    /// Keep the present value.
    pub ignore_value: bool,
    /// Keep the present lease.
    pub ignore_lease: bool,
}

/// The fields of one operation of a transaction that validation needs.
#[derive(Clone, Copy, Debug)]
pub enum OpFields<'a, T> {
    /// A read.
    Range {
        /// First key.
        key: &'a [u8],
        /// Whether sort order and sort target are known values.
        is_sort_known: bool,
    },
    /// A put.
    Put(PutFields<'a>),
    /// A range delete, by its first key.
    DeleteRange(&'a [u8]),
    /// A nested transaction.
    Txn(T),
    /// An operation without content.
    Nothing,
}

/// The fields of a transaction that validation needs.
pub trait TxnFields<'a>: Copy {
    /// Keys that are compared.
    fn compared(self) -> impl ExactSizeIterator<Item = &'a [u8]>;

    /// The operations that run if the compares hold, and those that run otherwise.
    fn branches(self) -> [impl ExactSizeIterator<Item = OpFields<'a, Self>>; 2];
}

impl<'a> TxnFields<'a> for &'a Txn {
    fn compared(self) -> impl ExactSizeIterator<Item = &'a [u8]> {
        self.compare.iter().map(|compare| &compare.key[..])
    }

    fn branches(self) -> [impl ExactSizeIterator<Item = OpFields<'a, Self>>; 2] {
        [&self.success, &self.failure].map(|branch| branch.iter().map(op_fields))
    }
}

fn op_fields(op: &TxnOp) -> OpFields<'_, &Txn> {
    match op {
        // A command has no representation for an unknown sort, so it is always known here.
        TxnOp::Range(range) => OpFields::Range { key: &range.key, is_sort_known: true },
        TxnOp::Put(put) => OpFields::Put(fields_of(put)),
        TxnOp::DeleteRange(delete) => OpFields::DeleteRange(&delete.key),
        TxnOp::Txn(nested) => OpFields::Txn(nested),
    }
}

fn fields_of(put: &Put) -> PutFields<'_> {
    let Put { key, value, lease, ignore_value, ignore_lease, .. } = put;
    let (lease, ignore_value, ignore_lease) = (*lease, *ignore_value, *ignore_lease);
    PutFields { key, value, lease, ignore_value, ignore_lease }
}

/// Checks a put.
///
/// # Errors
/// [`Rejection::EmptyKey`], [`Rejection::ValueProvided`], [`Rejection::LeaseProvided`].
pub fn put(request: &Put) -> Result<(), Rejection> {
    put_fields(fields_of(request))
}

/// As [`put`], for a command or a request.
///
/// # Errors
/// Those of [`put`].
pub fn put_fields(put: PutFields<'_>) -> Result<(), Rejection> {
    key(put.key)?;
    if put.ignore_value && !put.value.is_empty() {
        return Err(Rejection::ValueProvided);
    }
    if put.ignore_lease && put.lease != 0 {
        return Err(Rejection::LeaseProvided);
    }
    Ok(())
}

/// Checks the key of a request; for a range, its first key.
///
/// # Errors
/// [`Rejection::EmptyKey`].
pub fn key(key: &[u8]) -> Result<(), Rejection> {
    if key.is_empty() { Err(Rejection::EmptyKey) } else { Ok(()) }
}

/// Checks a range read: its first key, and whether sort order and target are known.
///
/// # Errors
/// [`Rejection::EmptyKey`], [`Rejection::InvalidSort`].
pub fn range_fields(first: &[u8], is_sort_known: bool) -> Result<(), Rejection> {
    key(first)?;
    if is_sort_known { Ok(()) } else { Err(Rejection::InvalidSort) }
}

/// Checks a transaction with everything nested in it. `max_ops` bounds the compares and the
/// operations of each branch; a nested transaction gets what its parent left over.
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

/// As [`txn`], for a command or a request, but without the check for keys that are changed twice.
///
/// # Errors
/// Those of [`txn`]; [`Rejection::TooManyOps`] also if it is nested deeper than `depth_left`, and
/// [`Rejection::KeyNotFound`] for an operation without content, as in etcd.
pub fn operations<'a, T: TxnFields<'a>>(
    txn: T,
    max_ops: usize,
    depth_left: usize,
) -> Result<(), Rejection> {
    let [success, failure] = txn.branches();
    let ops = txn.compared().len().max(success.len()).max(failure.len());
    let ops_left = max_ops.checked_sub(ops).ok_or(Rejection::TooManyOps)?;
    let depth_left = depth_left.checked_sub(1).ok_or(Rejection::TooManyOps)?;
    txn.compared().try_for_each(key)?;
    for op in success.chain(failure) {
        match op {
            OpFields::Range { key, is_sort_known } => range_fields(key, is_sort_known)?,
            OpFields::Put(put) => put_fields(put)?,
            OpFields::DeleteRange(first) => key(first)?,
            OpFields::Txn(nested) => operations(nested, ops_left, depth_left)?,
            OpFields::Nothing => return Err(Rejection::KeyNotFound),
        }
    }
    Ok(())
}

/// Keys that one branch of a transaction would change, including nested transactions.
#[derive(Default)]
struct Touched<'a> {
    puts: BTreeSet<&'a [u8]>,
    deletes: Deleted<'a>,
}

/// Keys that are deleted. A look-up is logarithmic in the number of deletes: a request may have
/// tens of thousands of deletes and as many puts to look up.
#[derive(Default)]
struct Deleted<'a> {
    points: BTreeSet<&'a [u8]>,
    /// Span ends by span starts; the spans do not overlap.
    spans: BTreeMap<&'a [u8], &'a [u8]>,
}

impl<'a> Deleted<'a> {
    /// Adds the keys of a delete, except for an unbounded one, which etcd (3.4 and 3.7) treats as
    /// an empty interval here: such a put and delete run in the order given.
    fn add(&mut self, delete: &'a DeleteRange) {
        match Span::new(&delete.key, &delete.range_end) {
            Span::One(key) => _ = self.points.insert(key),
            Span::Keys { start, end: Some(end) } if start < end => self.add_span(start, end),
            Span::Keys { .. } => {}
        }
    }

    /// Adds `[start, end)`, merged with all spans that it overlaps or touches.
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

    /// The last span that starts at or before `key`.
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
    /// Rejects two puts of one key, and a put of a key that is also deleted. Like etcd, it lets a
    /// nested transaction delete what an earlier sibling put, but not the other way round.
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
