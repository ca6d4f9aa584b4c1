//! Watching: who hears of which event, and how far everyone got.
//!
//! ```text
//!  apply ──publish──► inbox ──dispatch──► ring of batches ◄─window─ catch-up reads of the store
//!                                │                                      ▲
//!                                └─ a word per (stream, range) ─► mailbox ─► stream ─► connection
//! ```
//!
//! | module | what |
//! |---|---|
//! | `hub` | the dispatcher, the subscriptions, the windows of old events |
//! | `inbox` | what apply hands over, bounded |
//! | `ring` | the newest batches, bounded; the owner of their memory |
//! | `batch` | events of consecutive revisions, each encoded once |
//! | `mailbox` | what the hub leaves for a stream |
//! | `stream` | the watchers of one stream and their answers |
//! | `response` | the bytes of answers |
//! | `local` | watches of this process itself |
//! | `source` | what watching needs from the node |
//! | `connection` | the watchers of one connection, counted together |
//! | `limits` | every bound |

mod batch;
mod connection;
mod hub;
mod inbox;
mod limits;
mod local;
mod mailbox;
mod response;
mod ring;
mod source;
mod stream;
#[cfg(test)]
mod tests;

pub use connection::Connection;
pub use hub::{Hub, Stats};
pub use limits::Limits;
pub(crate) use local::LocalWatch;
pub use mailbox::End;
pub use response::Output;
pub use source::{Source, StoreSource};
pub use stream::{Guard, WatchStream};
