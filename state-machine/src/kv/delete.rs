//! Range delete: all live keys of a span, in key order, as one revision.

use std::ops::ControlFlow;

use bytes::Bytes;

use crate::change::{Before, Change};
use crate::command::DeleteRange;
use crate::outcome::Stop;
use crate::read::{Read, Table};
use crate::response::{DeleteRangeResponse, Halt};
use crate::rows::key::KeyRow;
use crate::span::Span;
use crate::validate;

/// A range delete as a command of its own.
pub(crate) fn apply<R: Read>(
    change: &mut Change<'_, '_, R>,
    delete: &DeleteRange,
) -> Result<DeleteRangeResponse, Stop> {
    validate::key(&delete.key)?;
    Ok(apply_in_txn(change, delete)?)
}

/// A range delete inside a transaction, which has checked the request.
pub(crate) fn apply_in_txn<R: Read>(
    change: &mut Change<'_, '_, R>,
    delete: &DeleteRange,
) -> Result<DeleteRangeResponse, Halt> {
    let mut response = DeleteRangeResponse::default();
    for (key, before) in live_keys(change.rows, Span::new(&delete.key, &delete.range_end))? {
        if let (true, Some(kv)) = (delete.prev_kv, &before.kv) {
            response.prev_kvs.push(kv.clone());
        }
        response.deleted = response.deleted.saturating_add(1);
        change.delete(&key, before)?;
    }
    Ok(response)
}

fn live_keys<R: Read>(rows: &R, span: Span<'_>) -> Result<Vec<(Bytes, Before)>, Halt> {
    let mut found = Vec::new();
    match span {
        Span::One(key) => {
            let before = Before::load(rows, key)?;
            if before.kv.is_some() {
                found.push((key.clone(), before));
            }
        }
        Span::Keys { end: Some(end), start } if end <= start => {}
        Span::Keys { start, end } => rows.scan(Table::Key, start, end, &mut |key, row| {
            if KeyRow::decode(row)?.state.is_some() {
                let key = Bytes::copy_from_slice(key);
                let before = Before::from_row(rows, &key, &Bytes::copy_from_slice(row))?;
                found.push((key, before));
            }
            Ok(ControlFlow::Continue(()))
        })?,
    }
    Ok(found)
}
