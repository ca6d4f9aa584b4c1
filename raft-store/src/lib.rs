//! Everything durable: the raft log, the state in RocksDB, applying entries, and snapshots.
//!
//! ```text
//!  raft ──► log (fsync) ──► apply ──► state machine's overlay ──► one batch ──► engine (no log)
//!                             │                                                   ▲
//!                             ├──► published head ──► reader ─────────────────────┘
//!                             └──► sink: answers, watch, leases
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`log`] | raft's log in segment files: the only write-ahead log |
//! | [`store`] | opens the state; what its writer and its readers share |
//! | [`engine`], `rocks`, `memory` | rows on disk (RocksDB) or in memory behind one trait |
//! | `directory`, `row` | which database is the live one; the rows that raft stores in it |
//! | [`apply`], [`sink`], [`report`] | turns committed entries into rows; who is told about them, and what they cost |
//! | [`reader`], `hash` | reads by revision while entries are applied; sizes, flush, the hash that members compare |
//! | `counts`, `row_cache` | caches that save reading rows: key counts, and recently used rows |
//! | [`snapshot`] | sends, receives and installs a state as files |
//! | [`backup`] | writes a state as one file, and makes a new member from one |
//! | [`command`], [`codec`], [`types`] | conversions of requests and of raft's values; raft's types |

pub mod apply;
pub mod backup;
pub mod codec;
pub mod command;
mod counts;
mod directory;
pub mod engine;
mod hash;
pub mod log;
mod memory;
pub mod reader;
pub mod report;
mod rocks;
mod row;
mod row_cache;
pub mod sink;
pub mod snapshot;
pub mod store;
pub mod types;

pub use apply::{StateMachine, StateSnapshot};
pub use engine::EngineKind;
pub use reader::{EventSpan, HashKv, Reader, Sizes};
pub use report::{Operation, Operations, Report};
pub use rocks::RocksOptions;
pub use row::Identity;
pub use sink::{AppliedEntry, ApplySink};
pub use snapshot::{SnapshotContent, SnapshotFile, SnapshotSink, SnapshotSource, StagedFile};
pub use store::{OpenError, ReadError, StateStore, StoreOptions};
