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
//! | [`txn`] | transactions: compares and operations |
//! | [`watch`] | streams of changes |
//! | [`lease`] | leases and the guard that keeps one alive |
//! | [`queue`] | etcd's lock and election recipe |
//! | [`election`] | leader election: campaign, proclaim, resign, observe |
//! | [`registry`] | service registry: register, discover, drain |
//! | [`session`] | leases with an owner, all kept alive over one stream (against etcd: plain leases) |
//! | [`lock`] | locks with fencing tokens and guarded transactions (against etcd: exclusive locks, by its recipe) |
//! | [`counter`], [`latch`] | shared counters and countdown latches (Conclave only) |
//! | [`barrier`], [`double_barrier`] | points where processes wait for each other (Conclave only) |
//! | [`group`] | group membership: join, leave, list the members (Conclave only) |
//! | [`wait`] | the future that waits at a barrier or latch |
//! | [`config`] | live configuration: layers, validation, history |
//! | [`balance`] | client-side load balancing over the instances of a service |
//! | [`auth`] | users, roles and permissions |
//! | [`maintenance`] | members, status, alarms, and other operator calls |
//! | [`snapshot`] | a copy of a member's whole state, for backups |
//! | [`key`] | key ranges |
//! | [`connection`] | whether a stream is connected or reconnecting |
//! | `blocking` | the same API for programs without an async runtime (feature `blocking`) |
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

// Private modules, not part of the documentation:
//
// | module | what it holds |
// |---|---|
// | `client`, `builder`, `endpoint`, `tls`, `login`, `discover` | the client handle and its settings; endpoints, TLS, authentication, discovery by DNS |
// | `reply`, `error`, `retry`, `backoff`, `budget`, `moment` | replies, errors, which errors are retried, pauses between attempts, the retry budget, a clock that counts suspend time |
// | `deadline` | the deadline sent to servers |
// | `reliance`, `known_cluster` | how long a lease may be relied on; whether the answers still come from the same cluster |
// | `pulse`, `loss`, `tell` | whether a guard's session or lease is alive, and running work only while it is; why a lock was lost; publishing state changes |
// | `namespace` | a key prefix that is added to requests and removed from answers |
// | `writes`, `once`, `undo` | writes and session requests that can be retried safely; releasing what a dropped guard held |
// | `patience`, `mirror`, `page`, `cache` | waiting on a server stream; a local copy of a key range; a member's pages; a file for starting without the cluster |
// | `pages`, `json` | large ranges read in pages at one revision; values decoded into the program's types |

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

/// The protobuf messages of the API. Replies contain them unchanged.
pub use conclave_proto::{etcdserverpb as pb, mvccpb, v1};
/// The types of call headers; see [`Builder::headers`].
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
