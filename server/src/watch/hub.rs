//! The hub: takes what was applied, finds who watches it, and leaves word in their mailboxes.
//!
//! The apply path only pushes into the [`Inbox`]. The dispatcher cuts the inbox into batches, matches
//! every event once against all ranges, puts the batch on the ring and leaves one small reference per
//! stream and range. Streams do the rest when their connection takes more bytes (`stream.rs`).
//! A stream that does not keep up finds its references dead or its mailbox full and asks for a
//! *window* of old events instead: from the ring, from recently read windows, or read from the store.
//!
//! Locks: `state` before `inbox` and before a mailbox; never the other way round.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::task::Waker;
use std::time::Duration;

use conclave_state_machine::response::Event;
use conclave_state_machine::watcher_set::{KeyRange, WatcherSet};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::batch::{Batch, cut};
use super::inbox::{Bounds, Inbox};
use super::limits::Limits;
use super::mailbox::{Delivery, End, Mailbox, Post};
use super::ring::Ring;
use super::source::Source;
use super::stream::WatchStream;

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
}

/// What the dispatcher and the streams share.
struct State {
    groups: WatcherSet<Group>,
    next_group: u64,
    next_stream: u64,
    watchers: usize,
    mailboxes: BTreeMap<u64, Arc<Mailbox>>,
    /// Every event up to here is in the mailboxes of those who get it.
    dispatched: i64,
    ring: Ring,
    /// Windows handed out lately, newest last: who asks for the same revisions shares them.
    windows: VecDeque<Arc<Batch>>,
    windows_used: bool,
    reads: VecDeque<ReadRequest>,
    /// Streams that want to know when a revision is dispatched.
    waiters: Vec<(i64, Waker)>,
    is_closed: bool,
    events_total: u64,
}

/// Watchers of one range, whatever stream they are on.
struct Group {
    id: u64,
    /// By stream, with the number of its watchers.
    subscribers: BTreeMap<u64, (Arc<Mailbox>, usize)>,
}

/// A stream that waits for events from the store.
struct ReadRequest {
    mailbox: Arc<Mailbox>,
    from: i64,
}

/// What a stream that is behind shall do.
#[derive(Debug)]
pub(crate) enum Step {
    /// Nothing is left to catch up with: mail follows.
    Joined,
    /// Deliver these; with `joined` mail follows without a gap.
    Window { window: Arc<Batch>, joined: bool },
    /// Wait to be woken.
    Wait,
    /// Look into the mailbox first.
    CheckMail,
    /// The revision asked for is gone; the oldest that can be read is given.
    Compacted(i64),
}

/// Why a watcher cannot be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("conclave: too many watchers on this node (limit {0})")]
    Watchers(usize),
    #[error("etcdserver: server stopped")]
    Stopped,
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
}

impl Hub {
    /// Makes a hub that continues after the revision of `source`; drive it with [`Hub::run`].
    #[must_use]
    pub fn new(source: Arc<dyn Source>, limits: Limits) -> Arc<Self> {
        let revision = source.revision();
        let state = State {
            groups: WatcherSet::default(),
            next_group: 0,
            next_stream: 0,
            watchers: 0,
            mailboxes: BTreeMap::new(),
            dispatched: revision,
            ring: Ring::default(),
            windows: VecDeque::new(),
            windows_used: false,
            reads: VecDeque::new(),
            waiters: Vec::new(),
            is_closed: false,
            events_total: 0,
        };
        Arc::new(Hub {
            source,
            limits,
            inbox: Mutex::new(Inbox::new(revision)),
            inbox_filled: Notify::new(),
            state: Mutex::new(state),
            read_wanted: Notify::new(),
            dispatched: AtomicI64::new(revision),
            is_leaderless: watch::Sender::new(false),
        })
    }

    /// Takes the events that led to revision `head`, in order. Called by apply after the write;
    /// never blocks on watchers. If the events are not exactly those after the revision published
    /// before (a snapshot was installed), watchers read what lies between from the store.
    pub fn publish(&self, events: Vec<Event>, head: i64) {
        let bounds = Bounds { bytes: self.limits.inbox_bytes, events: self.limits.inbox_events };
        if self.inbox.lock().publish(events, head, bounds) {
            self.inbox_filled.notify_one();
        }
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
        }
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

