//! In-process clusters: real RocksDB, real raft logs, real gRPC between members on loopback.

mod cluster;
mod node;
