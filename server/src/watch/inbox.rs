//! What was applied and not yet dispatched: the only part of the hub that the apply path touches.

use conclave_state_machine::response::Event;

use super::batch::event_bytes;

/// Published events that wait for the dispatcher.
#[derive(Debug)]
pub(crate) struct Inbox {
    events: Vec<Event>,
    bytes: usize,
    /// Newest published revision.
    published: i64,
    /// Some published events were dropped; the store still has them.
    has_gap: bool,
    /// Somebody watches; otherwise events are not kept at all.
    is_active: bool,
}

/// What the dispatcher takes out.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) events: Vec<Event>,
    pub(crate) published: i64,
    pub(crate) has_gap: bool,
}

impl Inbox {
    pub(crate) fn new(revision: i64) -> Self {
        let events = Vec::new();
        Inbox { events, bytes: 0, published: revision, has_gap: false, is_active: false }
    }

    /// Adds the events that led to revision `head`; says whether there is something to dispatch.
    pub(crate) fn publish(&mut self, mut events: Vec<Event>, head: i64, limits: Bounds) -> bool {
        if head <= self.published {
            return false;
        }
        let expected = self.published + 1;
        self.published = head;
        if !self.is_active {
            return false;
        }
        // A revision is published once: replayed ones were dispatched before.
        events.retain(|event| event.kv.mod_revision >= expected);
        let first = events.first().map(|event| event.kv.mod_revision);
        let last = events.last().map(|event| event.kv.mod_revision);
        self.bytes += events.iter().map(event_bytes).sum::<usize>();
        let is_whole = first == Some(expected) && last == Some(head);
        let is_full = self.bytes > limits.bytes || self.events.len() + events.len() > limits.events;
        if !is_whole || is_full || self.has_gap {
            self.has_gap = true;
            self.events = Vec::new();
            self.bytes = 0;
        } else if self.events.is_empty() {
            self.events = events;
        } else {
            self.events.append(&mut events);
        }
        true
    }

    pub(crate) fn take(&mut self) -> Taken {
        self.bytes = 0;
        Taken {
            events: std::mem::take(&mut self.events),
            published: self.published,
            has_gap: std::mem::take(&mut self.has_gap),
        }
    }

    /// Starts or stops keeping events; returns the newest revision that will not be dispatched.
    pub(crate) fn set_active(&mut self, is_active: bool) -> i64 {
        self.is_active = is_active;
        self.take().published
    }

    pub(crate) fn pending_events(&self) -> usize {
        self.events.len()
    }
}

/// Upper bounds of a queue of events.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) bytes: usize,
    pub(crate) events: usize,
}
