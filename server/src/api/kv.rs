//! The KV service. Writes are validated once, then proposed; reads are local after one barrier.

use std::sync::Arc;
use std::time::{Duration, Instant};

use conclave_proto::etcdserverpb as etcd;
use conclave_proto::internal::command::Command as Message;
use conclave_raft_store::command;
use conclave_state_machine::command::{Caller, Range, Txn, TxnOp};
use conclave_state_machine::response::{
    OpResponse, RangeResponse, Rejection, Response as Answer, TxnResponse,
};
use etcd::kv_server::Kv;
use tonic::{Code, Request, Response, Status};

use super::context::{Context, mismatch};
use super::long_read::{Held, LongRead};
use super::pieces::{Pieces, is_in_key_order};
use super::range_stream::{self, RangeStream};
use super::{check, convert, limits};
use crate::auth::RightsCheck;
use crate::metrics::Method;
use crate::propose::Haste;
use crate::status::{self, Fault};

/// A range over a store with at most this many keys is first tried on the calling thread, whatever
/// it selects.
const SMALL_STORE_KEYS: i64 = 1_000;
/// So is a page of at most this many keys; Kubernetes clients ask for 500.
const PAGE_KEYS_MAX: i64 = 512;
/// A read-only transaction with at most this many single-key reads counts as short.
const SHORT_TXN_KEYS_MAX: usize = 8;
/// How often a range at the newest revision is tried in pieces before it is read in one go: a
/// compaction can interrupt the pieces.
const READS_IN_PIECES_MAX: usize = 3;
/// How long a client that waits for the end of a compaction waits for each sweep step. If the
/// leader is lost, the next leader continues the sweep.
const SWEEP_STEP_TIMEOUT: Duration = Duration::from_secs(10);

/// Answers KV calls.
#[derive(Clone)]
pub(crate) struct KvService {
    pub(crate) context: Context,
}

fn rejected(rejection: Rejection) -> Status {
    status::from_rejection(&rejection)
}

impl KvService {
    async fn answer_range(
        &self,
        request: Request<etcd::RangeRequest>,
        held: &mut Option<Held>,
    ) -> Result<etcd::RangeResponse, Status> {
        let (caller, request) = self.context.accept(request)?;
        let is_serializable = request.serializable;
        let range = validated_range(request)?;
        if !is_serializable {
            self.context.read_barrier().await?;
        }
        self.context.node.counts().ranges.inc();
        let wanted = RightsCheck::Range(range.key.clone(), range.range_end.clone());
        self.context.auth.checked(&caller, &wanted, self.read_range(range, held)).await
    }

    async fn read_range(
        &self,
        range: Range,
        held: &mut Option<Held>,
    ) -> Result<etcd::RangeResponse, Status> {
        let reader = self.context.node.reader();
        let began = Instant::now();
        let is_short = is_short(&range) || reader.head().key_count <= SMALL_STORE_KEYS;
        let answer = match if is_short { read_briefly(&self.context, &range) } else { Ok(None) } {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => read_long(&self.context, range).await.map(|(answer, room)| {
                *held = Some(room);
                answer
            }),
            Err(status) => Err(status),
        };
        self.context.node.counts().range_read(began.elapsed(), answer.is_ok());
        let (found, revision) = answer?;
        Ok(convert::range(self.context.header(revision), found))
    }

    async fn answer_put(
        &self,
        request: Request<etcd::PutRequest>,
    ) -> Result<etcd::PutResponse, Status> {
        let (caller, request) = self.context.accept(request)?;
        self.context.check_quota(limits::put_cost(&request)).await?;
        check::put(&request)?;
        self.context.check_size(&request)?;
        match self.context.propose(&caller, Message::Put(request)).await? {
            (Answer::Put(answer), revision) => {
                Ok(convert::put(self.context.header(revision), answer))
            }
            _ => Err(mismatch()),
        }
    }

    async fn answer_delete_range(
        &self,
        request: Request<etcd::DeleteRangeRequest>,
    ) -> Result<etcd::DeleteRangeResponse, Status> {
        let (caller, request) = self.context.accept(request)?;
        self.delete(&caller, request).await
    }

    /// Deletes a range of keys on behalf of `caller`.
    pub(super) async fn delete(
        &self,
        caller: &Caller,
        request: etcd::DeleteRangeRequest,
    ) -> Result<etcd::DeleteRangeResponse, Status> {
        check::delete_range(&request)?;
        self.context.check_size(&request)?;
        match self.context.propose(caller, Message::DeleteRange(request)).await? {
            (Answer::DeleteRange(answer), revision) => {
                Ok(convert::delete_range(self.context.header(revision), answer))
            }
            _ => Err(mismatch()),
        }
    }

    async fn answer_txn(
        &self,
        request: Request<etcd::TxnRequest>,
        held: &mut Option<Held>,
    ) -> Result<etcd::TxnResponse, Status> {
        let (caller, request) = self.context.accept(request)?;
        self.run(&caller, request, Haste::Prompt, held).await
    }

