//! The native API `conclave.v1`: sessions, locks, elections and the registry.
//!
//! ```text
//! Acquire ─► propose ─► apply: a place in the queue, held or not
//!    ▲                    │ every change of a queue that somebody here waits for
//!    │                    ▼
//!    └──── turn ◄──── turns: asks who holds now, tells only those whose turn changed
//! ```
//! Writes are commands like any other, so any member can serve any call; waiting is local.
//!
//! | module | what |
//! |---|---|
//! | `turns` | the waiters of this member, by queue |
//! | `takings` | tells holders whose sessions are kept alive here what others took from them |
//! | `session` | begin, heartbeats, list |
//! | `lock`, `acquire`, `inspect` | the lock service |
//! | `election`, `campaign`, `observe` | the election service |
//! | `counter`, `barrier`, `group` | counters and latches, barriers, groups |
//! | `streams`, `orphans` | stream numbers; withdraws what streams of dead members left behind |
//! | `change`, `wait` | what these have in common |
//! | `write` | writes that are safe to retry |
//! | `registry` | the registry and its background work on the leader |

mod acquire;
mod barrier;
mod campaign;
mod change;
mod counter;
mod election;
mod group;
mod inspect;
mod lock;
mod observe;
mod orphans;
pub(crate) mod registry;
mod session;
mod streams;
mod takings;
mod turns;
mod wait;
mod write;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use conclave_proto::internal::command::Command as Message;
use conclave_proto::v1;
use conclave_state_machine::command::LockCommand;
use conclave_state_machine::locks::{check, seize};
use tonic::service::Routes;
use tonic::{Code, Status};

use crate::api::COMPRESSION;
use crate::api::context::Context;
use crate::status;

pub(crate) use orphans::run as withdraw_orphans;
pub(crate) use takings::Takings;
pub(crate) use turns::Turns;

/// A broken stream may be resumed within this time; after it, its request is withdrawn.
const RESUME_GRACE: Duration = Duration::from_secs(5);
/// Stands for "wait for ever": longer than any process lives, and small enough to add to an
/// `Instant`.
const WAIT_MAX: Duration = Duration::from_secs(1_000_000_000);
/// Answers of a stream that are buffered until the connection takes them.
const ANSWERS_MAX: usize = 4;

/// The services that [`add`] registers.
pub(crate) const SERVICES: [&str; 11] = [
    "conclave.v1.SessionService",
    "conclave.v1.LockService",
    "conclave.v1.ElectionService",
    "conclave.v1.CounterService",
    "conclave.v1.LatchService",
    "conclave.v1.BarrierService",
    "conclave.v1.DoubleBarrierService",
    "conclave.v1.GroupService",
    "conclave.v1.RegistryService",
    "conclave.v1.DiscoveryService",
    "conclave.v1.WriteService",
];

/// Adds the services of the native API.
pub(crate) fn add(routes: Routes, context: &Context) -> Routes {
    use v1::election_service_server::ElectionServiceServer;
    use v1::lock_service_server::LockServiceServer;
    use v1::session_service_server::SessionServiceServer;

    let receive_bytes_max = context.limits.receive_bytes_max();
    let session = session::SessionApi { context: context.clone() };
    let lock = lock::LockApi { context: context.clone() };
    let election = election::ElectionApi { context: context.clone() };
    let routes = add_primitives(routes, context);
    let routes = write::add(routes, context);
    let routes = registry::add(routes, context);
    routes
        .add_service(
            SessionServiceServer::new(session)
                .max_decoding_message_size(receive_bytes_max)
                .accept_compressed(COMPRESSION),
        )
        .add_service(
            LockServiceServer::new(lock)
                .max_decoding_message_size(receive_bytes_max)
                .accept_compressed(COMPRESSION),
        )
        .add_service(
            ElectionServiceServer::new(election)
                .max_decoding_message_size(receive_bytes_max)
                .accept_compressed(COMPRESSION),
        )
}

/// Adds counters, latches, barriers and groups.
fn add_primitives(routes: Routes, context: &Context) -> Routes {
    use v1::barrier_service_server::BarrierServiceServer;
    use v1::counter_service_server::CounterServiceServer;
    use v1::double_barrier_service_server::DoubleBarrierServiceServer;
    use v1::group_service_server::GroupServiceServer;
    use v1::latch_service_server::LatchServiceServer;

    let most = context.limits.receive_bytes_max();
    let counter = counter::CounterApi { context: context.clone() };
    let barrier = barrier::BarrierApi { context: context.clone() };
    let group = group::GroupApi { context: context.clone() };
    routes
        .add_service(
            CounterServiceServer::new(counter.clone())
                .max_decoding_message_size(most)
                .accept_compressed(COMPRESSION),
        )
        .add_service(
            LatchServiceServer::new(counter)
                .max_decoding_message_size(most)
                .accept_compressed(COMPRESSION),
        )
        .add_service(
            BarrierServiceServer::new(barrier.clone())
                .max_decoding_message_size(most)
                .accept_compressed(COMPRESSION),
        )
        .add_service(
            DoubleBarrierServiceServer::new(barrier)
                .max_decoding_message_size(most)
                .accept_compressed(COMPRESSION),
        )
        .add_service(
            GroupServiceServer::new(group)
                .max_decoding_message_size(most)
                .accept_compressed(COMPRESSION),
        )
}

/// Refuses before the proposal what apply would refuse.
fn checked(command: &LockCommand) -> Result<(), Status> {
    check::command(command).map_err(|rejection| status::from_rejection(&rejection))
}

/// Whether a proposal that failed with this status may have been carried out.
fn is_unknown(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded)
}

/// Whether a status means that the caller lacks a right. Other failures may be temporary: if
/// authentication was enabled while the client waited, it can log in and come back.
fn is_denied(status: &Status) -> bool {
    status.code() == Code::PermissionDenied
}

/// After a grace period proposes `withdrawal` on behalf of a client that vanished or was told that
/// the outcome is unknown; retries until it succeeds. Does nothing to what a client has resumed
/// meanwhile, here or elsewhere.
async fn withdraw_unless_resumed(context: &Context, withdrawal: Message) {
    tokio::select! {
        () = tokio::time::sleep(RESUME_GRACE) => context.withdraw(withdrawal).await,
        () = context.node.stopping().cancelled() => {}
    }
}

/// Who took a place away by force, and why, if known: from what this member saw lately, or from the
/// session's row.
fn broken(context: &Context, key: &[u8], fence: i64) -> Option<v1::Broken> {
    context.node.takings().broken(key, fence).or_else(|| {
        // Unreadable rows stop the member elsewhere.
        let kept = seize::broken(context.node.reader(), key, fence).ok().flatten()?;
        Some(v1::Broken { by: kept.by, reason: kept.reason })
    })
}

/// Names in the form commands require: ascending, without duplicates.
fn sorted(mut names: Vec<Bytes>) -> Vec<Bytes> {
    names.sort();
    names.dedup();
    names
}

/// Wall clock in Unix milliseconds, only for display.
pub(crate) fn unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
