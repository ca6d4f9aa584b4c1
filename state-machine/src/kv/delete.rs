//! Range delete: all live keys of a span, in key order, at one revision.

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

/// Bytes of rows after which a piece of a span ends.
const PIECE_BYTES: usize = 1 << 20;

/// Carries out a range delete that is a command of its own.
pub(crate) fn apply<R: Read>(
    change: &mut Change<'_, '_, R>,
    delete: &DeleteRange,
) -> Result<DeleteRangeResponse, Stop> {
    validate::key(&delete.key)?;
    Ok(apply_in_txn(change, delete)?)
}

/// Carries out a range delete inside a transaction, which has checked the request.
pub(crate) fn apply_in_txn<R: Read>(
    change: &mut Change<'_, '_, R>,
    delete: &DeleteRange,
) -> Result<DeleteRangeResponse, Halt> {
    let mut response = DeleteRangeResponse::default();
    let mut remove = |change: &mut Change<'_, '_, R>, key: &Bytes, before: Before| {
        let Some(kv) = &before.kv else { return Ok(()) };
        if delete.prev_kv && change.is_awaited() {
            response.prev_kvs.push(kv.clone());
        }
        response.deleted = response.deleted.saturating_add(1);
        change.delete(key, before)
    };
    match Span::new(&delete.key, &delete.range_end) {
        Span::One(key) => {
            let before = Before::load(change.rows, key)?;
            remove(change, key, before)?;
        }
        Span::Keys { start, end } => {
            let mut from = Some(Bytes::copy_from_slice(start));
            while let Some(start) = from {
                let piece = Piece::read(change.rows, &start, end)?;
                for (key, row) in &piece.live {
                    let before = Before::from_row(change.rows, key, row)?;
                    remove(change, key, before)?;
                }
                from = piece.next;
            }
        }
    }
    Ok(response)
}

/// Some successive live keys of a span, with their rows: a whole span may not fit in memory.
#[derive(Default)]
struct Piece {
    live: Vec<(Bytes, Bytes)>,
    /// First key of the next piece.
    next: Option<Bytes>,
}

impl Piece {
    /// Reads the piece that starts at `start`.
    fn read<R: Read>(rows: &R, start: &[u8], end: Option<&[u8]>) -> Result<Piece, Halt> {
        let mut piece = Piece::default();
        if end.is_some_and(|end| end <= start) {
            return Ok(piece);
        }
        let mut bytes = 0_usize;
        rows.scan(Table::Key, start, end, &mut |key, row| {
            if bytes >= PIECE_BYTES {
                piece.next = Some(Bytes::copy_from_slice(key));
                return Ok(ControlFlow::Break(()));
            }
            if KeyRow::decode(row)?.state.is_some() {
                bytes = bytes.saturating_add(key.len()).saturating_add(row.len());
                piece.live.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(row)));
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(piece)
    }
}
