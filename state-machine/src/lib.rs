//! The rules of Conclave, as pure functions of the log: no clock, randomness, I/O or async.

pub mod command;
pub mod expiry;
pub mod read;
pub mod response;
pub mod watcher_set;
