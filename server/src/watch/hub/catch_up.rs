//! Streams that are behind get windows of old events, from memory or read from the store.

use std::sync::Arc;

use conclave_raft_store::EventSpan;
use tracing::error;

use super::state::{Need, ReadRequest};
use super::{Hub, wake_all};
use crate::watch::batch::Batch;
use crate::watch::mailbox::{End, Mailbox};

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

impl Hub {
    /// Says how a stream gets on whose oldest watcher needs this next.
    pub(crate) fn catch_up(&self, mailbox: &Arc<Mailbox>, need: Need) -> Step {
        let from = need.from;
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
        if let Some(window) = state.find_window(need, &self.limits) {
            let joined = window.last == state.dispatched;
            post.is_lagging &= !joined;
            return Step::Window { window, joined };
        }
        let compacted = self.source.compacted();
        if from < compacted {
            return Step::Compacted(compacted);
        }
        post.is_waiting = true;
        state.reads.push_back(ReadRequest { mailbox: Arc::clone(mailbox), need });
        self.read_wanted.notify_one();
        Step::Wait
    }

    pub(super) fn has_reads(&self) -> bool {
        !self.state.lock().reads.is_empty()
    }

    /// Reads a window for the stream that waits longest, and for all others that it covers. Blocks.
    /// Says whether there was one.
    pub(crate) fn serve_read(&self) -> bool {
        let (request, to) = {
            let mut state = self.state.lock();
            let Some(request) = state.reads.pop_front() else { return false };
            // The ring serves what it has.
            let from = request.need.from;
            let end = state.ring.first().filter(|first| *first > from).map(|f| f - 1);
            let to = end.unwrap_or(state.dispatched);
            let reach = from.saturating_add(self.limits.window_revisions - 1);
            (request, to.min(reach))
        };
        let Need { from, prev_kv } = request.need;
        let outcome = self.read_window(request.need, to);
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
                let is_enough = prev_kv || !waiting.need.prev_kv;
                let is_served = is_enough && (from..=last).contains(&waiting.need.from);
                if is_served {
                    answer(&waiting.mailbox);
                }
                !is_served
            });
            if let Ok(Some(window)) = outcome {
                state.keep_window(window, &self.limits);
            }
        }
        wake_all(wakers);
        true
    }

    /// Returns `None` if a compaction took what was asked for.
    fn read_window(&self, need: Need, to: i64) -> Result<Option<Arc<Batch>>, String> {
        let Need { from, prev_kv } = need;
        let revisions_max = usize::try_from(self.limits.window_revisions).unwrap_or(usize::MAX);
        let (bytes_max, prev_of) = (self.limits.window_bytes, prev_kv.then_some(&[][..]));
        let span = EventSpan { from, to, revisions_max, bytes_max, prev_of };
        let events = match self.source.events(span) {
            Ok(Some(events)) => events,
            Ok(None) => return Ok(None),
            Err(error) => {
                error!(from, to, %error, "cannot read history for watchers");
                return Err(error.to_string());
            }
        };
        // The read may have ended early, never within a revision.
        let last = events.last().map_or(to, |event| event.kv.mod_revision);
        let mut window = Batch::new(from, last, events);
        window.has_prev = prev_kv;
        Ok(Some(Arc::new(window)))
    }

    pub(crate) fn forget_windows(&self) {
        let mut state = self.state.lock();
        if !std::mem::take(&mut state.windows_used) {
            state.windows.clear();
        }
    }
}
