//! What the hub leaves for one stream: references to batches, never their bytes.

use std::collections::VecDeque;
use std::sync::Weak;
use std::task::{Context, Waker};

use parking_lot::Mutex;

use super::batch::Batch;

/// Events for the watchers of one group on one stream.
#[derive(Debug)]
pub(crate) struct Delivery {
    /// Group of watchers, all of one range.
    pub(crate) group: u64,
    /// First revision of the batch: where to catch up from if the batch is gone.
    pub(crate) first: i64,
    /// Last revision of the batch.
    pub(crate) last: i64,
    /// The batch, unless it fell off the ring.
    pub(crate) batch: Weak<Batch>,
    /// Which of the batch's blocks belongs to the group.
    pub(crate) block: u32,
}

/// Where a stream finds its mail; shared with the hub.
#[derive(Debug)]
pub(crate) struct Mailbox {
    /// Number of the stream.
    pub(crate) stream: u64,
    pub(crate) post: Mutex<Post>,
}

/// The state of a [`Mailbox`].
#[derive(Debug, Default)]
pub(crate) struct Post {
    /// In revision order.
    pub(crate) deliveries: VecDeque<Delivery>,
    /// First revision that was not delivered because the queue was full or the hub lost events.
    pub(crate) missed_from: Option<i64>,
    /// Nothing is delivered until the stream has caught up.
    pub(crate) is_lagging: bool,
    /// A read of old events is under way for this stream.
    pub(crate) is_waiting: bool,
    /// The hub stopped, or could not read old events.
    pub(crate) end: Option<End>,
    waker: Option<Waker>,
}

/// Why a stream must end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The server stops.
    Stopped,
    /// The node cannot read its history.
    Failed(String),
}

impl Mailbox {
    pub(crate) fn new(stream: u64) -> Self {
        Mailbox { stream, post: Mutex::default() }
    }
}

impl Post {
    /// Leaves a delivery; when the queue is full, the stream has to catch up from here.
    pub(crate) fn deliver(&mut self, delivery: Delivery, queue_max: usize) -> Option<Waker> {
        if self.is_lagging {
            return None;
        }
        if self.deliveries.len() >= queue_max {
            return self.miss(delivery.first);
        }
        self.deliveries.push_back(delivery);
        self.waker.take()
    }

    /// Says that revisions from `revision` on were not delivered.
    pub(crate) fn miss(&mut self, revision: i64) -> Option<Waker> {
        if self.is_lagging {
            return None;
        }
        self.is_lagging = true;
        self.missed_from = Some(revision);
        self.waker.take()
    }

    /// Drops all mail: the stream catches up instead.
    pub(crate) fn discard(&mut self) {
        self.deliveries.clear();
        self.missed_from = None;
        self.is_lagging = true;
    }

    /// Ends the stream.
    pub(crate) fn finish(&mut self, end: End) -> Option<Waker> {
        self.end.get_or_insert(end);
        self.waker.take()
    }

    pub(crate) fn take_waker(&mut self) -> Option<Waker> {
        self.waker.take()
    }

    /// Asks to be woken by the next change.
    pub(crate) fn wake_me(&mut self, cx: &Context<'_>) {
        if !self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            self.waker = Some(cx.waker().clone());
        }
    }
}
