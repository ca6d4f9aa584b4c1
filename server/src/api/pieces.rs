//! Reads a range in key order piece by piece, all at one revision.

use conclave_raft_store::reader::Reader;
use conclave_state_machine::command::{Range, SortOrder, SortTarget};
use conclave_state_machine::response::{KeyValue, RangeResponse};
use tonic::Status;

use super::long_read::LongRead;
use crate::status::{self, Fault};

/// Most keys in a piece.
pub(super) const PIECE_KEYS_MAX: usize = 65_536;
/// A piece ends with the key that reaches this size. Even if that key has the largest value
/// allowed, the piece stays below 4 MiB, the default message limit of gRPC clients.
const PIECE_BYTES_MAX: usize = 2 << 20;

/// The part of a range that is still to be read.
pub(super) struct Pieces {
    reader: Reader,
    range: Range,
    /// The revision that all pieces are read at.
    at: i64,
    /// Number of keys still to be read.
    pub(super) keys_left: usize,
}

/// What is known about a range before its keys are read.
pub(super) struct Outline {
    /// Keys in the range.
    pub(super) count: i64,
    /// Whether the range has more keys than the limit that was asked for.
    pub(super) more: bool,
    /// Revision for the header of the answer.
    pub(super) revision: i64,
}

impl Pieces {
    /// Fixes the revision of the read and counts the keys of the range.
    pub(super) async fn of(
        reader: &Reader,
        range: Range,
        read: &mut LongRead,
    ) -> Result<(Self, Outline), Status> {
        let counted = Range { count_only: true, ..range.clone() };
        let counting = reader.clone();
        let answer = read.piece(move || counting.range(&counted)).await?;
        // A client that watches from just after the header's revision must see everything that is
        // not in the answer.
        let (found, revision) = answer.map_err(|error| status::from_read(&error))?;
        let at = if range.revision <= 0 { revision } else { range.revision };
        let total = usize::try_from(found.count).unwrap_or(usize::MAX);
        let limit = if range.limit > 0 { usize::try_from(range.limit).ok() } else { None };
        let keys_left = if range.count_only { 0 } else { limit.unwrap_or(total).min(total) };
        let more = !range.count_only && limit.is_some_and(|limit| total > limit);
        let outline = Outline { count: found.count, more, revision };
        Ok((Self { reader: reader.clone(), range, at, keys_left }, outline))
    }

    /// Reads the next `wanted` keys, or fewer if they are large.
    pub(super) async fn next(
        &mut self,
        wanted: usize,
        read: &mut LongRead,
    ) -> Result<Vec<KeyValue>, Status> {
        let wanted = wanted.min(self.keys_left);
        if wanted == 0 {
            return Ok(Vec::new());
        }
        let (reader, range, at) = (self.reader.clone(), self.range.clone(), self.at);
        let answer =
            read.piece(move || reader.piece(&range, at, (wanted, PIECE_BYTES_MAX))).await?;
        let kvs = answer.map_err(|error| status::from_read(&error))?;
        // The count promised more keys, and the content of a revision never changes.
        let Some(last) = kvs.last() else { return Err(Fault::Corrupt.into()) };
        let mut start = Vec::with_capacity(last.key.len() + 1);
        start.extend_from_slice(&last.key);
        start.push(0);
        self.range.key = start.into();
        self.keys_left -= kvs.len();
        Ok(kvs)
    }

    /// Reads everything that is left.
    pub(super) async fn rest(
        mut self,
        outline: Outline,
        read: &mut LongRead,
    ) -> Result<(RangeResponse, i64), Status> {
        let Outline { count, more, revision } = outline;
        let mut kvs = Vec::new();
        while self.keys_left > 0 {
            let piece = self.next(PIECE_KEYS_MAX, read).await?;
            read.grow(&piece)?;
            kvs.extend(piece);
        }
        Ok((RangeResponse { kvs, more, count }, revision))
    }
}

/// Whether the answer consists of the first keys of the range in key order: no other sort order, no
/// revision filters.
pub(super) fn is_in_key_order(range: &Range) -> bool {
    range.sort_target == SortTarget::Key
        && range.sort_order != SortOrder::Descend
        && [range.min_mod_revision, range.max_mod_revision] == [0, 0]
        && [range.min_create_revision, range.max_create_revision] == [0, 0]
}