    /// Wakes the stream once `revision` is dispatched; says no if it already is.
    pub(crate) fn wake_when_dispatched(&self, revision: i64, waker: &Waker) -> bool {
        let mut state = self.state.lock();
        if revision <= state.dispatched || state.watchers == 0 {
            return false;
        }
        if !state.waiters.iter().any(|(r, w)| *r == revision && w.will_wake(waker)) {
            state.waiters.push((revision, waker.clone()));
        }
        true
    }

    /// Adds a watcher of `range` on the stream of `mailbox`; returns the group of the range.
    pub(crate) fn subscribe(
        &self,
        mailbox: &Arc<Mailbox>,
        range: &KeyRange,
    ) -> Result<u64, Refusal> {
        let mut state = self.state.lock();
        if state.is_closed {
            return Err(Refusal::Stopped);
        }
        if state.watchers >= self.limits.watchers {
            return Err(Refusal::Watchers(self.limits.watchers));
        }
        if state.watchers == 0 {
            state.dispatched = self.inbox.lock().set_active(true);
            self.dispatched.store(state.dispatched, Ordering::Release);
        }
        state.watchers += 1;
        let id = state.next_group;
        let make = || Group { id, subscribers: BTreeMap::new() };
        let group = state.groups.get_or_insert_with(range, make);
        let subscriber =
            group.subscribers.entry(mailbox.stream).or_insert_with(|| (Arc::clone(mailbox), 0));
        subscriber.1 += 1;
        let group = group.id;
        state.next_group = state.next_group.max(group + 1);
        Ok(group)
    }

    /// Takes `watchers` watchers of `range` off a stream.
    pub(crate) fn unsubscribe(&self, stream: u64, range: &KeyRange, watchers: usize) {
        let mut state = self.state.lock();
        let Some(group) = state.groups.get_mut(range) else { return };
        let Some((_, count)) = group.subscribers.get_mut(&stream) else { return };
        *count -= watchers;
        if *count == 0 {
            group.subscribers.remove(&stream);
        }
        if group.subscribers.is_empty() {
            state.groups.remove(range);
        }
        state.watchers -= watchers;
        if state.watchers == 0 {
            self.inbox.lock().set_active(false);
            state.ring.clear();
            state.windows.clear();
        }
    }

    /// Forgets a stream, whose watchers are already gone.
    pub(crate) fn leave(&self, stream: u64) {
        let mut state = self.state.lock();
        state.mailboxes.remove(&stream);
        state.reads.retain(|request| request.mailbox.stream != stream);
    }

    /// Says how a stream whose oldest watcher needs revision `from` next gets on.
    pub(crate) fn catch_up(&self, mailbox: &Arc<Mailbox>, from: i64) -> Step {
        let mut state = self.state.lock();
        let mut post = mailbox.post.lock();
        // Joining would hide the gap that begins at `missed_from`.
        if post.missed_from.is_some() || post.end.is_some() {
            return Step::CheckMail;
        }
        if from > state.dispatched {
            post.is_lagging = false;
            return Step::Joined;
        }
        if post.is_waiting {
            return Step::Wait;
        }
        if let Some(window) = state.find_window(from, &self.limits) {
            let joined = window.last == state.dispatched;
            post.is_lagging &= !joined;
            return Step::Window { window, joined };
        }
        let compacted = self.source.compacted();
        if from < compacted {
            return Step::Compacted(compacted);
        }
        post.is_waiting = true;
        state.reads.push_back(ReadRequest { mailbox: Arc::clone(mailbox), from });
        self.read_wanted.notify_one();
        Step::Wait
    }

    fn has_reads(&self) -> bool {
        !self.state.lock().reads.is_empty()
    }

    /// Reads a window for the stream that waits longest, and for all others that it covers. Blocks.
    /// Says whether there was one.
    pub(crate) fn serve_read(&self) -> bool {
        let (request, to) = {
            let mut state = self.state.lock();
            let Some(request) = state.reads.pop_front() else { return false };
            // The ring serves what it has.
            let end = state.ring.first().filter(|first| *first > request.from).map(|f| f - 1);
            let to = end.unwrap_or(state.dispatched);
            let reach = request.from.saturating_add(self.limits.window_revisions - 1);
            (request, to.min(reach))
        };
        let from = request.from;
        let outcome = self.read_window(from, to);
        let mut wakers = Vec::new();
        {
            let mut state = self.state.lock();
            let last = match &outcome {
                Ok(Some(window)) => window.last,
                _ => from,
            };
            let mut answer = |mailbox: &Mailbox| {
                let mut post = mailbox.post.lock();
                post.is_waiting = false;
                if let Err(error) = &outcome {
                    post.end.get_or_insert(End::Failed(error.clone()));
                }
                wakers.extend(post.take_waker());
            };
            answer(&request.mailbox);
            state.reads.retain(|waiting| {
                let is_served = (from..=last).contains(&waiting.from);
                if is_served {
                    answer(&waiting.mailbox);
                }
                !is_served
            });
            if let Ok(Some(window)) = outcome {
                state.keep_window(window, self.limits.windows);
            }
        }
        wake_all(wakers);
        true
    }

