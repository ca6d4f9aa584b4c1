//! Applying committed entries: the state machine as raft sees it.
//!
//! Entries are taken in pieces. One piece is one overlay, one write batch (data, counters, applied
//! log id, membership) and one publication; so a long replay after a restart neither fills memory nor
//! keeps the worker thread from heartbeats. Any error is final: raft stops, and the process with it.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use conclave_proto::internal;
use conclave_state_machine::machine::{Machine, Position};
use conclave_state_machine::members;
use conclave_state_machine::overlay::Overlay;
use conclave_state_machine::response::{Applied, Halt, Rejection};
use futures::{Stream, StreamExt};
use openraft::entry::RaftEntry;
use openraft::storage::{ApplyResponder, EntryResponder, RaftStateMachine, Snapshot};
use openraft::{OptionalSend, RaftSnapshotBuilder};
use prost::Message;

use crate::command;
use crate::counts;
use crate::engine::{RowWrite, Rows, halt_to_io};
use crate::report::{Operation, Operations, Report};
use crate::row;
use crate::row_cache::{CachedRows, RowCache};
use crate::sink::{AppliedEntry, ApplySink};
use crate::snapshot::{self, SnapshotContent, SnapshotSource, StagedSnapshot};
use crate::store::{Published, Shared, Visible, blocking};
use crate::types::{
    Batch, CommittedLeaderId, EntryPayload, LogId, MemberNode, Nothing, SnapshotMeta,
    StoredMembership, TypeConfig,
};

/// Bounds of one piece. Larger ones write no faster, and a piece keeps a worker thread busy for
/// about 10 us a command.
const PIECE_COMMANDS_MAX: usize = 1_024;
const PIECE_BYTES_MAX: usize = 4 << 20;

/// Rows of recently used keys that apply keeps at hand.
const ROW_CACHE_BYTES: usize = 32 << 20;

/// A snapshot with its description.
pub type StateSnapshot = Snapshot<CommittedLeaderId, u64, MemberNode, SnapshotContent>;

/// The state machine of one member, owned by raft.
pub struct StateMachine {
    shared: Arc<Shared>,
    machine: Machine,
    cache: RowCache,
    sink: Arc<dyn ApplySink>,
}

type Waiting = ApplyResponder<TypeConfig>;

/// What one piece changes.
struct Piece {
    applied: LogId,
    membership: Option<StoredMembership>,
    entries: Vec<AppliedEntry>,
    waiting: Vec<Waiting>,
}

impl StateMachine {
    pub(crate) fn new(shared: Arc<Shared>, machine: Machine, sink: Box<dyn ApplySink>) -> Self {
        let cache = RowCache::new(ROW_CACHE_BYTES);
        Self { shared, machine, cache, sink: Arc::from(sink) }
    }

    fn apply_piece(&mut self, collected: Collecting) -> io::Result<()> {
        let Collecting { applied, work, waiting, .. } = collected;
        let Some(applied) = applied else { return Ok(()) };
        let began = Instant::now();
        let before = self.shared.published();
        let cached = CachedRows::new(&before.rows, &mut self.cache);
        let mut rows = Overlay::new(&cached);
        let mut entries = Vec::with_capacity(work.len());
        let mut membership: Option<StoredMembership> = None;
        let mut operations = Operations::default();
        for (log_id, work) in work {
            match work {
                Work::Batch(batch) => {
                    let mut batches = Batches { machine: &mut self.machine, operations };
                    let applied = batches.apply(&mut rows, log_id, batch);
                    entries.push(applied.map_err(|halt| stopped(&self.shared, log_id, halt))?);
                    operations = batches.operations;
                }
                Work::Membership(after) => {
                    let last = membership.as_ref().unwrap_or(&before.membership);
                    members::reconfigure(&mut rows, &member_ids(last), &member_ids(&after));
                    membership = Some(after);
                }
            }
        }
        let piece = Piece { applied, membership, entries, waiting };
        self.machine.finish(&mut rows);
        let mut writes: Vec<RowWrite> = Vec::with_capacity(rows.len());
        writes.extend(rows.into_writes());
        let write_began = Instant::now();
        self.write(&before, writes, &piece)?;
        let write = write_began.elapsed();
        self.publish(before, piece).map_err(|halt| stopped(&self.shared, applied, halt))?;
        self.shared.outgrow_partial(applied.index);
        self.sink.timed(&Report {
            whole: began.elapsed(),
            write,
            operations,
            swept: self.machine.take_swept(),
            has_dead_rows: self.machine.head().has_dead_rows(),
        });
        Ok(())
    }

