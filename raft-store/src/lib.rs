//! Everything durable: the raft log, the state in RocksDB, apply and snapshots.
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
//! | [`store`] | opening the state; what its writer and its readers share |
//! | [`engine`], `rocks`, `memory` | rows on disk (RocksDB) or in memory behind one trait |
//! | `directory`, `row` | which database is the live one; the rows that raft keeps in it |
//! | [`apply`], [`sink`], [`report`] | committed entries become rows; who hears of it, and of its cost |
//! | [`reader`], `hash` | reads by revision while entries are applied; sizes, flush, the hash that members compare |
//! | `counts`, `row_cache` | what saves looking at rows: counts of keys, and rows used last |
//! | [`snapshot`] | sending, receiving and installing a state as files |
//! | [`backup`] | a state as one file, and a new member made of one |
//! | [`command`], [`codec`], [`types`] | requests, raft's values and their messages |

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