    /// Executes a transaction on behalf of `caller`.
    pub(super) async fn transact(
        &self,
        caller: &Caller,
        request: etcd::TxnRequest,
        haste: Haste,
    ) -> Result<etcd::TxnResponse, Status> {
        self.run(caller, request, haste, &mut None).await
    }

    async fn run(
        &self,
        caller: &Caller,
        request: etcd::TxnRequest,
        haste: Haste,
        held: &mut Option<Held>,
    ) -> Result<etcd::TxnResponse, Status> {
        self.context.check_quota(limits::txn_cost(&request)).await?;
        check::txn(&request, self.context.limits.txn_ops_max)?;
        if let Some(is_serializable) = check::read_only(&request) {
            let txn = command::txn(request).map_err(rejected)?;
            if !is_serializable {
                self.context.read_barrier().await?;
            }
            return self.answer_read_only_txn(caller, Arc::new(txn), held).await;
        }
        self.context.check_size(&request)?;
        match self.context.propose_with(caller, Message::Txn(request), haste).await? {
            (Answer::Txn(answer), revision) => {
                Ok(convert::txn(self.context.header(revision), answer))
            }
            _ => Err(mismatch()),
        }
    }

    async fn answer_read_only_txn(
        &self,
        caller: &Caller,
        txn: Arc<Txn>,
        held: &mut Option<Held>,
    ) -> Result<etcd::TxnResponse, Status> {
        let wanted = RightsCheck::Txn(Arc::clone(&txn));
        let read = async {
            let reader = self.context.node.reader().clone();
            if is_short_txn(&txn) {
                let answer = off_thread(move || reader.read_txn(&txn)).await?;
                return answer.map_err(|error| status::from_read(&error));
            }
            let mut read = self.context.long_reads.begin().await?;
            let answer = read.piece(move || reader.read_txn(&txn)).await?;
            let (answer, revision) = answer.map_err(|error| status::from_read(&error))?;
            grow(&mut read, &answer)?;
            *held = Some(read.end());
            Ok((answer, revision))
        };
        let (answer, revision) = self.context.auth.checked(caller, &wanted, read).await?;
        self.context.node.counts().read_txn(&answer);
        Ok(convert::txn(self.context.header(revision), answer))
    }

    async fn answer_compact(
        &self,
        request: Request<etcd::CompactionRequest>,
    ) -> Result<etcd::CompactionResponse, Status> {
        let (caller, request) = self.context.accept(request)?;
        let (_, revision) = self.context.propose(&caller, Message::Compact(request)).await?;
        if request.physical {
            self.wait_for_sweep(request.revision).await?;
        }
        Ok(etcd::CompactionResponse { header: Some(self.context.header(revision)) })
    }

    /// Waits while the leader sweeps compacted rows, one command per step.
    async fn wait_for_sweep(&self, compacted: i64) -> Result<(), Status> {
        let reader = self.context.node.reader();
        loop {
            let reached = reader.head().sweep;
            if !reached.is_pending(compacted) {
                return Ok(());
            }
            let step = async {
                while reader.head().sweep == reached {
                    let applied = reader.applied().map_or(0, |id| id.index);
                    reader.wait_applied(applied + 1).await;
                }
            };
            let stalled = |_elapsed| Status::from(Fault::Timeout);
            tokio::time::timeout(SWEEP_STEP_TIMEOUT, step).await.map_err(stalled)?;
        }
    }
}

/// Whether a read touches so few live keys that moving it to another thread would usually cost more
/// than it saves: a single key, or something an index answers (a page of the newest revisions in
/// key order, or a count).
fn is_short(range: &Range) -> bool {
    let is_page = range.count_only || (1..=PAGE_KEYS_MAX).contains(&range.limit);
    range.range_end.is_empty() || is_page && range.revision <= 0 && is_in_key_order(range)
}

/// Whether a read-only transaction looks at few keys.
fn is_short_txn(txn: &Txn) -> bool {
    let mut compared = txn.compare.iter().map(|compare| &compare.range_end);
    let mut operations = txn.success.iter().chain(&txn.failure);
    txn.success.len() + txn.failure.len() <= SHORT_TXN_KEYS_MAX
        && compared.all(bytes::Bytes::is_empty)
        && operations.all(|op| matches!(op, TxnOp::Range(range) if range.range_end.is_empty()))
}

/// Adds everything a transaction found to the memory accounted for `read`.
fn grow(read: &mut LongRead, answer: &TxnResponse) -> Result<(), Status> {
    answer.responses.iter().try_for_each(|(_, response)| match response {
        OpResponse::Range(found) => read.grow(&found.kvs),
        OpResponse::Txn(inner) => grow(read, inner),
        OpResponse::Put(_) | OpResponse::DeleteRange(_) => Ok(()),
    })
}

/// The state machine's form of a range read.
pub(crate) fn validated_range(request: etcd::RangeRequest) -> Result<Range, Status> {
    check::range(&request)?;
    command::range(request).map_err(rejected)
}

