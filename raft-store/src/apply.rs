//! Applying committed entries: the state machine as raft sees it.
//!
//! Entries are taken in pieces. One piece is one overlay, one write batch (data, counters, applied
//! log id, membership) and one publication. So a long replay after a restart neither fills memory
//! nor delays heartbeats, and a piece whose cost may grow with the number of keys is applied on
//! another thread. Any error is final: raft stops, and the process with it.
//!
//! | module | what |
//! |---|---|
//! | `piece` | entries that are applied together |
//! | `writer` | applies a piece |

mod piece;
mod writer;

use std::io;
use std::sync::Arc;
use std::time::Instant;

use conclave_state_machine::machine::Machine;
use futures::{Stream, StreamExt};
use openraft::entry::RaftEntry;
use openraft::storage::{EntryResponder, RaftStateMachine, Snapshot};
use openraft::{OptionalSend, RaftSnapshotBuilder};

use self::piece::Piece;
use self::writer::Writer;
use crate::engine::halt_to_io;
use crate::sink::ApplySink;
use crate::snapshot::{self, SnapshotContent, SnapshotSource, StagedSnapshot};
use crate::store::{Shared, Visible, blocking};
use crate::types::{
    CommittedLeaderId, LogId, MemberNode, Nothing, SnapshotMeta, StoredMembership, TypeConfig,
};

/// A snapshot with its metadata.
pub type StateSnapshot = Snapshot<CommittedLeaderId, u64, MemberNode, SnapshotContent>;

/// The state machine of one member, owned by raft.
pub struct StateMachine {
    shared: Arc<Shared>,
    sink: Arc<dyn ApplySink>,
    /// `None` while it works on another thread.
    writer: Option<Box<Writer>>,
}

impl StateMachine {
    pub(crate) fn new(shared: Arc<Shared>, machine: Machine, sink: Box<dyn ApplySink>) -> Self {
        let sink = Arc::from(sink);
        let writer = Writer::new(Arc::clone(&shared), machine, Arc::clone(&sink));
        Self { shared, sink, writer: Some(Box::new(writer)) }
    }

    /// Applies a piece; one that may take long runs where it does not delay heartbeats.
    async fn apply_piece(&mut self, piece: Piece) -> io::Result<()> {
        if !piece.is_long {
            return self.writer.as_mut().ok_or_else(unfinished)?.apply(piece);
        }
        let mut writer = self.writer.take().ok_or_else(unfinished)?;
        let work = move || Ok((writer.apply(piece), writer));
        let (applied, writer) = blocking(self.shared.engine, work).await?;
        self.writer = Some(writer);
        applied
    }

    /// Stages a snapshot in either form.
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

/// The error after the runtime was shut down while the writer was on another thread.
fn unfinished() -> io::Error {
    io::Error::other("entries are still being applied")
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
        // Applying may block this worker thread, so a task that was just woken on it goes first.
        // Tokio cannot move that task (often raft's core) to another thread.
        tokio::task::yield_now().await;
        let applied = self.shared.published().applied;
        let mut piece = Piece::default();
        while let Some(entry) = entries.next().await {
            let (entry, waiting) = entry?;
            if applied.as_ref().is_some_and(|applied| entry.index() <= applied.index) {
                // Applying it twice would make replicas diverge; by log matching it is the same
                // entry.
                tracing::warn!(log_id = %entry.log_id, "skipping an entry that is applied already");
                waiting.into_iter().for_each(|waiting| waiting.send(Nothing));
                continue;
            }
            piece.push((entry, waiting));
            if piece.is_full() {
                self.apply_piece(std::mem::take(&mut piece)).await?;
                tokio::task::yield_now().await;
            }
        }
        self.apply_piece(piece).await
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
        let writer = self.writer.as_mut().ok_or_else(unfinished)?;
        self.shared.directory.point_to(after.rows.dir())?;
        before.rows.dir().discard();
        writer.reset(machine);
        let (head, membership) = (Arc::clone(&after.head), Arc::clone(&after.membership));
        self.sink.installing();
        self.shared.publish(after, |before| *before = counts);
        // Closing and deleting the old database takes a while, and a reader may still be using it.
        drop(tokio::task::spawn_blocking(move || drop(before)));
        self.sink.membership(&membership);
        self.sink.installed(head);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<StateSnapshot>> {
        // Nothing is applied meanwhile, because raft calls this on the task that applies.
        let meta = snapshot::meta_of(&self.shared.published());
        if meta.last_log_id.is_none() {
            return Ok(None);
        }
        let shared = Arc::clone(&self.shared);
        let source = blocking(self.shared.engine, move || SnapshotSource::create(&shared)).await?;
        Ok(Some(Snapshot { meta, snapshot: SnapshotContent::Source(source) }))
    }
}

/// Builds a snapshot, which is just a flush.
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
