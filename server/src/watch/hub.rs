//! The hub: takes what was applied, finds who watches it, and leaves word in their mailboxes.
//!
//! The apply path only pushes into the [`Inbox`]. The dispatcher cuts the inbox into batches, matches
//! every event once against all ranges, puts the batch on the ring and leaves one small reference per
//! stream and range. Streams do the rest when their connection takes more bytes (`stream.rs`).
//! A stream that does not keep up finds its references dead or its mailbox full and asks for a
//! *window* of old events instead: from the ring, from recently read windows, or read from the store.
//!
//! Locks: `state` before `inbox` and before a mailbox; never the other way round.
//!
//! | module | what |
//! |---|---|
//! | `state` | what the dispatcher and the streams share |
//! | `subscribe` | watchers come and go |
//! | `catch_up` | windows of old events |

mod catch_up;
mod state;
mod subscribe;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::task::Waker;
use std::time::Duration;

use conclave_state_machine::response::Event;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use self::state::State;
use super::batch::cut;
use super::inbox::{Bounds, Inbox};
use super::limits::Limits;
use super::mailbox::{End, Mailbox};
use super::source::Source;
use super::stream::WatchStream;

pub(crate) use catch_up::Step;
pub(crate) use state::Need;
pub(crate) use subscribe::Refusal;

/// How often windows that nobody asked for lately are forgotten.
const WINDOW_LIFE: Duration = Duration::from_secs(5);
/// How often it is looked whether there is a leader.
const LEADER_CHECK: Duration = Duration::from_millis(100);

/// All watching of one node.
pub struct Hub {
    source: Arc<dyn Source>,
    limits: Limits,
    inbox: Mutex<Inbox>,
    inbox_filled: Notify,
    state: Mutex<State>,
    read_wanted: Notify,
    /// Copy of [`State::dispatched`], written after the mailboxes are filled.
    dispatched: AtomicI64,
    /// Whether the leader is gone for longer than [`Limits::leaderless`].
    is_leaderless: watch::Sender<bool>,
    /// Watchers that were one too many.
    refused: AtomicU64,
}

/// Figures for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Open streams.
    pub streams: usize,
    /// Watchers on them.
    pub watchers: usize,
    /// Streams that are catching up.
    pub slow_streams: usize,
    /// Events dispatched since the start, whoever got them.
    pub events_total: u64,
    /// Events that wait for the dispatcher.
    pub pending_events: usize,
    /// Watchers that were refused since the start, because there were too many.
    pub refused_total: u64,
}

impl Hub {
    /// Makes a hub that continues after the revision of `source`; drive it with [`Hub::run`].
    #[must_use]
    pub fn new(source: Arc<dyn Source>, limits: Limits) -> Arc<Self> {
        let revision = source.revision();
        Arc::new(Hub {
            source,
            limits,
            inbox: Mutex::new(Inbox::new(revision)),
            inbox_filled: Notify::new(),
            state: Mutex::new(State::new(revision)),
            read_wanted: Notify::new(),
            dispatched: AtomicI64::new(revision),
            is_leaderless: watch::Sender::new(false),
            refused: AtomicU64::new(0),
        })
    }

    /// Takes the events that led to revision `head`, in order. Called by apply after the write;
    /// never blocks on watchers. If the events are not exactly those after the revision published
    /// before, watchers read what lies between from the store.
    pub fn publish(&self, events: Vec<Event>, head: i64) {
        let bounds = Bounds { bytes: self.limits.inbox_bytes, events: self.limits.inbox_events };
        if self.inbox.lock().publish(events, head, bounds) {
            self.inbox_filled.notify_one();
        }
    }

    /// As [`Hub::publish`] for events that are not all there: whoever watches reads them from the store.
    pub fn skip(&self, head: i64) {
        self.publish(Vec::new(), head);
    }

