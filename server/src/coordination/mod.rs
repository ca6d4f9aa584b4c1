//! The native API `conclave.v1`: sessions and locks.
//!
//! ```text
//! Acquire ─► propose ─► apply: a place in the queue, held or not
//!    ▲                    │ every change of a queue that somebody here waits for
//!    │                    ▼
//!    └──── turn ◄──── turns: asks who holds now, tells only those whose turn changed
//! ```
//! Writes are commands like any other, so every member takes every call; waiting is local.
//!
//! | module | what |
//! |---|---|
//! | `turns` | who on this member waits for which queue |
//! | `session` | begin, heartbeats, list |
//! | `lock`, `acquire`, `inspect` | the lock service |

mod acquire;
mod inspect;
mod lock;
mod session;
mod turns;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use conclave_proto::v1;
use tonic::service::Routes;

use crate::api::context::Context;

pub(crate) use turns::Turns;

/// A stream that broke may be resumed within this time; then its request is given up.
const RESUME_GRACE: Duration = Duration::from_secs(5);
/// Answers of a stream that its connection has not taken yet.
const ANSWERS_MAX: usize = 4;

/// The services whose calls [`add`] takes.
pub(crate) const SERVICES: [&str; 2] = ["conclave.v1.SessionService", "conclave.v1.LockService"];

/// Adds the services of the native API.
pub(crate) fn add(routes: Routes, context: &Context) -> Routes {
    use v1::lock_service_server::LockServiceServer;
    use v1::session_service_server::SessionServiceServer;

    let receive_bytes_max = context.limits.receive_bytes_max();
    let session = session::SessionApi { context: context.clone() };
    let lock = lock::LockApi { context: context.clone() };
    routes
        .add_service(
            SessionServiceServer::new(session).max_decoding_message_size(receive_bytes_max),
        )
        .add_service(LockServiceServer::new(lock).max_decoding_message_size(receive_bytes_max))
}

/// Names as commands want them: ascending, without repetition.
fn sorted(mut names: Vec<Bytes>) -> Vec<Bytes> {
    names.sort();
    names.dedup();
    names
}

/// Wall clock, for people.
fn unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
