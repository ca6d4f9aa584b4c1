//! The state of a client's task: sessions, and what dropped guards left to be done.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Heart;
use super::cleanup::{Cleanup, Left};
use crate::moment::Moment;
use crate::reliance;
use crate::session::SessionState;
use crate::tell::{store_news, tell};

/// Most cleanups that are queued. Beyond that, what a dropped guard held ends with its session.
const CLEANUPS_MAX: usize = 100_000;

/// Everything that the task looks after.
#[derive(Debug, Default)]
pub(super) struct Kept {
    pub(super) sessions: HashMap<i64, Tracked>,
    pub(super) cleanups: VecDeque<Left>,
    pub(super) cleaning: usize,
    /// Sessions that are forgotten but not ended yet: see [`super::Ending`].
    pub(super) ending: usize,
    pub(super) is_running: bool,
    pub(super) are_leases: bool,
}

impl Kept {
    /// Whether a failed cleanup should be tried again: only while its session lives.
    pub(super) fn is_due(&self, left: &Left) -> bool {
        match &left.cleanup {
            Cleanup::End(_) => false,
            Cleanup::Undo(undo) => self.sessions.contains_key(&undo.session),
            Cleanup::Deregister(exit) => self.sessions.contains_key(&exit.session()),
        }
    }

    pub(super) fn leave(&mut self, left: Left) {
        if self.cleanups.len() < CLEANUPS_MAX {
            self.cleanups.push_back(left);
        }
    }
}

/// One session.
#[derive(Debug)]
pub(super) struct Tracked {
    pub(super) ttl: Duration,
    /// When the last answered heartbeat was sent.
    pub(super) confirmed: Moment,
    pub(super) state: watch::Sender<SessionState>,
    pub(super) lost: CancellationToken,
}

impl Tracked {
    /// The earliest moment at which the server may end the session.
    pub(super) fn lost_at(&self) -> Moment {
        reliance::lost_at(self.confirmed, self.ttl)
    }

    /// Handles the answer, which arrived at `now`, to the heartbeat `sent` then.
    pub(super) fn confirm(&mut self, sent: Moment, now: Moment) {
        self.confirmed = reliance::confirm(self.confirmed, self.ttl, (sent, now));
    }

    pub(super) fn jeopardy_at(&self) -> Moment {
        self.confirmed + self.ttl * 2 / 3
    }

    pub(super) fn set(&self, state: SessionState) {
        let is_news = store_news(&self.state, state);
        if state == SessionState::Lost {
            self.lost.cancel();
        }
        if is_news {
            tell(&self.state);
        }
    }
}

impl Heart {
    /// Updates the states of sessions by the clock. Never returns.
    pub(super) async fn watch_clock(&self) {
        let mut changes = self.changes.subscribe();
        loop {
            changes.mark_unchanged();
            match self.judge(Moment::now()) {
                Some(next) => tokio::select! {
                    () = next.reached() => {}
                    () = self.changed(&mut changes) => {}
                },
                None => self.changed(&mut changes).await,
            }
        }
    }

    /// Updates the states and returns when to do it again; `None` if there is no session.
    fn judge(&self, now: Moment) -> Option<Moment> {
        let mut next: Option<Moment> = None;
        let mut kept = self.kept.lock();
        kept.sessions.retain(|id, tracked| {
            let (jeopardy_at, lost_at) = (tracked.jeopardy_at(), tracked.lost_at());
            let (state, until) = if now >= lost_at {
                tracing::debug!(session = id, "session lost");
                tracked.set(SessionState::Lost);
                return false;
            } else if now >= jeopardy_at {
                (SessionState::Jeopardy, lost_at)
            } else {
                (SessionState::Active, jeopardy_at)
            };
            tracked.set(state);
            next = Some(next.map_or(until, |next| next.min(until)));
            true
        });
        next
    }
}
