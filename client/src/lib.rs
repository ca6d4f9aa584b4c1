//! A client for Conclave and for any other server that speaks etcd's v3 API.
//!
//! ```text
//!  Client ──► Pool ──► Endpoint ──► one tonic channel per address
//!    ├─ kv: get, put, delete, compact      (reads fail over; writes too if the cluster recognises them)
//!    ├─ txn: compare, then, else
//!    ├─ watch ──► Watcher: a Stream that resumes where it stopped
//!    ├─ lease ──► Lease: a guard that is kept alive
//!    ├─ session ──► lock, election, counter, barrier, group: guards that end with it
//!    ├─ registry ──► Registration, and lists of instances for balanced channels
//!    ├─ config ──► Config<T>: typed settings that follow the cluster
//!    └─ cluster, maintenance
//! ```
//! | module | what it holds |
//! |---|---|
//! | [`kv`] | request builders for keys and values |
//! | `pages`, `json` | large ranges in pages of one revision; values as types of the program |
//! | [`txn`] | transactions: compares and operations |
//! | [`watch`] | streams of changes |
//! | [`lease`] | leases and the guard that keeps one alive |
//! | [`queue`] | etcd's recipe behind its locks and elections |
//! | [`election`] | leaders: campaign, proclaim, resign, observe |
//! | [`registry`] | services: register, discover, drain |
//! | [`session`] | leases with an owner, all kept alive by one stream (on an etcd: leases) |
//! | [`lock`] | locks with fencing tokens and guarded transactions (on an etcd: exclusive locks by its recipe) |
//! | [`counter`], [`latch`] | numbers that many change (Conclave only) |
//! | [`barrier`], [`double_barrier`] | waiting for each other (Conclave only) |
//! | [`group`] | who is there (Conclave only) |
//! | [`wait`] | what is awaited at barriers and latches |
//! | [`config`] | live configuration: layers, validation, history |
//! | [`balance`] | spreading calls over the instances of a service |
//! | [`auth`] | users, roles and permissions |
//! | [`maintenance`] | members, status, alarms, and what operators do |
//! | [`snapshot`] | a member's whole state, for a backup |
//! | [`key`] | ranges of keys |
//! | `blocking` | all of it without a runtime (feature `blocking`) |
//! | `client`, `builder`, `endpoint`, `tls`, `login`, `discover` | the handle and its settings; servers, how they are reached and told who calls |
//! | `reply`, `error`, `retry`, `backoff`, `budget`, `moment` | answers, what can go wrong, what is then made again, pauses between attempts, how many there may be, the clock |
//! | `connection`, `deadline` | whether a stream is cut off and tried again; what servers are told of the time that is left |
//! | `reliance`, `known_cluster` | for how long a lease may be relied on; whether it is still the cluster whose answers are known |
//! | `pulse`, `loss`, `tell` | whether what a guard hangs on lives, and work that needs it; why something is held no more; telling it all at once |
//! | `namespace` | a part of the key space as if it were all of it |
//! | `writes`, `once`, `undo` | requests that may be sent again; what is taken back when it is dropped |
//! | `patience`, `mirror`, `page`, `cache` | waiting on a stream; keys and their changes; a member's pages; a file for a start without the cluster |
//!
//! ```no_run
//! # async fn example() -> Result<(), conclave_client::Error> {
//! use conclave_client::Client;
//!
//! let client = Client::builder(["127.0.0.1:2379", "127.0.0.1:22379"]).build()?;
//! let put = client.put("color", "red").await?;
//! let color = client.get("color").await?.one();
//! let mut changes = client.watch("color").from_revision(put.revision() + 1).start();
//! # Ok(())
//! # }
//! ```

pub mod auth;
mod backoff;
pub mod balance;
pub mod barrier;
#[cfg(feature = "blocking")]
pub mod blocking;
mod budget;
mod builder;
mod cache;
mod client;
pub mod config;
pub mod connection;
pub mod counter;
mod deadline;
mod discover;
pub mod double_barrier;
pub mod election;
mod endpoint;
mod error;
pub mod group;
mod json;
pub mod key;
mod known_cluster;
pub mod kv;
pub mod latch;
pub mod lease;
pub mod lock;
mod login;
mod loss;
pub mod maintenance;
mod mirror;
mod moment;
mod namespace;
mod once;
mod page;
mod pages;
mod patience;
mod pulse;
pub mod queue;
pub mod registry;
mod reliance;
mod reply;
mod retry;
pub mod session;
pub mod snapshot;
mod tell;
mod tls;
pub mod txn;
mod undo;
pub mod wait;
pub mod watch;
mod writes;

/// The messages of the wire, which answers carry unchanged.
pub use conclave_proto::{etcdserverpb as pb, mvccpb, v1};
/// The headers of calls; see [`Builder::headers`].
pub use http;

pub use crate::{
    budget::RetryBudget,
    builder::Builder,
    client::Client,
    config::Config,
    discover::discover,
    election::{Election, Leadership},
    error::{Error, Outcome},
    json::Json,
    lease::{Lease, LeaseState},
    lock::LockGuard,
    login::Channel,
    loss::Loss,
    pages::Pages,
    reply::{Headed, Reply},
    session::{Session, SessionState},
    tls::Tls,
    watch::Watcher,
};
