//! What apply tells about users: tokens that are given out or void, and that something changed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use conclave_state_machine::auth::AuthHead;
use conclave_state_machine::response::AuthChange;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::tokens::Tokens;

/// Filled by apply, in log order.
pub(crate) struct Feed {
    pub(super) tokens: Mutex<Tokens>,
    /// Wakes whoever must look again whether it still may.
    changed: watch::Sender<AuthHead>,
    /// Of `changed`, as one number.
    state: AtomicU64,
}

impl Feed {
    /// Tokens that are not used live for `token_ttl`.
    pub(crate) fn new(token_ttl: Duration) -> Self {
        let changed = watch::Sender::default();
        Self { tokens: Mutex::new(Tokens::new(token_ttl)), changed, state: AtomicU64::new(0) }
    }

    /// A command changed this.
    pub(crate) fn note(&self, change: &AuthChange) {
        match change {
            AuthChange::Nothing | AuthChange::Changed | AuthChange::Enabled => {}
            AuthChange::Disabled => self.tokens.lock().clear(),
            AuthChange::TokensVoid { user } => self.tokens.lock().void(user),
            AuthChange::Token { user, fingerprint, .. } => {
                // Of another length only if the log is another version's.
                if let Ok(fingerprint) = fingerprint.as_ref().try_into() {
                    self.tokens.lock().add(fingerprint, user, Instant::now());
                }
            }
        }
    }

    /// A snapshot replaces the state: which tokens became void meanwhile is not known. Told before
    /// calls are admitted by that state, in which the owner of a void token may be there.
    pub(crate) fn installing(&self) {
        self.tokens.lock().clear();
    }

    /// The state is published with this.
    pub(crate) fn publish(&self, head: AuthHead) {
        if *self.changed.borrow() != head {
            let state = head.revision.wrapping_mul(2) | u64::from(head.enabled);
            self.state.store(state, Ordering::Release);
            self.changed.send_replace(head);
        }
    }

    /// Another number after every change. Published before the events that follow the change.
    pub(super) fn state(&self) -> u64 {
        self.state.load(Ordering::Acquire)
    }

    /// Changes from now on.
    pub(crate) fn changes(&self) -> watch::Receiver<AuthHead> {
        self.changed.subscribe()
    }
}
