//! Watchers come and go.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Waker;

use conclave_state_machine::watcher_set::KeyRange;

use super::Hub;
use super::state::Group;
use crate::watch::mailbox::Mailbox;

/// How etcd gives a code to the reason of a watcher that it cancels.
const CODE: &str = "rpc error: code = ResourceExhausted desc = conclave";

/// Why a watcher cannot be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("{CODE}: too many watchers on this stream (limit {0}, --max-stream-watchers)")]
    Stream(usize),
    #[error("{CODE}: too many watchers on this connection (limit {0}, --max-connection-watchers)")]
    Connection(usize),
    #[error("{CODE}: too many watchers on this member (limit {0}, --max-watchers)")]
    Member(usize),
    #[error("etcdserver: server stopped")]
    Stopped,
}

impl Hub {
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

    /// Adds a watcher of `range` on the stream of `mailbox`, unless there are `max`; returns the group of the range.
    pub(crate) fn subscribe(
        &self,
        mailbox: &Arc<Mailbox>,
        range: &KeyRange,
        max: usize,
    ) -> Result<u64, Refusal> {
        let mut state = self.state.lock();
        if state.is_closed {
            return Err(Refusal::Stopped);
        }
        if state.watchers >= max {
            return Err(Refusal::Member(max));
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
}
