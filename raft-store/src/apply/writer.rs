//! Applies pieces of the log: rows, answers and events.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use conclave_proto::internal;
use conclave_state_machine::events::Wanted;
use conclave_state_machine::machine::{Machine, Position};
use conclave_state_machine::members;
use conclave_state_machine::overlay::Overlay;
use conclave_state_machine::response::{Applied, Halt, Rejection};

use super::piece::{Piece, Waiting, Work};
use crate::command;
use crate::counts;
use crate::engine::{RowWrite, Rows, halt_to_io};
use crate::report::{Operation, Operations, Report};
use crate::row;
use crate::row_cache::{CachedRows, RowCache, RowCacheBytes};
use crate::sink::{AppliedEntry, ApplySink};
use crate::store::{Published, Shared};
use crate::types::{LogId, Nothing, StoredMembership};

/// Most bytes of recently used rows to cache, by kind.
const ROW_CACHE_BYTES: RowCacheBytes =
    RowCacheBytes { keys: 32 << 20, leases: 4 << 20, fronts: 4 << 20 };

/// Most bytes of previous key-values in the events of one piece; for further events, watchers read
/// them from the history.
const PREV_BYTES_MAX: usize = 8 << 20;

/// The only writer of the rows.
pub(super) struct Writer {
    shared: Arc<Shared>,
    machine: Machine,
    cache: RowCache,
    sink: Arc<dyn ApplySink>,
}

/// What one piece changed.
struct Outcome {
    applied: LogId,
    membership: Option<StoredMembership>,
    entries: Vec<AppliedEntry>,
    waiting: Vec<Waiting>,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, machine: Machine, sink: Arc<dyn ApplySink>) -> Self {
        Self { shared, machine, cache: RowCache::new(ROW_CACHE_BYTES), sink }
    }

    /// Continues with another state's rows.
    pub(super) fn reset(&mut self, machine: Machine) {
        self.machine = machine;
        self.cache.clear();
    }

    /// Applies a piece and publishes it to readers. Blocks.
    ///
    /// # Errors
    /// The reason why the member must stop.
    pub(super) fn apply(&mut self, piece: Piece) -> io::Result<()> {
        let Piece { applied, work, waiting, .. } = piece;
        let Some(applied) = applied else { return Ok(()) };
        let began = Instant::now();
        let shared = Arc::clone(&self.shared);
        let _writing = shared.writing.lock();
        let before = self.shared.published();
        let cached = CachedRows::new(&before.rows, &mut self.cache);
        let mut rows = Overlay::new(&cached);
        let mut entries = Vec::with_capacity(work.len());
        let mut membership: Option<StoredMembership> = None;
        let mut walk = Walk::default();
        for (log_id, work) in work {
            match work {
                Work::Batch(batch) => {
                    walk.wanted.answers = self.sink.is_awaited(batch.proposer, batch.sequence);
                    let applied = walk.apply(&mut self.machine, &mut rows, log_id, batch);
                    entries.push(applied.map_err(|halt| stopped(&self.shared, log_id, halt))?);
                }
                Work::Membership(after) => {
                    let last = membership.as_ref().unwrap_or(&before.membership);
                    members::reconfigure(&mut rows, &member_ids(last), &member_ids(&after));
                    membership = Some(after);
                }
            }
        }
        let outcome = Outcome { applied, membership, entries, waiting };
        self.machine.finish(&mut rows);
        let mut writes: Vec<RowWrite> = Vec::with_capacity(rows.len());
        writes.extend(rows.into_writes());
        let write_began = Instant::now();
        self.write(&before, writes, &outcome)?;
        let write = write_began.elapsed();
        self.publish(before, outcome).map_err(|halt| stopped(&self.shared, applied, halt))?;
        self.shared.outgrow_partial(applied.index);
        self.sink.timed(&Report {
            whole: began.elapsed(),
            write,
            operations: walk.operations,
            swept: self.machine.take_swept(),
            has_dead_rows: self.machine.head().has_dead_rows(),
        });
        Ok(())
    }

    fn write(
        &mut self,
        before: &Published,
        writes: Vec<RowWrite>,
        outcome: &Outcome,
    ) -> io::Result<()> {
        // Before the deletions of a compaction are written, readers must be able to tell.
        self.shared.raise_readable_since(self.machine.head().compacted);
        let membership = outcome.membership.as_ref().map(row::membership_row);
        let raft = [row::applied_row(&outcome.applied)].into_iter().chain(membership);
        let cache = &mut self.cache;
        let writes = writes.into_iter().inspect(|write| cache.note(write));
        before.rows.write(&mut writes.chain(raft))
    }

    fn publish(&self, before: Published, outcome: Outcome) -> Result<(), Halt> {
        let head = Arc::new(self.machine.head().clone());
        let Outcome { applied, membership, entries, waiting } = outcome;
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
            self.cut_counts(&rows, head.revision, key)?;
        }
        Ok(())
    }

    /// Splits the bucket of `key` until all parts are small enough.
    fn cut_counts(&self, rows: &Rows, revision: i64, key: Bytes) -> Result<(), Halt> {
        let mut part = Some(key);
        while let Some(key) = part {
            let overfull = self.shared.look(|counts, _| counts.overfull(&key)).1;
            let Some(bucket) = overfull else { break };
            let first_rows = counts::first_rows(rows, revision, &bucket)?;
            part = self.shared.cut(&bucket.0, first_rows);
        }
        Ok(())
    }
}

fn stopped(shared: &Shared, log_id: LogId, halt: Halt) -> io::Error {
    let complaint = shared.complaint(&halt);
    let kind = halt_to_io(halt).kind();
    io::Error::new(kind, format!("applying log entry {log_id}: {complaint}"))
}

/// State while the commands of a piece are applied: counts by kind, and how much of their outcomes
/// is still wanted.
struct Walk {
    operations: Operations,
    wanted: Wanted,
}

impl Default for Walk {
    fn default() -> Self {
        let wanted = Wanted { answers: true, prev_bytes: PREV_BYTES_MAX };
        Self { operations: Operations::default(), wanted }
    }
}

impl Walk {
    /// Applies all commands of one entry.
    fn apply(
        &mut self,
        machine: &mut Machine,
        rows: &mut Overlay<'_, CachedRows<'_, Rows>>,
        log_id: LogId,
        batch: internal::Batch,
    ) -> Result<AppliedEntry, Halt> {
        let position = Position {
            term: log_id.leader_id.term,
            index: log_id.index,
            unix_ms: batch.proposed_unix_ms,
        };
        let mut results = Vec::with_capacity(batch.commands.len());
        for mut message in batch.commands {
            let caller = command::auth::caller(message.caller.take());
            let (operation, applied) = match command::command(message) {
                Ok(command) => {
                    let operation = Operation::of(&command);
                    let wanted = &mut self.wanted;
                    (operation, machine.apply_for(rows, position, (&caller, &command), wanted)?)
                }
                Err(rejection) => (Operation::Other, rejected(machine, rejection)),
            };
            self.operations.count(operation, applied.outcome.is_ok());
            results.push(applied);
        }
        let (proposer, sequence) = (batch.proposer, batch.sequence);
        Ok(AppliedEntry { log_id, proposer, sequence, results })
    }
}

fn rejected(machine: &Machine, rejection: Rejection) -> Applied {
    Applied {
        outcome: Err(rejection),
        revision: machine.head().revision,
        events: Vec::new(),
        lack_prev: false,
        leases: Vec::new(),
    }
}

fn member_ids(membership: &StoredMembership) -> BTreeSet<u64> {
    membership.membership().nodes().map(|(id, _)| *id).collect()
}
