//! openraft's storage suite on what a member really runs: the log in files and the state beside it.

use conclave_raft_store::log::{LogOptions, LogStore};
use conclave_raft_store::types::TypeConfig;
use conclave_raft_store::{EngineKind, StateMachine};
use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};

use crate::harness::{ENGINES, State};

struct Builder {
    engine: EngineKind,
}

impl StoreBuilder<TypeConfig, LogStore, StateMachine, tempfile::TempDir> for Builder {
    async fn build(
        &self,
    ) -> Result<(tempfile::TempDir, LogStore, StateMachine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let options = LogOptions { segment_bytes: 16 * 1024, ..LogOptions::new(1) };
        let log = LogStore::open(&dir.path().join("log"), options).unwrap();
        let state = State::open(&dir.path().join("state"), self.engine);
        Ok((dir, log, state.machine))
    }
}

fn run(engine: EngineKind) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(Suite::test_all(Builder { engine })).unwrap();
}

#[test]
fn log_and_state_in_memory_pass_openrafts_suite() {
    run(ENGINES[0]);
}

#[test]
fn log_and_state_on_disk_pass_openrafts_suite() {
    run(ENGINES[1]);
}