    /// Returns `None` if a compaction took what was asked for.
    fn read_window(&self, from: i64, to: i64) -> Result<Option<Arc<Batch>>, String> {
        let limits = &self.limits;
        let revisions = usize::try_from(limits.window_revisions).unwrap_or(usize::MAX);
        let events = match self.source.events(from, to, revisions, limits.window_bytes) {
            Ok(Some(events)) => events,
            Ok(None) => return Ok(None),
            Err(error) => {
                error!(from, to, %error, "cannot read history for watchers");
                return Err(error.to_string());
            }
        };
        // The read may have ended early, never within a revision.
        let last = events.last().map_or(to, |event| event.kv.mod_revision);
        Ok(Some(Arc::new(Batch::new(from, last, events))))
    }

    pub(crate) fn forget_windows(&self) {
        let mut state = self.state.lock();
        if !std::mem::take(&mut state.windows_used) {
            state.windows.clear();
        }
    }
}

impl State {
    /// Puts a batch on the ring and word of it into the mailboxes of those who get some of it.
    fn deliver(&mut self, mut batch: Batch, limits: &Limits, wakers: &mut Vec<Waker>) {
        // (group, event) pairs; sorting brings the events of a group together, still in order.
        let mut matches: Vec<(u64, u32, &Group)> = Vec::new();
        for (position, event) in (0u32..).zip(&batch.events) {
            self.groups.matching(event.key(), |group| matches.push((group.id, position, group)));
        }
        matches.sort_unstable_by_key(|(id, position, _)| (*id, *position));
        let runs: Vec<_> = matches.chunk_by(|a, b| a.0 == b.0).collect();
        batch.blocks =
            runs.iter().map(|run| run.iter().map(|(_, position, _)| *position).collect()).collect();
        self.events_total += batch.events.len() as u64;
        let batch = Arc::new(batch);
        for (block, run) in (0u32..).zip(runs) {
            let (group, _, subscribed) = run[0];
            for (mailbox, _) in subscribed.subscribers.values() {
                let delivery = Delivery {
                    group,
                    first: batch.first,
                    last: batch.last,
                    batch: Arc::downgrade(&batch),
                    block,
                };
                wakers.extend(mailbox.post.lock().deliver(delivery, limits.mailbox_deliveries));
            }
        }
        self.dispatched = batch.last;
        self.ring.push(batch, limits.ring_bytes, limits.ring_events);
    }

    /// Goes on after `revision`; what lies between must be read from the store.
    fn skip_to(&mut self, revision: i64, wakers: &mut Vec<Waker>) {
        for mailbox in self.mailboxes.values() {
            wakers.extend(mailbox.post.lock().miss(self.dispatched + 1));
        }
        self.ring.clear();
        self.dispatched = revision;
    }

    /// Returns a window that covers `from`, if there is one in memory.
    fn find_window(&mut self, from: i64, limits: &Limits) -> Option<Arc<Batch>> {
        self.windows_used = true;
        let known = self.windows.iter().rev().find(|window| window.covers(from)).map(Arc::clone);
        // A known window that ends where the ring goes on is served first: the two never overlap by
        // much, and the order of revisions is that of the requests.
        if known.is_some() {
            return known;
        }
        let window = self.ring.window(from, limits.window_revisions, limits.window_bytes)?;
        self.keep_window(Arc::clone(&window), limits.windows);
        Some(window)
    }

    fn keep_window(&mut self, window: Arc<Batch>, windows_max: usize) {
        while self.windows.len() >= windows_max.max(1) {
            self.windows.pop_front();
        }
        self.windows.push_back(window);
        self.windows_used = true;
    }
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub").field("dispatched", &self.dispatched()).finish_non_exhaustive()
    }
}

impl Post {
    /// Drops all mail: the stream catches up instead.
    pub(crate) fn discard(&mut self) {
        self.deliveries.clear();
        self.missed_from = None;
        self.is_lagging = true;
    }
}

fn wake_all(wakers: Vec<Waker>) {
    for waker in wakers {
        waker.wake();
    }
}
