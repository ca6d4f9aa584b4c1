//! The one task of a client that keeps all of its sessions alive and cleans up after dropped
//! guards.
//!
//! Guards only change the shared state here and wake the task, so that dropping one never blocks
//! and works outside a runtime. The task exists while there is something to keep alive or to clean
//! up.
//!
//! | module | what |
//! |---|---|
//! | `kept` | what the task looks after, and judging it by the clock |
//! | `beat` | heartbeats |
//! | `places` | locks that are held, so that their guards learn when they are taken away |
//! | `cleanup` | what dropped guards leave to be done |

mod beat;
mod cleanup;
mod kept;
mod places;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::cleanup::Left;
use self::kept::{Kept, Tracked};
use self::places::Places;
use super::SessionState;
use crate::backoff::Backoff;
use crate::client::Client;
use crate::moment::Moment;

pub(crate) use cleanup::Cleanup;
pub(crate) use places::{Hearing, are_held};

/// A session that the server has begun.
pub(super) struct Begun {
    pub(super) id: i64,
    pub(super) ttl: Duration,
    /// When it was requested.
    pub(super) sent: Moment,
    /// Whether the server knows it only as a lease. If so, that holds for all sessions of this
    /// client.
    pub(super) is_lease: bool,
    /// Cancelled when the session is lost.
    pub(super) lost: CancellationToken,
}

/// Keeps the sessions of a client alive.
#[derive(Debug)]
pub(crate) struct Heart {
    kept: Mutex<Kept>,
    places: Places,
    /// Counts the changes of `kept` that the task must notice.
    changes: watch::Sender<u64>,
}

/// A session that a caller is ending. If this is dropped before [`Ending::done`], it is ended in
/// the background.
#[must_use = "it is ended in the background when this is dropped"]
pub(super) struct Ending<'a> {
    heart: &'a Heart,
    id: i64,
    is_counted: bool,
    is_done: bool,
}

impl Ending<'_> {
    /// The session has ended; nothing is left to do.
    pub(super) fn done(mut self) {
        self.is_done = true;
    }
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        if !self.is_counted {
            return;
        }
        {
            let mut kept = self.heart.kept.lock();
            // The count is 0 already if the task was stopped with its runtime.
            kept.ending = kept.ending.saturating_sub(1);
            if !self.is_done && kept.is_running {
                let cleanup = Cleanup::End(self.id);
                kept.leave(Left { cleanup, backoff: Backoff::default() });
            }
        }
        self.heart.wake();
    }
}

/// The task. If it stops before everything is done, because its runtime ends, the sessions are
/// lost.
struct Beating {
    heart: Arc<Heart>,
    is_idle: bool,
}

impl Beating {
    async fn run(mut self, client: Client) {
        let heart = &self.heart;
        tokio::select! {
            () = heart.watch_clock() => {}
            () = heart.beat(&client) => {}
            () = heart.clean_up(&client) => {}
            () = heart.ask(&client) => {}
            () = heart.idle() => self.is_idle = true,
        }
    }
}

impl Drop for Beating {
    fn drop(&mut self) {
        // If it went idle, another task may run already.
        if !self.is_idle {
            self.heart.stop();
        }
    }
}

impl Default for Heart {
    fn default() -> Self {
        Self { kept: Mutex::default(), places: Places::default(), changes: watch::Sender::new(0) }
    }
}

impl Heart {
    /// Keeps a new session alive.
    pub(super) fn keep(
        self: &Arc<Self>,
        client: &Client,
        begun: Begun,
    ) -> watch::Receiver<SessionState> {
        let Begun { id, ttl, sent, is_lease, lost } = begun;
        let (state, states) = watch::channel(SessionState::Active);
        let is_running = {
            let mut kept = self.kept.lock();
            kept.are_leases = is_lease;
            kept.sessions.insert(id, Tracked { ttl, confirmed: sent, state, lost });
            std::mem::replace(&mut kept.is_running, true)
        };
        self.wake();
        if !is_running {
            // The task ends when nothing is left to do.
            let beating = Beating { heart: Arc::clone(self), is_idle: false };
            client.spawn(beating.run(client.clone()));
        }
        states
    }

    /// Whether a session is alive, by the clock.
    pub(crate) fn is_alive(&self, id: i64) -> bool {
        let kept = self.kept.lock();
        kept.sessions.get(&id).is_some_and(|tracked| Moment::now() < tracked.lost_at())
    }

    /// Stops keeping a session alive because the caller ends it. If the caller does not finish, the
    /// heart ends it in the background.
    pub(super) fn forget(&self, id: i64) -> Ending<'_> {
        let tracked = {
            let mut kept = self.kept.lock();
            let tracked = kept.sessions.remove(&id);
            kept.ending += usize::from(tracked.is_some());
            tracked
        };
        if let Some(tracked) = &tracked {
            tracked.set(SessionState::Lost);
        }
        self.wake();
        Ending { heart: self, id, is_counted: tracked.is_some(), is_done: false }
    }

    /// Stops keeping a session alive and ends it in the background.
    pub(super) fn end(&self, id: i64) {
        drop(self.forget(id));
    }

    /// Queues a cleanup for the background. The caller must still hold the session that it belongs
    /// to, so that the task runs.
    pub(crate) fn clean(&self, cleanup: Cleanup) {
        let mut kept = self.kept.lock();
        if kept.is_running {
            kept.leave(Left { cleanup, backoff: Backoff::default() });
        }
        drop(kept);
        self.wake();
    }

    fn wake(&self) {
        self.changes.send_modify(|changes| *changes = changes.wrapping_add(1));
    }

    /// Marks all sessions as lost, because the task that kept them alive has stopped.
    fn stop(&self) {
        let stopped = std::mem::take(&mut *self.kept.lock());
        if !stopped.sessions.is_empty() {
            tracing::warn!(sessions = stopped.sessions.len(), "sessions lost with their runtime");
        }
        for tracked in stopped.sessions.values() {
            tracked.set(SessionState::Lost);
        }
    }

    /// Returns when nothing is left to do, with the task marked as ended.
    async fn idle(&self) {
        let mut changes = self.changes.subscribe();
        loop {
            changes.mark_unchanged();
            {
                let mut kept = self.kept.lock();
                let is_idle = kept.sessions.is_empty()
                    && kept.cleanups.is_empty()
                    && kept.cleaning == 0
                    && kept.ending == 0;
                if is_idle {
                    kept.is_running = false;
                    return;
                }
            }
            self.changed(&mut changes).await;
        }
    }

    async fn changed(&self, changes: &mut watch::Receiver<u64>) {
        changes.changed().await.expect("invariant: the sender is in `self`");
    }
}
