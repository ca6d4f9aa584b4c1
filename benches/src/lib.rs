//! Load generator for any etcd-compatible endpoint, and what is needed to compare two servers
//! fairly.
//!
//! ```text
//! conclave-bench run ──► runner ──► drive (closed/open loop) ──► worker (unary) / streams (watch, keep-alive)
//! conclave-bench compare ──► cluster (three real nodes) ──► runner, in turn, several rounds ──► ratios
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`access`] | TLS and users |
//! | [`certificates`] | an authority and a certificate for loopback |
//! | [`cluster`] | real nodes on loopback: start, kill, pause, by pid |
//! | [`process`] | CPU, bytes written, memory and ports of a process |
//! | [`connection`] | one HTTP/2 connection as a cheap tonic transport |
//! | [`runner`] | one workload against endpoints |
//! | [`compare`] | comparison of our server with the reference |
//! | [`registry`] | many instances, watchers, dying sessions, a killed leader |
//! | [`options`], [`report`], `table` | options of a run, and results of runs and comparisons |
//! | `drive`, `worker`, `streams`, `event_codec` | clients for unary requests, and for long streams |
//! | `drill`, `heartbeats`, `locker`, `security` | measurements other than a steady load; heartbeats, locks, users and TLS |
//! | [`noop`] | a server that answers at once: the upper bound |

pub mod access;
pub mod certificates;
pub mod cluster;
pub mod compare;
pub mod connection;
mod drill;
mod drive;
mod event_codec;
mod heartbeats;
mod locker;
pub mod noop;
pub mod options;
pub mod process;
pub mod registry;
pub mod report;
pub mod runner;
mod security;
mod streams;
mod table;
mod worker;
