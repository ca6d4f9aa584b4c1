//! Streams that are behind get windows of old events, from memory or read from the store.

use std::sync::Arc;

use tracing::error;

use super::state::ReadRequest;
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
