//! `KV.RangeStream` (etcd 3.7): a large range in pieces, all at one revision, read as fast as the
//! client takes them.

use conclave_proto::etcdserverpb as etcd;
use conclave_raft_store::reader::Reader;
use conclave_state_machine::command::{Range, SortOrder, SortTarget};
use conclave_state_machine::response::KeyValue;
use futures::stream;
use tonic::{Request, Status};

use super::context::Context;
use super::convert;
use super::kv::{off_thread, validated_range};
use crate::auth::RightsCheck;
use crate::metrics::Answers;
use crate::status::{self, Fault};

/// Answers of one call.
pub(crate) type RangeStream = Answers<etcd::RangeStreamResponse>;

/// Keys of the first piece; as in etcd the number doubles until pieces are large enough.
const FIRST_PIECE_KEYS: usize = 10;
const PIECE_KEYS_MAX: usize = 65_536;
/// A piece ends with the key that reaches this: with one more of the largest values it stays below 4 MiB, which
/// is what gRPC clients take in one message unless they are told otherwise.
const PIECE_BYTES_MAX: usize = 2 << 20;

/// What is left to send.
struct Pieces {
    context: Context,
    range: Range,
    /// Revision of all pieces.
    at: i64,
    /// Last, with header and count.
    end: Option<etcd::RangeResponse>,
    keys_left: usize,
    piece_keys: usize,
}

/// Checks the request and finds its revision; the pieces are read as the stream is.
pub(crate) async fn open(
    context: &Context,
    request: Request<etcd::RangeRequest>,
) -> Result<RangeStream, Status> {
    let (caller, request) = context.accept(request)?;
    let is_serializable = request.serializable;
    let range = validated_range(request)?;
    check_supported(&range)?;
    if !is_serializable {
        context.read_barrier().await?;
    }
    context.node.counts().ranges.inc();
    let wanted = RightsCheck::Range(range.key.clone(), range.range_end.clone());
    let pieces = context.auth.checked(&caller, &wanted, count(context, range)).await?;
    Ok(context.auth.guard(caller, wanted, Box::pin(stream::try_unfold(pieces, next))))
}

fn check_supported(range: &Range) -> Result<(), Status> {
    if range.sort_order != SortOrder::None || range.sort_target != SortTarget::Key {
        return Err(status::unimplemented("RangeStream does not support custom sort orders"));
    }
    let filters = [
        range.min_mod_revision,
        range.max_mod_revision,
        range.min_create_revision,
        range.max_create_revision,
    ];
    if filters.iter().any(|&bound| bound != 0) {
        return Err(status::unimplemented("RangeStream does not support revision filters"));
    }
    Ok(())
}

async fn count(context: &Context, range: Range) -> Result<Pieces, Status> {
    let reader: Reader = context.node.reader().clone();
    let mut counted = Range { count_only: true, ..range.clone() };
    if counted.revision <= 0 {
        counted.revision = reader.head().revision;
    }
    let at = counted.revision;
    let answer = off_thread(move || reader.range(&counted)).await?;
    let (found, revision) = answer.map_err(|error| status::from_read(&error))?;
    let total = usize::try_from(found.count).unwrap_or(usize::MAX);
    let limit = if range.limit > 0 { usize::try_from(range.limit).ok() } else { None };
    let keys_left = if range.count_only { 0 } else { limit.unwrap_or(total).min(total) };
    let more = !range.count_only && limit.is_some_and(|limit| total > limit);
    let end = etcd::RangeResponse {
        header: Some(context.header(revision)),
        kvs: Vec::new(),
        more,
        count: found.count,
    };
    let context = context.clone();
    Ok(Pieces { context, range, at, end: Some(end), keys_left, piece_keys: FIRST_PIECE_KEYS })
}

async fn next(mut pieces: Pieces) -> Result<Option<(etcd::RangeStreamResponse, Pieces)>, Status> {
    let Some(mut message) = pieces.end.take() else { return Ok(None) };
    let wanted = pieces.keys_left.min(pieces.piece_keys);
    let kvs = pieces.read(wanted).await?;
    pieces.keys_left -= kvs.len();
    let kvs: Vec<_> = kvs.into_iter().map(convert::key_value).collect();
    if pieces.keys_left == 0 {
        message.kvs = kvs;
    } else {
        pieces.adapt(kvs.iter().map(prost::Message::encoded_len).sum());
        pieces.end = Some(std::mem::take(&mut message));
        message.kvs = kvs;
    }
    Ok(Some((etcd::RangeStreamResponse { range_response: Some(message) }, pieces)))
}

impl Pieces {
    /// Reads the next `wanted` keys, or fewer that are large, and moves the start behind them.
    async fn read(&mut self, wanted: usize) -> Result<Vec<KeyValue>, Status> {
        if wanted == 0 {
            return Ok(Vec::new());
        }
        let reader = self.context.node.reader().clone();
        let (range, at) = (self.range.clone(), self.at);
        let bounds = (wanted, PIECE_BYTES_MAX);
        let answer = off_thread(move || reader.piece(&range, at, bounds)).await?;
        let kvs = answer.map_err(|error| status::from_read(&error))?;
        // The count said that there are more, and nothing at one revision ever changes.
        let Some(last) = kvs.last() else { return Err(Fault::Corrupt.into()) };
        let mut start = Vec::with_capacity(last.key.len() + 1);
        start.extend_from_slice(&last.key);
        start.push(0);
        self.range.key = start.into();
        Ok(kvs)
    }

    /// Aims the size of the next piece at the largest request, as etcd does.
    fn adapt(&mut self, bytes: usize) {
        let aim = self.context.limits.request_bytes_max;
        if bytes > aim {
            self.piece_keys = (self.piece_keys / 2).max(1);
        } else if bytes < aim / 2 {
            self.piece_keys = (self.piece_keys * 2).min(PIECE_KEYS_MAX);
        }
    }
}
