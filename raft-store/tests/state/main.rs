//! The state machine as raft and readers use it, on both engines.
#![expect(clippy::unwrap_used, reason = "a failing test is to panic")]

mod apply;
mod backup;
mod bolt_file;
mod brief;
mod counts;
mod engines;
mod etcd;
mod export;
mod gaps;
mod harness;
mod readers;
mod snapshot;
mod suite;
