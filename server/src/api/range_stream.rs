//! `KV.RangeStream` (etcd 3.7): a large range in pieces, all at one revision, read at the pace of
//! the client.

use conclave_proto::etcdserverpb as etcd;
use conclave_state_machine::command::{Range, SortOrder, SortTarget};
use conclave_state_machine::response::KeyValue;
use futures::stream;
use tonic::{Request, Status};

use super::context::Context;
use super::convert;
use super::kv::validated_range;
use super::pieces::{PIECE_KEYS_MAX, Pieces};
use crate::auth::RightsCheck;
use crate::metrics::Answers;
use crate::status;

/// The response stream of one call.
pub(crate) type RangeStream = Answers<etcd::RangeStreamResponse>;

/// Keys in the first piece. As in etcd the number doubles until pieces are large enough.
const FIRST_PIECE_KEYS: usize = 10;

/// The state of one response stream.
struct Answer {
    context: Context,
    pieces: Pieces,
    /// The last message with header and count, until it is sent.
    end: Option<etcd::RangeResponse>,
    piece_keys: usize,
}

/// Checks the request and fixes its revision. The pieces are read later, as the stream is polled.
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
    let answer = context.auth.checked(&caller, &wanted, count(context, range)).await?;
    Ok(context.auth.guard(caller, wanted, Box::pin(stream::try_unfold(answer, next))))
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

async fn count(context: &Context, range: Range) -> Result<Answer, Status> {
    let mut read = context.long_reads.begin_piece().await?;
    let (pieces, outline) = Pieces::of(context.node.reader(), range, &mut read).await?;
    let end = etcd::RangeResponse {
        header: Some(context.header(outline.revision)),
        kvs: Vec::new(),
        more: outline.more,
        count: outline.count,
    };
    let context = context.clone();
    Ok(Answer { context, pieces, end: Some(end), piece_keys: FIRST_PIECE_KEYS })
}

async fn next(mut answer: Answer) -> Result<Option<(etcd::RangeStreamResponse, Answer)>, Status> {
    let Some(mut message) = answer.end.take() else { return Ok(None) };
    let kvs = answer.read().await?;
    let kvs: Vec<_> = kvs.into_iter().map(convert::key_value).collect();
    if answer.pieces.keys_left == 0 {
        message.kvs = kvs;
    } else {
        answer.adapt(kvs.iter().map(prost::Message::encoded_len).sum());
        answer.end = Some(std::mem::take(&mut message));
        message.kvs = kvs;
    }
    Ok(Some((etcd::RangeStreamResponse { range_response: Some(message) }, answer)))
}

impl Answer {
    /// Reads the next piece, with a turn of its own: a slow client must not hold one between
    /// pieces.
    async fn read(&mut self) -> Result<Vec<KeyValue>, Status> {
        if self.pieces.keys_left == 0 {
            return Ok(Vec::new());
        }
        let mut read = self.context.long_reads.begin_piece().await?;
        self.pieces.next(self.piece_keys, &mut read).await
    }

    /// Adapts the number of keys to the size of the last piece: messages should have about the size
    /// of the largest request, as in etcd.
    fn adapt(&mut self, bytes: usize) {
        let aim = self.context.limits.request_bytes_max;
        if bytes > aim {
            self.piece_keys = (self.piece_keys / 2).max(1);
        } else if bytes < aim / 2 {
            self.piece_keys = (self.piece_keys * 2).min(PIECE_KEYS_MAX);
        }
    }
}