    /// Dispatches what is published, serves catch-up reads, and on `shutdown` ends every stream.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let mut readers = JoinSet::new();
        let mut tick = tokio::time::interval(WINDOW_LIFE);
        let mut leader_check = tokio::time::interval(LEADER_CHECK);
        let mut leader_seen = Instant::now();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = self.inbox_filled.notified() => self.dispatch(),
                () = self.read_wanted.notified() => self.spawn_reader(&mut readers),
                Some(_) = readers.join_next() => {
                    // A request that came while the last reader ended found no free one.
                    if self.has_reads() {
                        self.spawn_reader(&mut readers);
                    }
                }
                _ = tick.tick() => self.forget_windows(),
                now = leader_check.tick() => self.check_leader(now, &mut leader_seen),
            }
        }
        self.close();
        while readers.join_next().await.is_some() {}
    }

    fn check_leader(&self, now: Instant, seen: &mut Instant) {
        if self.source.has_leader() {
            *seen = now;
        }
        let is_gone = now.duration_since(*seen) >= self.limits.leaderless;
        self.is_leaderless.send_if_modified(|known| std::mem::replace(known, is_gone) != is_gone);
    }

    /// Becomes true when there was no leader for longer than [`Limits::leaderless`].
    #[must_use]
    pub fn leaderless(&self) -> watch::Receiver<bool> {
        self.is_leaderless.subscribe()
    }

    fn spawn_reader(self: &Arc<Self>, readers: &mut JoinSet<()>) {
        if readers.len() < self.limits.catch_up_reads {
            let hub = Arc::clone(self);
            readers.spawn_blocking(move || while hub.serve_read() {});
        }
    }

    /// Ends every stream and refuses new ones.
    pub fn close(&self) {
        let wakers: Vec<Waker> = {
            let mut state = self.state.lock();
            state.is_closed = true;
            state.reads.clear();
            let finish = |mailbox: &Arc<Mailbox>| mailbox.post.lock().finish(End::Stopped);
            state.mailboxes.values().filter_map(finish).collect()
        };
        wake_all(wakers);
    }

    /// Figures for metrics.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let state = self.state.lock();
        let is_lagging = |mailbox: &&Arc<Mailbox>| mailbox.post.lock().is_lagging;
        Stats {
            streams: state.mailboxes.len(),
            watchers: state.watchers,
            slow_streams: state.mailboxes.values().filter(is_lagging).count(),
            events_total: state.events_total,
            pending_events: self.inbox.lock().pending_events(),
            refused_total: self.refused.load(Ordering::Relaxed),
        }
    }

    /// Counts a watcher that was refused because there are too many.
    pub(super) fn count_refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Opens a stream without watchers.
    #[must_use]
    pub fn open(self: &Arc<Self>) -> WatchStream {
        let mut state = self.state.lock();
        let mailbox = Arc::new(Mailbox::new(state.next_stream));
        state.next_stream += 1;
        if state.is_closed {
            mailbox.post.lock().end = Some(End::Stopped);
        }
        state.mailboxes.insert(mailbox.stream, Arc::clone(&mailbox));
        WatchStream::new(Arc::clone(self), mailbox)
    }

    /// The store and the identity that the hub was made with.
    pub fn source(&self) -> &dyn Source {
        &*self.source
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Every event up to here was left in the mailboxes before this is seen.
    pub(crate) fn dispatched(&self) -> i64 {
        self.dispatched.load(Ordering::Acquire)
    }

    /// Distributes everything published so far.
    pub(crate) fn dispatch(&self) {
        let mut wakers = Vec::new();
        {
            let mut state = self.state.lock();
            let taken = self.inbox.lock().take();
            if taken.has_gap {
                warn!(
                    from = state.dispatched + 1,
                    to = taken.published,
                    "watchers read revisions from the store that were not dispatched"
                );
                state.skip_to(taken.published, &mut wakers);
            } else if let Some(first) = taken.events.first().map(|event| event.kv.mod_revision) {
                let limits = &self.limits;
                let batches = cut(
                    first,
                    taken.published,
                    taken.events,
                    limits.window_revisions,
                    limits.window_bytes,
                );
                for batch in batches {
                    state.deliver(batch, limits, &mut wakers);
                }
            }
            self.dispatched.store(state.dispatched, Ordering::Release);
            let dispatched = state.dispatched;
            let due = state.waiters.extract_if(.., |(revision, _)| *revision <= dispatched);
            wakers.extend(due.map(|(_, waker)| waker));
        }
        wake_all(wakers);
    }
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub").field("dispatched", &self.dispatched()).finish_non_exhaustive()
    }
}

fn wake_all(wakers: Vec<Waker>) {
    for waker in wakers {
        waker.wake();
    }
}
