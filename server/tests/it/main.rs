//! In-process clusters: real RocksDB, real raft logs, real gRPC between members on loopback.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod api_http;
mod api_kv;
mod api_lease;
mod api_maintenance;
mod cluster;
mod lease;
mod node;
mod peer;
mod snapshot;
mod support;
mod watch_rules;
mod watch_server;
mod watch_support;
