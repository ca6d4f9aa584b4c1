//! The state machine as raft and readers use it, on both engines.

mod apply;
mod harness;
