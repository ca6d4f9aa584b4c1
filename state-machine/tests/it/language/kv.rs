//! Words about keys: puts, deletions, ranges and transactions.

use conclave_state_machine::command::{
    Compare, CompareResult, CompareTarget, DeleteRange, Put, Range, SortOrder, SortTarget, Txn,
    TxnOp,
};

use super::words::{Parsed, Words, bytes, number, span};

pub(super) fn put(words: &mut Words) -> Parsed<Put> {
    let (key, value) = (bytes(&words.next()?), bytes(&words.next()?));
    let mut put = Put { key, value, ..Put::default() };
    for (option, value) in words.options() {
        match option.as_str() {
            "lease" => put.lease = number(&value)?,
            "prev_kv" => put.prev_kv = true,
            "ignore_value" => put.ignore_value = true,
            "ignore_lease" => put.ignore_lease = true,
            _ => return Err(format!("unknown option {option:?} of put")),
        }
    }
    Ok(put)
}

pub(super) fn delete(words: &mut Words) -> Parsed<DeleteRange> {
    let (key, range_end) = span(&words.next()?);
    let mut delete = DeleteRange { key, range_end, prev_kv: false };
    for (option, _) in words.options() {
        match option.as_str() {
            "prev_kv" => delete.prev_kv = true,
            _ => return Err(format!("unknown option {option:?} of delete")),
        }
    }
    Ok(delete)
}

pub(crate) fn range(words: &mut Words) -> Parsed<Range> {
    let (key, range_end) = span(&words.next()?);
    let mut range = Range { key, range_end, ..Range::default() };
    for (option, value) in words.options() {
        match option.as_str() {
            "rev" => range.revision = number(&value)?,
            "limit" => range.limit = number(&value)?,
            "sort" => (range.sort_order, range.sort_target) = sort(&value)?,
            "keys_only" => range.keys_only = true,
            "count_only" => range.count_only = true,
            "min_mod" => range.min_mod_revision = number(&value)?,
            "max_mod" => range.max_mod_revision = number(&value)?,
            "min_create" => range.min_create_revision = number(&value)?,
            "max_create" => range.max_create_revision = number(&value)?,
            _ => return Err(format!("unknown option {option:?} of range")),
        }
    }
    Ok(range)
}

pub(super) fn sort(word: &str) -> Parsed<(SortOrder, SortTarget)> {
    let (order, target) = word.split_once('.').unwrap_or((word, "key"));
    let order = match order {
        "none" => SortOrder::None,
        "asc" => SortOrder::Ascend,
        "desc" => SortOrder::Descend,
        _ => return Err(format!("unknown order {order:?}")),
    };
    let target = match target {
        "key" => SortTarget::Key,
        "version" => SortTarget::Version,
        "create" => SortTarget::Create,
        "mod" => SortTarget::Mod,
        "value" => SortTarget::Value,
        _ => return Err(format!("unknown sort target {target:?}")),
    };
    Ok((order, target))
}

pub(super) fn txn(words: &mut Words) -> Parsed<Txn> {
    let mut txn = Txn::default();
    words.expect("[")?;
    while words.peek() != Some("]") {
        txn.compare.push(compare(words)?);
        if words.peek() == Some(";") {
            words.next()?;
        }
    }
    words.expect("]")?;
    txn.success = block(words)?;
    if words.peek() == Some("{") {
        txn.failure = block(words)?;
    }
    Ok(txn)
}

pub(super) fn compare(words: &mut Words) -> Parsed<Compare> {
    let field = words.next()?;
    let (key, range_end) = span(&words.next()?);
    let relation = words.next()?;
    let operand = words.next()?;
    let target = match field.as_str() {
        "version" => CompareTarget::Version(number(&operand)?),
        "create" => CompareTarget::Create(number(&operand)?),
        "mod" => CompareTarget::Mod(number(&operand)?),
        "value" => CompareTarget::Value(bytes(&operand)),
        "lease" => CompareTarget::Lease(number(&operand)?),
        "unknown" => CompareTarget::Unknown,
        _ => return Err(format!("unknown field {field:?}")),
    };
    let result = match relation.as_str() {
        "=" => CompareResult::Equal,
        "!=" => CompareResult::NotEqual,
        "<" => CompareResult::Less,
        ">" => CompareResult::Greater,
        "?" => CompareResult::Unknown,
        _ => return Err(format!("unknown relation {relation:?}")),
    };
    Ok(Compare { key, range_end, result, target })
}

pub(super) fn block(words: &mut Words) -> Parsed<Vec<TxnOp>> {
    let mut ops = Vec::new();
    words.expect("{")?;
    while words.peek() != Some("}") {
        let op = words.next()?;
        ops.push(match op.as_str() {
            "put" => TxnOp::Put(put(words)?),
            "delete" => TxnOp::DeleteRange(delete(words)?),
            "range" => TxnOp::Range(range(words)?),
            "txn" => TxnOp::Txn(txn(words)?),
            _ => return Err(format!("unknown operation {op:?}")),
        });
        if words.peek() == Some(";") {
            words.next()?;
        }
    }
    words.expect("}")?;
    Ok(ops)
}

pub(super) fn quoted_txn(words: &mut Words) -> Parsed<Txn> {
    let source = words.next()?;
    let mut inner = Words::new(source.split_whitespace().map(str::to_owned));
    let txn = txn(&mut inner)?;
    inner.finish()?;
    Ok(txn)
}
