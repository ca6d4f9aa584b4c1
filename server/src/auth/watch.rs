//! Rights of watch streams.

use std::sync::Arc;

use bytes::Bytes;
use conclave_state_machine::auth::AuthHead;
use conclave_state_machine::command::Caller;
use conclave_state_machine::watcher_set::KeyRange;
use http::{Extensions, HeaderMap};
use tokio_stream::wrappers::WatchStream as Changes;
use tonic::Status;

use super::identity::{self, Identity};
use super::{Auth, RightsCheck, caller_of};
use crate::status::{Fault, rpc_error_text};
use crate::watch::Guard;

/// Why the caller of a watch stream is nobody. As in etcd the stream opens all the same, and its
/// watchers are refused one by one: clients take the end of a stream for a failure of the server.
#[derive(Clone, Debug)]
pub(crate) struct Refused(pub(crate) Status);

/// What the client of one stream may watch.
pub(crate) struct WatchGuard {
    auth: Arc<Auth>,
    caller: Result<Caller, Status>,
    /// The caller was verified by a token, for which somebody gave a password.
    by_token: bool,
}

impl WatchGuard {
    /// For the client of a call that was admitted with these.
    pub(crate) fn new(auth: Arc<Auth>, headers: &HeaderMap, extensions: &Extensions) -> Self {
        let refused = extensions.get::<Refused>().map(|refused| Err(refused.0.clone()));
        let caller = refused.unwrap_or_else(|| Ok(caller_of(extensions)));
        let by_token = matches!(identity::of(headers, None), Identity::Token(_));
        Self { auth, caller, by_token }
    }

    /// Wakes the stream when its rights may have changed.
    pub(crate) fn changes(&self) -> Changes<AuthHead> {
        Changes::from_changes(self.auth.feed.changes())
    }
}

impl std::fmt::Debug for WatchGuard {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("WatchGuard").field("caller", &self.caller).finish_non_exhaustive()
    }
}

impl Guard for WatchGuard {
    fn state(&self) -> u64 {
        self.auth.feed.state()
    }

    fn admit(&self, range: &KeyRange) -> Result<(), String> {
        if let (Ok(caller), true) = (&self.caller, self.by_token) {
            match self.auth.is_password_old(caller) {
                Ok(true) => return Err(rpc_error_text(&Fault::InvalidAuthToken.into())),
                Ok(false) => {}
                Err(status) => return Err(rpc_error_text(&status)),
            }
        }
        self.check(range)
    }

    fn check(&self, range: &KeyRange) -> Result<(), String> {
        let caller = match &self.caller {
            Ok(caller) => caller,
            Err(_) if !self.auth.head().enabled => return Ok(()),
            Err(status) => return Err(rpc_error_text(status)),
        };
        let (key, range_end) = range.pair();
        let (key, range_end) = (Bytes::copy_from_slice(key), Bytes::copy_from_slice(range_end));
        let allowed = self.auth.check_by_name(caller, &RightsCheck::Range(key, range_end));
        allowed.map_err(|status| rpc_error_text(&status))
    }
}
