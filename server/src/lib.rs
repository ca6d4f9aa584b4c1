//! The server: etcd's gRPC services over a raft node, the HTTP answers beside them, and their wiring.
//!
//! | module | what |
//! |---|---|
//! | `config` | flags and variables -> [`config::Settings`] |
//! | `node` | one member: raft, state, proposals, reads, leases behind one handle |
//! | `raft` | the network between members, bootstrap, log compaction |
//! | `propose` | commands -> log entries -> answers |
//! | `read_index` | linearizable reads by shared confirmations |
//! | `lessor` | lease deadlines and keep-alives |
//! | `runtime`, `shutdown` | raft's own threads; leaving in order |
//! | `logging` | log lines in etcd's shape |
//! | `status` | error texts and gRPC codes, the only place that knows them |
//! | `watch` | who hears of which event |

pub mod api;
pub mod config;
pub mod lessor;
pub mod logging;
pub mod node;
pub mod propose;
pub mod raft;
pub mod read_index;
mod runtime;
mod shutdown;
pub mod status;
pub mod version;
pub mod watch;
