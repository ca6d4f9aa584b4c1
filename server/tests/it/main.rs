//! In-process clusters: real RocksDB, real raft logs, real gRPC between members on loopback.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod api_kv;
mod cluster;
mod node;
mod support;
mod watch_rules;
mod watch_support;
