//! What the dispatcher and the streams share: who watches what, and the events that are in memory.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::task::Waker;

use conclave_state_machine::watcher_set::WatcherSet;

use crate::watch::batch::Batch;
use crate::watch::limits::Limits;
use crate::watch::mailbox::{Delivery, Mailbox};
use crate::watch::ring::Ring;

/// What the dispatcher and the streams share.
pub(super) struct State {
    pub(super) groups: WatcherSet<Group>,
    pub(super) next_group: u64,
    pub(super) next_stream: u64,
    pub(super) watchers: usize,
    pub(super) mailboxes: BTreeMap<u64, Arc<Mailbox>>,
    /// Every event up to here is in the mailboxes of those who get it.
    pub(super) dispatched: i64,
    pub(super) ring: Ring,
    /// Windows handed out lately, newest last: who asks for the same revisions shares them.
    pub(super) windows: VecDeque<Arc<Batch>>,
    pub(super) windows_used: bool,
    pub(super) reads: VecDeque<ReadRequest>,
    /// Streams that want to know when a revision is dispatched.
    pub(super) waiters: Vec<(i64, Waker)>,
    pub(super) is_closed: bool,
    pub(super) events_total: u64,
}

/// Watchers of one range, whatever stream they are on.
pub(super) struct Group {
    pub(super) id: u64,
    /// By stream, with the number of its watchers.
    pub(super) subscribers: BTreeMap<u64, (Arc<Mailbox>, usize)>,
}

/// A stream that waits for events from the store.
pub(super) struct ReadRequest {
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) need: Need,
}

/// Which old events a stream asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Need {
    /// First revision.
    pub(crate) from: i64,
    /// With the state before each: it may be far more than the events.
    pub(crate) prev_kv: bool,
}

impl Need {
    /// Whether `window` has the first of these events.
    pub(super) fn is_met_by(self, window: &Batch) -> bool {
        window.covers(self.from) && (window.has_prev || !self.prev_kv)
    }
}

impl State {
    /// Nobody watches, and everything up to `revision` is over.
    pub(super) fn new(revision: i64) -> Self {
        Self {
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
        }
    }

    /// Puts a batch on the ring and word of it into the mailboxes of those who get some of it.
    pub(super) fn deliver(&mut self, mut batch: Batch, limits: &Limits, wakers: &mut Vec<Waker>) {
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
    pub(super) fn skip_to(&mut self, revision: i64, wakers: &mut Vec<Waker>) {
        for mailbox in self.mailboxes.values() {
            wakers.extend(mailbox.post.lock().miss(self.dispatched + 1));
        }
        self.ring.clear();
        self.dispatched = revision;
    }

    /// Returns a window that begins what is needed, if there is one in memory.
    pub(super) fn find_window(&mut self, need: Need, limits: &Limits) -> Option<Arc<Batch>> {
        self.windows_used = true;
        let known = self.windows.iter().rev().find(|window| need.is_met_by(window)).map(Arc::clone);
        // A known window that ends where the ring goes on is served first: the two never overlap by
        // much, and the order of revisions is that of the requests.
        if known.is_some() {
            return known;
        }
        let window = self.ring.window(need.from, limits.window_revisions, limits.window_bytes)?;
        self.keep_window(Arc::clone(&window), limits);
        Some(window)
    }

    pub(super) fn keep_window(&mut self, window: Arc<Batch>, limits: &Limits) {
        let mut bytes =
            self.windows.iter().map(|window| window.bytes).sum::<usize>() + window.bytes;
        while self.windows.len() >= limits.windows.max(1) || bytes > limits.windows_bytes {
            let Some(oldest) = self.windows.pop_front() else { break };
            bytes -= oldest.bytes;
        }
        self.windows.push_back(window);
        self.windows_used = true;
    }
}
