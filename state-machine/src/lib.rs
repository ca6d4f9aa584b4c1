//! The rules of Conclave, as pure functions of the log: no clock, randomness, I/O or async.
//!
//! ```text
//!  command ──► machine ──► kv/*, leases, locks/*, primitives/*, registry/*, ...  (decide and check)
//!                 │              │
//!                 │              ▼
//!                 │           change ──► rows/* ──► overlay ──► write batch    (one revision)
//!                 ▼              │
//!              Applied ◄── events┘          range, history: the same rows, read at a revision
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`command`], [`response`] | what goes in, what comes out |
//! | [`machine`] | applies one command after the other |
//! | [`read`], [`overlay`], [`memory`] | rows as a trait, as a batch over others, and in memory |
//! | [`head`], `alarms`, `digest` | revision, compacted revision, sizes; what is wrong; a hash of all events |
//! | [`range`], [`history`], [`leases`], [`sessions`], [`locks`], [`primitives`], [`registry`], [`members`], [`kv`] | reads of each area |
//! | `change`, `live`, `rows` | the only code that writes keys; live keys at a revision; row encodings |
//! | [`room`] | which requests are retries, and so are let through in a full store |
//! | `outcome`, [`events`] | how a rule ends early; which events are collected and how much of them |
//! | [`writes`] | writes that may be retried and take effect once |
//! | [`expiry`], [`watcher_set`], [`rank`] | local to a node: lease deadlines, which watchers get which event, key counts |
//! | [`validate`] | checks of requests that need no store |
//! | [`restore`], [`import`], [`export`] | what a restore changes; reading another store's history; writing ours for another store |
//! | [`divergence`] | which members' state differs from that of the others |
//! | [`auth`] | users, roles, permissions, and permission checks |
//! | [`revision`], [`span`], [`compaction`] | shared notions |
#![warn(
    clippy::wildcard_enum_match_arm,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::cast_lossless,
    clippy::float_arithmetic
)]
#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

mod alarms;
pub mod auth;
mod change;
pub mod command;
pub mod compaction;
mod digest;
pub mod divergence;
pub mod events;
pub mod expiry;
pub mod export;
pub mod head;
pub mod history;
pub mod import;
pub mod kv;
pub mod leases;
mod live;
pub mod locks;
pub mod machine;
pub mod members;
pub mod memory;
mod outcome;
pub mod overlay;
pub mod primitives;
pub mod range;
pub mod rank;
pub mod read;
pub mod registry;
pub mod response;
pub mod restore;
pub mod revision;
pub mod room;
mod rows;
pub mod sessions;
pub mod span;
pub mod validate;
#[cfg_attr(
    not(test),
    expect(
        clippy::arithmetic_side_effects,
        reason = "counts nodes that are in memory, of this node only"
    )
)]
pub mod watcher_set;
pub mod writes;
