//! Jepsen-style tests in Rust (the original Clojure Jepsen is not run here): real nodes, real faults, checked histories.
//!
//! ```text
//! conclave-jepsen run ──► load (clients, watchers) + nemesis (kill, pause, restart, partition, power cut) ──► History (JSONL)
//!                                                     History ──► replay + order + watch_check ──► violations
//! conclave-jepsen differential ──► the same random requests to two servers ──► first difference
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`history`] | what clients asked, got and watched |
//! | [`model`] | etcd's key-value rules in their plainest form |
//! | [`replay`] | the revision-replay checker |
//! | [`order`] | revisions against real time |
//! | [`watch_check`] | every watch session against the replayed history |
//! | [`verdict`] | the guarantees, and what broke them |
//! | [`load`], [`watcher`] | clients and watchers that record |
//! | [`nemesis`] | the faults |
//! | [`network`] | a network between members that can be cut |
//! | [`disk`] | disks of members that lose power, fill up and fail |
//! | [`members`] | whether all members serve and agree |
//! | [`run`] | one run of all of it |
//! | [`differential`] | the same requests to two servers |
//! | [`hold`] | a process that holds a lock, to be paused and killed |
//! | [`wire`] | between histories and etcd's messages |

pub mod differential;
pub mod disk;
pub mod history;
pub mod hold;
pub mod load;
pub mod members;
pub mod model;
pub mod nemesis;
pub mod network;
pub mod order;
pub mod replay;
pub mod run;
pub mod verdict;
pub mod watch_check;
pub mod watcher;
pub mod wire;

use history::History;
use verdict::Violation;

/// What the checkers say about a history.
#[derive(Debug)]
pub struct Findings {
    /// Everything found wrong; empty is a pass.
    pub violations: Vec<Violation>,
    /// The newest revision.
    pub revisions: i64,
    /// Requests of unknown outcome that turned out to have happened.
    pub filled: usize,
    /// Events compared.
    pub events: usize,
}

/// Runs all checkers over a history that began with an empty store.
#[must_use]
pub fn check(history: &History) -> Findings {
    let replay::Replay { timeline, mut violations, filled } = replay::check(history);
    let mut events = 0;
    for session in &history.sessions {
        watch_check::check(session, &timeline, &mut violations);
        for response in &session.responses {
            if let history::WatchNews::Events(news) = &response.news {
                events += news.len();
            }
        }
    }
    Findings { violations, revisions: timeline.last(), filled, events }
}