    fn write(
        &mut self,
        before: &Published,
        writes: Vec<RowWrite>,
        piece: &Piece,
    ) -> io::Result<()> {
        // A reader that runs into the deletions of a compaction must know why.
        self.shared.raise_readable_since(self.machine.head().compacted);
        let membership = piece.membership.as_ref().map(row::membership_row);
        let raft = [row::applied_row(&piece.applied)].into_iter().chain(membership);
        let cache = &mut self.cache;
        let writes = writes.into_iter().inspect(|write| cache.note(write));
        before.rows.write(&mut writes.chain(raft))
    }

    fn publish(&self, before: Published, piece: Piece) -> Result<(), Halt> {
        let head = Arc::new(self.machine.head().clone());
        let Piece { applied, membership, entries, waiting } = piece;
        let changed = membership.map(Arc::new);
        let rows = before.rows.clone();
        let published = Published {
            head: Arc::clone(&head),
            applied: Some(applied),
            membership: changed.clone().unwrap_or(before.membership),
            readable_since: head.compacted,
            rows: before.rows,
        };
        self.sink.applying(&entries);
        let outgrown = self.shared.publish(published, |counts| counts.advance(&entries, &head));
        for responder in waiting {
            responder.send(Nothing);
        }
        if let Some(membership) = changed {
            self.sink.membership(&membership);
        }
        self.sink.applied(entries, Arc::clone(&head));
        for key in outgrown {
            self.split_counts(&rows, head.revision, &key)?;
        }
        Ok(())
    }

    /// Halves the bucket of `key` until it is small enough.
    fn split_counts(&self, rows: &Rows, revision: i64, key: &[u8]) -> Result<(), Halt> {
        let overfull = || self.shared.look(|counts, _| counts.overfull(key)).1;
        while let Some(bucket) = overfull() {
            let Some(cut) = counts::cut(rows, revision, bucket)? else { break };
            self.shared.split(cut);
        }
        Ok(())
    }

    /// Stages a snapshot, whatever form it has.
    async fn stage(
        &self,
        meta: &SnapshotMeta,
        content: SnapshotContent,
    ) -> io::Result<StagedSnapshot> {
        match content {
            SnapshotContent::Staged(staged) => Ok(staged),
            SnapshotContent::Source(source) => {
                let (shared, meta) = (Arc::clone(&self.shared), meta.clone());
                blocking(self.shared.engine, move || StagedSnapshot::copy(&shared, &source, &meta))
                    .await
            }
            SnapshotContent::Flushed => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a snapshot without files cannot be installed",
            )),
        }
    }
}

fn stopped(shared: &Shared, log_id: LogId, halt: Halt) -> io::Error {
    let complaint = shared.complaint(&halt);
    let kind = halt_to_io(halt).kind();
    io::Error::new(kind, format!("applying log entry {log_id}: {complaint}"))
}

/// Applies entries and counts their commands.
struct Batches<'a> {
    machine: &'a mut Machine,
    operations: Operations,
}

impl Batches<'_> {
    /// Applies all commands of one entry.
    fn apply(
        &mut self,
        rows: &mut Overlay<'_, CachedRows<'_>>,
        log_id: LogId,
        batch: internal::Batch,
    ) -> Result<AppliedEntry, Halt> {
        let position = Position { term: log_id.leader_id.term, index: log_id.index };
        let mut results = Vec::with_capacity(batch.commands.len());
        for mut message in batch.commands {
            let caller = command::auth::caller(message.caller.take());
            let (operation, applied) = match command::command(message) {
                Ok(command) => {
                    let operation = Operation::of(&command);
                    (operation, self.machine.apply(rows, position, &caller, &command)?)
                }
                Err(rejection) => (Operation::Other, rejected(self.machine, rejection)),
            };
            self.operations.count(operation, applied.outcome.is_ok());
            results.push(applied);
        }
        let (proposer, sequence) = (batch.proposer, batch.sequence);
        Ok(AppliedEntry { log_id, proposer, sequence, results })
    }
}

fn rejected(machine: &Machine, rejection: Rejection) -> Applied {
    let revision = machine.head().revision;
    Applied { outcome: Err(rejection), revision, events: Vec::new(), leases: Vec::new() }
}

fn member_ids(membership: &StoredMembership) -> BTreeSet<u64> {
    membership.membership().nodes().map(|(id, _)| *id).collect()
}

/// Content of an entry that changes something.
enum Work {
    Batch(internal::Batch),
    Membership(StoredMembership),
}

