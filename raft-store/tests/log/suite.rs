//! openraft's storage suite on a real log in a directory, with the least state machine that it needs.

use std::io;
use std::sync::Arc;

use conclave_raft_store::log::{LogOptions, LogStore};
use conclave_raft_store::types::{
    Entry, EntryPayload, LogId, SnapshotMeta, StoredMembership, TypeConfig,
};
use futures::{Stream, StreamExt};
use openraft::storage::EntryResponder;
use openraft::storage::{RaftSnapshotBuilder, RaftStateMachine};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::{OptionalSend, StorageError};
use parking_lot::Mutex;

type Snapshot = openraft::type_config::alias::SnapshotOf<TypeConfig, ()>;

#[derive(Default)]
struct Applied {
    last: Option<LogId>,
    membership: StoredMembership,
    snapshot: Option<SnapshotMeta>,
}

#[derive(Clone, Default)]
struct Machine(Arc<Mutex<Applied>>);

impl Applied {
    fn apply(&mut self, entry: &Entry) {
        self.last = Some(entry.log_id);
        if let EntryPayload::Membership(membership) = &entry.payload {
            self.membership = StoredMembership::new(Some(entry.log_id), membership.clone());
        }
    }
}

impl RaftSnapshotBuilder<TypeConfig> for Machine {
    type SnapshotData = ();

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let mut applied = self.0.lock();
        let meta =
            SnapshotMeta { last_log_id: applied.last, last_membership: applied.membership.clone() };
        applied.snapshot = Some(meta.clone());
        Ok(Snapshot { meta, snapshot: () })
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = ();
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let applied = self.0.lock();
        Ok((applied.last, applied.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        while let Some(item) = entries.next().await {
            let (entry, responder) = item?;
            self.0.lock().apply(&entry);
            if let Some(responder) = responder {
                responder.send(conclave_raft_store::types::Nothing);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, (): ()) -> io::Result<()> {
        let mut applied = self.0.lock();
        applied.last = meta.last_log_id;
        applied.membership = meta.last_membership.clone();
        applied.snapshot = Some(meta.clone());
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        Ok(self.0.lock().snapshot.clone().map(|meta| Snapshot { meta, snapshot: () }))
    }
}

struct Builder {
    tail_cache_bytes: usize,
}

impl StoreBuilder<TypeConfig, LogStore, Machine, tempfile::TempDir> for Builder {
    async fn build(
        &self,
    ) -> Result<(tempfile::TempDir, LogStore, Machine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().expect("a new directory");
        let options = LogOptions {
            segment_bytes: 16 * 1024,
            tail_cache_bytes: self.tail_cache_bytes,
            ..LogOptions::new(1)
        };
        let log = LogStore::open(dir.path(), options).expect("an empty directory");
        Ok((dir, log, Machine::default()))
    }
}

fn run(tail_cache_bytes: usize) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let result = runtime.block_on(Suite::test_all(Builder { tail_cache_bytes }));
    result.expect("the suite passes");
}

#[test]
fn the_log_passes_openrafts_suite() {
    run(1 << 20);
}

#[test]
fn the_log_passes_openrafts_suite_when_every_read_is_from_files() {
    run(0);
}
