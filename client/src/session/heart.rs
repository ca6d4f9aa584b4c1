//! The one task of a client that keeps all of its sessions alive and cleans up behind dropped guards.
//!
//! Guards only change what is written here and wake the task, so that dropping one never blocks and
//! works outside a runtime. The task exists while there is something to keep or to clean up.
//!
//! | module | what |
//! |---|---|
//! | `kept` | what is looked after, and what the clock says of it |
//! | `beat` | heartbeats |
//! | `places` | locks that are held, so that their holders hear when they are taken away |
//! | `cleanup` | what dropped guards leave to do |

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
    /// When it was asked for.
    pub(super) sent: Moment,
    /// Whether the server knows it as a lease only, as then all of this client.
    pub(super) is_lease: bool,
    /// To be cancelled when it is lost.
    pub(super) lost: CancellationToken,
}

/// The sessions of a client.
#[derive(Debug)]
pub(crate) struct Heart {
    kept: Mutex<Kept>,
    places: Places,
    /// Counts changes of `kept` that the task must know of.
    changes: watch::Sender<u64>,
}

/// A session that is to be ended, in the background if this is dropped before it is done.
#[must_use = "it is ended in the background when this is dropped"]
pub(super) struct Ending<'a> {
    heart: &'a Heart,
    id: i64,
    is_counted: bool,
    is_done: bool,
}

impl Ending<'_> {
    /// Nothing is left to do.
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
            // All is over if the task ended meanwhile with its runtime.
            kept.ending = kept.ending.saturating_sub(1);
            if !self.is_done && kept.is_running {
                let cleanup = Cleanup::End(self.id);
                kept.leave(Left { cleanup, backoff: Backoff::default() });
            }
        }
        self.heart.wake();
    }
}

/// The task. If it ends before everything is done, because its runtime ends, the sessions are lost.
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
        // Somebody else may run already if it is idle.
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
            // Ends by itself when nothing is left to do.
            let beating = Beating { heart: Arc::clone(self), is_idle: false };
            client.spawn(beating.run(client.clone()));
        }
        states
    }

    /// Whether a session lives, by the clock.
    pub(crate) fn is_alive(&self, id: i64) -> bool {
        let kept = self.kept.lock();
        kept.sessions.get(&id).is_some_and(|tracked| Moment::now() < tracked.lost_at())
    }

    /// Stops keeping a session alive, which somebody ends: the heart, in the background, if they do not.
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

    /// Cleans up in the background. Somebody must still hold the session that it is about, so that the
    /// task runs.
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

    /// Nobody keeps the sessions alive any more.
    fn stop(&self) {
        let stopped = std::mem::take(&mut *self.kept.lock());
        if !stopped.sessions.is_empty() {
            tracing::warn!(sessions = stopped.sessions.len(), "sessions lost with their runtime");
        }
        for tracked in stopped.sessions.values() {
            tracked.set(SessionState::Lost);
        }
    }

    /// Returns when nothing is left to do and the task is marked as ended.
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
