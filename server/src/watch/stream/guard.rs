//! Rights of a stream's watchers: asked for when one is created, and again whenever they may have
//! changed, before anything more is delivered.

use std::fmt::Debug;

use conclave_proto::etcdserverpb::WatchResponse;
use conclave_state_machine::watcher_set::KeyRange;

use super::{Output, WatchStream};

/// Knows what the client of one stream may watch.
pub trait Guard: Debug + Send {
    /// Another number as soon as an answer of [`Guard::check`] or [`Guard::admit`] may be another one. By the time an event
    /// is dispatched it speaks of everything that was applied before the event.
    fn state(&self) -> u64;

    /// Whether a new watcher may watch `range`.
    ///
    /// # Errors
    /// The reason for the client.
    fn admit(&self, range: &KeyRange) -> Result<(), String>;

    /// Whether `range` may be watched by who does so already.
    ///
    /// # Errors
    /// The reason for the client.
    fn check(&self, range: &KeyRange) -> Result<(), String>;
}

/// A guard and when it was last asked about all watchers.
#[derive(Debug)]
pub(super) struct Guarded {
    guard: Box<dyn Guard>,
    seen: u64,
}

impl WatchStream {
    /// Asks `guard` about every watcher from now on; before the first one is created.
    pub fn guard(&mut self, guard: Box<dyn Guard>) {
        let seen = guard.state();
        self.guarded = Some(Guarded { guard, seen });
    }

    pub(super) fn admit_range(&self, range: &KeyRange) -> Result<(), String> {
        self.guarded.as_ref().map_or(Ok(()), |guarded| guarded.guard.admit(range))
    }

    /// Cancels the watchers whose client may not watch their range any more.
    pub(super) fn check_rights(&mut self, out: &mut Output) {
        let Some(guarded) = &mut self.guarded else { return };
        let state = guarded.guard.state();
        if std::mem::replace(&mut guarded.seen, state) == state {
            return;
        }
        let mut refused = Vec::new();
        for members in self.groups.values() {
            if let Err(reason) = guarded.guard.check(&members.range) {
                refused.extend(members.list.iter().map(|member| (member.id, reason.clone())));
            }
        }
        // By id, so that the order is the same every time.
        refused.sort();
        for (id, reason) in refused {
            self.cancel_for(id, reason, out);
        }
    }

    fn cancel_for(&mut self, id: i64, reason: String, out: &mut Output) {
        self.remove(id);
        let revision = self.hub.source().revision();
        out.control(&WatchResponse {
            header: Some(self.hub.source().header(revision)),
            watch_id: id,
            canceled: true,
            cancel_reason: reason,
            ..WatchResponse::default()
        });
    }
}
