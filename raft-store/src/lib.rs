//! Everything durable: the raft log, the state in RocksDB, apply and snapshots.

pub mod codec;
pub mod types;
