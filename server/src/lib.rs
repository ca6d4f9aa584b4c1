//! The server: etcd's gRPC services over a raft node, the HTTP answers beside them, and their wiring.
//!
//! | module | what |
//! |---|---|
//! | `config` | flags and variables -> [`config::Settings`] |
//! | `running` | wiring: [`start`] for tests and tools, [`run`] for a process |
//! | `listen`, `tls` | TCP and unix sockets, and TLS of the two ports |
//! | `http` | the client port: gRPC, `/health`, `/version`, `/metrics` |
//! | `api` | etcd's services |
//! | `coordination` | our own: sessions, locks, elections, primitives, writes that come again, the registry |
//! | `auth` | who calls, and what they may read |
//! | `node` | one member: raft, state, proposals, reads, leases behind one handle |
//! | `raft` | the network between members, bootstrap, log compaction |
//! | `propose` | commands -> log entries -> answers |
//! | `read_index` | linearizable reads by shared confirmations |
//! | [`backup`] | what a file of a snapshot holds, and a new member made of it |
//! | `auto_compaction` | compacts by time or by number of revisions |
//! | `space` | the space quota |
//! | `sweeper` | deletes what compactions made dead, in steps |
//! | `lessor` | lease deadlines and keep-alives |
//! | `watch` | who hears of which event |
//! | `supervisor` | what systemd is told |
//! | `runtime`, `shutdown` | raft's own threads and those of clients; leaving in order |
//! | `data_dir`, `etcd_dir` | whose the directories are; one that etcd's `snapshot restore` made becomes ours |
//! | `greeting` | how long a connection may be silent |
//! | `metrics` | what a node counts, under etcd's names |
//! | `trace` | spans of calls, by OTLP |
//! | `logging`, `log_file`, `sparse` | log lines in etcd's shape; those that are not worth many |
//! | `version` | which version of etcd we are |
//! | `status` | error texts and gRPC codes, the only place that knows them |

pub mod api;
mod auth;
mod auto_compaction;
pub mod backup;
pub mod config;
mod coordination;
mod data_dir;
mod etcd_dir;
mod greeting;
mod http;
mod lessor;
mod listen;
mod log_file;
pub mod logging;
mod metrics;
pub mod node;
pub mod propose;
pub mod raft;
pub mod read_index;
mod running;
mod runtime;
mod shutdown;
mod space;
mod sparse;
pub mod status;
mod supervisor;
mod sweeper;
mod tls;
mod trace;
pub mod version;
pub mod watch;

pub use auth::JwtError;
pub use running::{RunError, Running, StartError, run, start};
pub use runtime::client_runtime;
