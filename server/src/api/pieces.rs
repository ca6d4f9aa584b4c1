//! A range in key order, read piece by piece, all at one revision.

use conclave_raft_store::reader::Reader;
use conclave_state_machine::command::{Range, SortOrder, SortTarget};
use conclave_state_machine::response::{KeyValue, RangeResponse};
use tonic::Status;

use super::long_read::LongRead;
use crate::status::{self, Fault};

/// Keys of a piece.
pub(super) const PIECE_KEYS_MAX: usize = 65_536;
/// A piece ends with the key that reaches this: with one more of the largest values it stays below 4 MiB, which
/// is what gRPC clients take in one message unless they are told otherwise.
const PIECE_BYTES_MAX: usize = 2 << 20;

/// What is left of a range.
pub(super) struct Pieces {
    reader: Reader,
    range: Range,
    /// Revision of all pieces.
    at: i64,
    /// Keys that are still to be read.
    pub(super) keys_left: usize,
}

/// What is known of a range before its keys are read.
pub(super) struct Outline {
    /// Keys in the range.
    pub(super) count: i64,
    /// Whether there are more than are asked for.
    pub(super) more: bool,
    /// What the answer's header says.
    pub(super) revision: i64,
}

impl Pieces {
    /// Finds the revision, and counts.
    pub(super) async fn of(
        reader: &Reader,
        range: Range,
        read: &mut LongRead,
    ) -> Result<(Self, Outline), Status> {
        let counted = Range { count_only: true, ..range.clone() };
        let counting = reader.clone();
        let answer = read.piece(move || counting.range(&counted)).await?;
        // Whoever watches from behind the header's revision must see all that is not in the answer.
        let (found, revision) = answer.map_err(|error| status::from_read(&error))?;
        let at = if range.revision <= 0 { revision } else { range.revision };
        let total = usize::try_from(found.count).unwrap_or(usize::MAX);
        let limit = if range.limit > 0 { usize::try_from(range.limit).ok() } else { None };
        let keys_left = if range.count_only { 0 } else { limit.unwrap_or(total).min(total) };
        let more = !range.count_only && limit.is_some_and(|limit| total > limit);
        let outline = Outline { count: found.count, more, revision };
        Ok((Self { reader: reader.clone(), range, at, keys_left }, outline))
    }

    /// Reads the next `wanted` keys, or fewer that are large.
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
        // The count said that there are more, and nothing at one revision ever changes.
        let Some(last) = kvs.last() else { return Err(Fault::Corrupt.into()) };
        let mut start = Vec::with_capacity(last.key.len() + 1);
        start.extend_from_slice(&last.key);
        start.push(0);
        self.range.key = start.into();
        self.keys_left -= kvs.len();
        Ok(kvs)
    }

    /// Reads all that is left.
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

/// Whether the keys of an answer are simply the first ones.
pub(super) fn is_in_key_order(range: &Range) -> bool {
    range.sort_target == SortTarget::Key
        && range.sort_order != SortOrder::Descend
        && [range.min_mod_revision, range.max_mod_revision] == [0, 0]
        && [range.min_create_revision, range.max_create_revision] == [0, 0]
}
