//! What apply tells about users: tokens that are given out or void, and that something changed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use conclave_state_machine::auth::AuthHead;
use conclave_state_machine::response::AuthChange;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::tokens::{self, Tokens};
use crate::coordination::unix_ms;

/// Filled by apply, in log order.
pub(crate) struct Feed {
    pub(super) tokens: Mutex<Tokens>,
    /// Entries behind this one are applied as they happen; see [`Feed::confirmed`].
    late_until: AtomicU64,
    /// How often tokens became void.
    voids: AtomicU64,
    /// Wakes whoever must look again whether it still may.
    changed: watch::Sender<AuthHead>,
    /// Of `changed`, as one number.
    state: AtomicU64,
}

impl Feed {
    /// Tokens that are not used live for `token_ttl`.
    pub(crate) fn new(token_ttl: Duration) -> Self {
        Self {
            tokens: Mutex::new(Tokens::new(token_ttl)),
            late_until: AtomicU64::new(u64::MAX),
            voids: AtomicU64::new(0),
            changed: watch::Sender::default(),
            state: AtomicU64::new(0),
        }
    }

    /// A command changed this.
    pub(crate) fn note(&self, change: &AuthChange) {
        match change {
            AuthChange::Nothing | AuthChange::Changed | AuthChange::Enabled => {}
            AuthChange::Disabled => self.void(Tokens::clear),
            AuthChange::TokensVoid { user } => self.void(|tokens| tokens.void(user)),
            AuthChange::Token { user, fingerprint, index, issued_ms } => {
                let is_late = *index <= self.late_until.load(Ordering::Acquire);
                // Where clocks disagree a new token would be old, so only who comes late looks at one.
                let age =
                    if is_late { tokens::age(*issued_ms, unix_ms()) } else { Some(Duration::ZERO) };
                // Of another length only if the log is another version's.
                if let (Some(age), Ok(fingerprint)) = (age, fingerprint.as_ref().try_into()) {
                    self.tokens.lock().add(fingerprint, user, age, Instant::now());
                }
            }
        }
    }

    /// Since this member has begun a quorum has confirmed that nothing behind `index` was acknowledged yet. What is
    /// there has no age: it is applied as it happens. Only the first time counts, which is as the member begins to serve.
    pub(crate) fn confirmed(&self, index: u64) {
        if self.late_until.load(Ordering::Relaxed) == u64::MAX {
            self.late_until.fetch_min(index, Ordering::Release);
        }
    }

    /// A snapshot replaces the state: which tokens became void meanwhile is not known. Told before
    /// calls are admitted by that state, in which the owner of a void token may be there.
    pub(crate) fn installing(&self) {
        self.void(Tokens::clear);
    }

    /// Whoever counted before he found an owner may believe it while the count is the same: it is raised when the
    /// tokens are gone.
    fn void(&self, forget: impl FnOnce(&mut Tokens)) {
        forget(&mut self.tokens.lock());
        self.voids.fetch_add(1, Ordering::Release);
    }

    /// Another number after every time that tokens became void.
    pub(super) fn voids(&self) -> u64 {
        self.voids.load(Ordering::Acquire)
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

#[cfg(test)]
mod tests {
    use super::super::tokens::fingerprint;
    use super::*;

    /// Whether a feed knows a token after its entry was applied.
    fn takes(feed: &Feed, secret: &str, (index, issued_ms): (u64, i64)) -> bool {
        let fingerprint = fingerprint(secret);
        feed.note(&AuthChange::Token {
            user: "ann".to_owned(),
            fingerprint: fingerprint.to_vec().into(),
            index,
            issued_ms,
        });
        feed.tokens.lock().owner(&fingerprint, Instant::now()).is_some()
    }

    #[test]
    fn only_what_is_applied_late_has_an_age() {
        let feed = Feed::new(Duration::from_secs(300));
        // An hour ago, by the clock here; and not said, as by members of before.
        let (old, unknown) = (unix_ms() - 3_600_000, 0);
        assert!(!takes(&feed, "a", (5, old)), "the log is applied again");
        assert!(!takes(&feed, "b", (6, unknown)));
        assert!(takes(&feed, "c", (7, unix_ms())));
        feed.confirmed(10);
        feed.confirmed(20);
        assert!(!takes(&feed, "d", (10, old)), "it was there before this member began");
        assert!(takes(&feed, "e", (11, old)), "the clock of who gave it out is another");
        assert!(takes(&feed, "f", (12, unknown)));
    }
}
