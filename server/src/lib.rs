//! The server: etcd's gRPC services over a raft node, the HTTP answers beside them, and their wiring.
//!
//! | module | what |
//! |---|---|
//! | `config` | flags and variables -> [`config::Settings`] |
//! | `logging` | log lines in etcd's shape |
//! | `status` | error texts and gRPC codes, the only place that knows them |
//! | `watch` | who hears of which event |

pub mod api;
pub mod config;
pub mod logging;
pub mod status;
pub mod version;
pub mod watch;