/// Entries of one piece while they are collected.
#[derive(Default)]
struct Collecting {
    applied: Option<LogId>,
    work: Vec<(LogId, Work)>,
    waiting: Vec<Waiting>,
    commands: usize,
    bytes: usize,
}

impl Collecting {
    fn push(&mut self, (entry, waiting): EntryResponder<TypeConfig>) {
        let log_id = entry.log_id;
        match entry.payload {
            EntryPayload::Blank => {}
            EntryPayload::Normal(Batch { bytes }) => {
                self.bytes += bytes.len();
                let batch = decode(log_id, bytes);
                self.commands += batch.commands.len();
                self.work.push((log_id, Work::Batch(batch)));
            }
            EntryPayload::Membership(membership) => {
                let membership = StoredMembership::new(Some(log_id), membership);
                self.work.push((log_id, Work::Membership(membership)));
            }
        }
        self.applied = Some(log_id);
        self.waiting.extend(waiting);
    }

    fn is_full(&self) -> bool {
        self.commands >= PIECE_COMMANDS_MAX || self.bytes >= PIECE_BYTES_MAX
    }
}

/// Bytes that are no batch change nothing, on every replica alike.
fn decode(log_id: LogId, bytes: Bytes) -> internal::Batch {
    internal::Batch::decode(bytes).unwrap_or_else(|error| {
        tracing::error!(index = log_id.index, %error, "a log entry is no batch");
        internal::Batch::default()
    })
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotContent;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let published = self.shared.published();
        Ok((published.applied, (*published.membership).clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        // Applying may block this worker thread; whoever was woken on it just now goes first. Tokio
        // cannot give that task (often raft's core) to another thread.
        tokio::task::yield_now().await;
        let applied = self.shared.published().applied;
        let mut piece = Collecting::default();
        while let Some(entry) = entries.next().await {
            let (entry, waiting) = entry?;
            if applied.as_ref().is_some_and(|applied| entry.index() <= applied.index) {
                // Applying twice would diverge; by log matching it is the same entry.
                tracing::warn!(log_id = %entry.log_id, "skipping an entry that is applied already");
                waiting.into_iter().for_each(|waiting| waiting.send(Nothing));
                continue;
            }
            piece.push((entry, waiting));
            if piece.is_full() {
                self.apply_piece(std::mem::take(&mut piece))?;
                tokio::task::yield_now().await;
            }
        }
        self.apply_piece(piece)
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        SnapshotBuilder { shared: Arc::clone(&self.shared), sink: Arc::clone(&self.sink) }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        content: SnapshotContent,
    ) -> io::Result<()> {
        let staged = self.stage(meta, content).await?;
        let before = self.shared.published();
        if staged.meta() != *meta || meta.last_log_id < before.applied {
            let text =
                format!("a snapshot to {} over {}", staged.meta(), snapshot::meta_of(&before));
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let Visible { published: after, counts } = staged.visible;
        let machine = Machine::load(&after.rows).map_err(halt_to_io)?;
        self.shared.directory.point_to(after.rows.dir())?;
        after.rows.dir().keep();
        before.rows.dir().discard();
        self.machine = machine;
        self.cache.clear();
        let (head, membership) = (Arc::clone(&after.head), Arc::clone(&after.membership));
        self.sink.installing();
        self.shared.publish(after, |before| *before = counts);
        // Closing and deleting the old database takes a while; its last reader may still be at it.
        drop(tokio::task::spawn_blocking(move || drop(before)));
        self.sink.membership(&membership);
        self.sink.installed(head);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<StateSnapshot>> {
        // Nothing is applied meanwhile: raft calls this on the task that applies.
        let meta = snapshot::meta_of(&self.shared.published());
        if meta.last_log_id.is_none() {
            return Ok(None);
        }
        let shared = Arc::clone(&self.shared);
        let source = blocking(self.shared.engine, move || SnapshotSource::create(&shared)).await?;
        Ok(Some(Snapshot { meta, snapshot: SnapshotContent::Source(source) }))
    }
}

/// Builds a snapshot, which is a flush.
pub struct SnapshotBuilder {
    shared: Arc<Shared>,
    sink: Arc<dyn ApplySink>,
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = SnapshotContent;

    async fn build_snapshot(&mut self) -> io::Result<StateSnapshot> {
        let shared = Arc::clone(&self.shared);
        let began = Instant::now();
        let meta = blocking(self.shared.engine, move || snapshot::flush(&shared)).await?;
        self.sink.flushed(began.elapsed());
        Ok(Snapshot { meta, snapshot: SnapshotContent::Flushed })
    }
}
