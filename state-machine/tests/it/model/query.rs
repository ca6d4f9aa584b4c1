//! What a request asks of one snapshot of the model.

use std::cmp::Ordering;

use bytes::Bytes;
use conclave_state_machine::command::{
    Compare, CompareResult, CompareTarget, Put, Range, SortOrder, SortTarget, Txn, TxnOp,
};
use conclave_state_machine::response::{KeyValue, RangeResponse, Rejection};

use super::Snapshot;

pub(super) fn holds(key: &[u8], start: &[u8], end: &[u8]) -> bool {
    match end {
        [] => key == start,
        [0] => key >= start,
        end => key >= start && key < end,
    }
}

pub(super) fn has_put(txn: &Txn) -> bool {
    txn.success.iter().chain(&txn.failure).any(|op| match op {
        TxnOp::Put(_) => true,
        TxnOp::Txn(nested) => has_put(nested),
        _ => false,
    })
}

pub(super) fn check_fields(put: &Put) -> Result<(), Rejection> {
    match put {
        put if put.key.is_empty() => Err(Rejection::EmptyKey),
        put if put.ignore_value && !put.value.is_empty() => Err(Rejection::ValueProvided),
        put if put.ignore_lease && put.lease != 0 => Err(Rejection::LeaseProvided),
        _ => Ok(()),
    }
}

pub(super) fn check_compares(live: &Snapshot, txn: &Txn) -> Result<(), Rejection> {
    if txn.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(Rejection::EmptyKey);
    }
    let branch = if is_true(live, txn) { &txn.success } else { &txn.failure };
    branch.iter().try_for_each(|op| match op {
        TxnOp::Txn(nested) => check_compares(live, nested),
        _ => Ok(()),
    })
}

pub(super) fn is_true(live: &Snapshot, txn: &Txn) -> bool {
    txn.compare.iter().all(|compare| is_compare_true(live, compare))
}

fn is_compare_true(live: &Snapshot, compare: &Compare) -> bool {
    let meant: Vec<_> = live
        .values()
        .filter(|kv| holds(&kv.key, &compare.key, &compare.range_end))
        .cloned()
        .collect();
    if meant.is_empty() {
        let is_about_value = matches!(compare.target, CompareTarget::Value(_));
        return !is_about_value && relates(&KeyValue::default(), compare);
    }
    meant.iter().all(|kv| relates(kv, compare))
}

fn relates(kv: &KeyValue, compare: &Compare) -> bool {
    let order = match &compare.target {
        CompareTarget::Version(operand) => kv.version.cmp(operand),
        CompareTarget::Create(operand) => kv.create_revision.cmp(operand),
        CompareTarget::Mod(operand) => kv.mod_revision.cmp(operand),
        CompareTarget::Value(operand) => kv.value.cmp(operand),
        CompareTarget::Lease(operand) => kv.lease.cmp(operand),
        CompareTarget::Unknown => Ordering::Equal,
    };
    match compare.result {
        CompareResult::Equal => order == Ordering::Equal,
        CompareResult::NotEqual => order != Ordering::Equal,
        CompareResult::Greater => order == Ordering::Greater,
        CompareResult::Less => order == Ordering::Less,
        CompareResult::Unknown => true,
    }
}

pub(super) fn select(snapshot: &Snapshot, range: &Range) -> RangeResponse {
    let mut kvs: Vec<KeyValue> = snapshot
        .values()
        .filter(|kv| holds(&kv.key, &range.key, &range.range_end))
        .cloned()
        .collect();
    let count = kvs.len() as i64;
    if range.count_only {
        return RangeResponse { count, ..RangeResponse::default() };
    }
    let all = kvs.len();
    kvs.retain(|kv| {
        (range.min_mod_revision == 0 || kv.mod_revision >= range.min_mod_revision)
            && (range.max_mod_revision == 0 || kv.mod_revision <= range.max_mod_revision)
            && (range.min_create_revision == 0 || kv.create_revision >= range.min_create_revision)
            && (range.max_create_revision == 0 || kv.create_revision <= range.max_create_revision)
    });
    let has_filters = range.min_mod_revision != 0
        || range.max_mod_revision != 0
        || range.min_create_revision != 0
        || range.max_create_revision != 0;
    assert!(has_filters || kvs.len() == all);
    let limit = if range.limit > 0 { range.limit as usize } else { usize::MAX };
    if range.sort_order == SortOrder::None && !has_filters {
        kvs.truncate(limit.saturating_add(1));
    }
    let sort_key = |kv: &KeyValue| match range.sort_target {
        SortTarget::Key => (0, kv.key.clone()),
        SortTarget::Version => (kv.version, Bytes::new()),
        SortTarget::Create => (kv.create_revision, Bytes::new()),
        SortTarget::Mod => (kv.mod_revision, Bytes::new()),
        SortTarget::Value => (0, kv.value.clone()),
    };
    match range.sort_order {
        SortOrder::None | SortOrder::Ascend => kvs.sort_by_key(sort_key),
        SortOrder::Descend => kvs.sort_by_key(|kv| std::cmp::Reverse(sort_key(kv))),
    }
    let more = kvs.len() > limit;
    kvs.truncate(limit);
    if range.keys_only {
        for kv in &mut kvs {
            kv.value = Bytes::new();
            kv.lease = if range.sort_target == SortTarget::Value { kv.lease } else { 0 };
        }
    }
    RangeResponse { kvs, more, count }
}
