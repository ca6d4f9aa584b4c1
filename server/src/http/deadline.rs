//! Applies the caller's deadline to a call: a member does not work for a caller that has given up.
//!
//! A caller that disconnects is noticed by its connection. One that was cut off cannot disconnect,
//! and its request would still be proposed once there is a leader again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::Request;
use tokio::time::{Instant, timeout_at};
use tonic::Status;

use crate::api::context;
use crate::auth::access;
use crate::metrics::IS_LATE;

/// The text of Go's gRPC.
const TOO_LATE: &str = "context deadline exceeded";
/// Calls of these services may wait for long; they end by themselves and release what they
/// acquired.
const WAITING_SERVICES: [&str; 2] = ["/v3lockpb.Lock/", "/v3electionpb.Election/"];

/// Runs `call` up to `until`, then drops it as if the caller had disconnected: its request leaves
/// the queue.
///
/// # Errors
/// Deadline exceeded, if it took too long.
pub(super) async fn in_time<T>(until: Instant, call: impl Future<Output = T>) -> Result<T, Status> {
    let is_late = Arc::new(AtomicBool::new(false));
    let mut call = Box::pin(IS_LATE.scope(Arc::clone(&is_late), call));
    let answer = timeout_at(until, &mut call).await;
    answer.map_err(|_elapsed| {
        is_late.store(true, Ordering::Relaxed);
        drop(call);
        too_late()
    })
}

/// The error of a call that took too long.
pub(super) fn too_late() -> Status {
    Status::deadline_exceeded(TOO_LATE)
}

/// The deadline of a unary call; `None` if its caller gives none, or if the call may wait for long.
pub(super) fn of<B>(request: &Request<B>) -> Option<Instant> {
    let time = context::deadline_in(request.headers())?;
    let path = request.uri().path();
    let is_unary = access::method_of(path).is_some_and(|method| method.is_unary());
    let waits = WAITING_SERVICES.iter().any(|service| path.starts_with(service));
    if is_unary && !waits { Instant::now().checked_add(time) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn has_end(path: &str, timeout: Option<&str>) -> bool {
        let mut request = Request::post(path);
        if let Some(timeout) = timeout {
            request = request.header("grpc-timeout", timeout);
        }
        of(&request.body(()).unwrap()).is_some()
    }

    #[test]
    fn only_calls_with_one_answer_end_for_their_callers() {
        assert!(has_end("/etcdserverpb.KV/Put", Some("5000m")));
        assert!(has_end("/conclave.v1.RegistryService/Register", Some("5S")));
        for timeout in [None, Some("soon")] {
            assert!(!has_end("/etcdserverpb.KV/Put", timeout), "{timeout:?}");
        }
        for waits in [
            "/etcdserverpb.Watch/Watch",
            "/etcdserverpb.Maintenance/Snapshot",
            "/conclave.v1.LockService/Acquire",
            "/conclave.v1.SessionService/Open",
            "/v3lockpb.Lock/Lock",
            "/v3electionpb.Election/Campaign",
        ] {
            assert!(access::method_of(waits).is_some(), "{waits}");
            assert!(!has_end(waits, Some("5000m")), "{waits}");
        }
    }
}
