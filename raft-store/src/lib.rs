//! Everything durable: the raft log, the state in RocksDB, apply and snapshots.

pub mod apply;
pub mod codec;
pub mod command;
mod counts;
mod directory;
pub mod engine;
mod hash;
pub mod log;
mod memory;
pub mod reader;
mod rocks;
mod row;
pub mod sink;
pub mod snapshot;
pub mod store;
pub mod types;

pub use apply::{StateMachine, StateSnapshot};
pub use engine::EngineKind;
pub use reader::{EventSpan, HashKv, Reader, Sizes};
pub use rocks::RocksOptions;
pub use row::Identity;
pub use sink::{AppliedEntry, ApplySink};
pub use snapshot::{SnapshotContent, SnapshotFile, SnapshotSink, SnapshotSource};
pub use store::{OpenError, ReadError, StateStore, StoreOptions};