/// Reads a range for the server itself; returns the revision of the answer, too. Runs on the
/// calling thread if the read turns out to be short, else where blocking is allowed. Few live keys
/// do not make a read short: there may be many tombstones between them, or many changes since the
/// requested revision.
pub(super) async fn read(context: &Context, range: Range) -> Result<(RangeResponse, i64), Status> {
    match read_briefly(context, &range)? {
        Some(answer) => Ok(answer),
        None => read_off_thread(context, range).await,
    }
}

/// Reads a range where blocking is allowed, so that a long scan does not hold up other calls of
/// this thread.
pub(super) async fn read_off_thread(
    context: &Context,
    range: Range,
) -> Result<(RangeResponse, i64), Status> {
    let reader = context.node.reader().clone();
    let answer = off_thread(move || reader.range(&range)).await?;
    answer.map_err(|error| status::from_read(&error))
}

fn read_briefly(context: &Context, range: &Range) -> Result<Option<(RangeResponse, i64)>, Status> {
    let brief = context.node.reader().range_briefly(range);
    brief.map_err(|error| status::from_read(&error))
}

/// Waits for a turn and reads a range where blocking is allowed. The memory of the answer stays
/// accounted for until the returned [`Held`] is dropped.
async fn read_long(
    context: &Context,
    range: Range,
) -> Result<((RangeResponse, i64), Held), Status> {
    let long_reads = &context.long_reads;
    let mut read =
        if range.count_only { long_reads.begin_piece().await? } else { long_reads.begin().await? };
    let reader = context.node.reader();
    // Counting keys at an older revision walks over all of them, so without a limit they are read
    // in that same walk.
    let is_counted = range.revision <= 0 || range.limit > 0;
    if is_in_key_order(&range) && !range.count_only && is_counted {
        for _ in 0..READS_IN_PIECES_MAX {
            let (pieces, outline) = Pieces::of(reader, range.clone(), &mut read).await?;
            match pieces.rest(outline, &mut read).await {
                Ok(answer) => return Ok((answer, read.end())),
                // A compaction removed the revision between two pieces. The caller asked for the
                // newest one: start again.
                Err(status) if range.revision <= 0 && status.code() == Code::OutOfRange => {
                    read.forget();
                }
                Err(status) => return Err(status),
            }
        }
    }
    let reader = reader.clone();
    let answer = read.piece(move || reader.range(&range)).await?;
    let answer = answer.map_err(|error| status::from_read(&error))?;
    read.grow(&answer.0.kvs)?;
    Ok((answer, read.end()))
}

/// Runs `work` where blocking is allowed. Dropping the future does not stop `work`.
pub(crate) async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Status> {
    tokio::task::spawn_blocking(work).await.map_err(|error| status::internal(&error))
}

/// Keeps the memory of an answer accounted for until the answer is sent ([`crate::http`]).
fn holding<T>(mut response: Response<T>, held: Option<Held>) -> Response<T> {
    if let Some(held) = held {
        response.extensions_mut().insert(Arc::new(held));
    }
    response
}

#[tonic::async_trait]
impl Kv for KvService {
    type RangeStreamStream = RangeStream;

    async fn range(
        &self,
        request: Request<etcd::RangeRequest>,
    ) -> Result<Response<etcd::RangeResponse>, Status> {
        let mut held = None;
        let answer = self.answer_range(request, &mut held);
        let response = self.context.metrics.call(Method::Range, answer).await?;
        Ok(holding(response, held))
    }

    async fn range_stream(
        &self,
        request: Request<etcd::RangeRequest>,
    ) -> Result<Response<RangeStream>, Status> {
        self.context.metrics.received(Method::RangeStream, 1);
        let answer = range_stream::open(&self.context, request);
        self.context.metrics.stream(Method::RangeStream, answer).await
    }

    async fn put(
        &self,
        request: Request<etcd::PutRequest>,
    ) -> Result<Response<etcd::PutResponse>, Status> {
        self.context.metrics.call(Method::Put, self.answer_put(request)).await
    }

    async fn delete_range(
        &self,
        request: Request<etcd::DeleteRangeRequest>,
    ) -> Result<Response<etcd::DeleteRangeResponse>, Status> {
        self.context.metrics.call(Method::DeleteRange, self.answer_delete_range(request)).await
    }

    async fn txn(
        &self,
        request: Request<etcd::TxnRequest>,
    ) -> Result<Response<etcd::TxnResponse>, Status> {
        let mut held = None;
        let answer = self.answer_txn(request, &mut held);
        let response = self.context.metrics.call(Method::Txn, answer).await?;
        Ok(holding(response, held))
    }

    async fn compact(
        &self,
        request: Request<etcd::CompactionRequest>,
    ) -> Result<Response<etcd::CompactionResponse>, Status> {
        self.context.metrics.call(Method::Compact, self.answer_compact(request)).await
    }
}
