//! What tests of several crates start: servers of others, certificates, a name server, all on free
//! ports of the loopback address. Uses none of our crates, and panics where a test would.
//!
//! | module | what |
//! |---|---|
//! | [`port`] | free ports |
//! | [`process`] | programs that are started, listened to and stopped |
//! | [`server`] | etcd, or whatever stands for it, as processes |
//! | [`authority`] | who signs certificates, and what it signs |
//! | [`name_server`] | SRV records |
#![expect(clippy::unwrap_used, reason = "a test may panic")]

pub mod authority;
pub mod name_server;
pub mod port;
pub mod process;
pub mod server;
