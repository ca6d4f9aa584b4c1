//! Tracks which waiters on this member wait for which queue, and tells them when their turn comes.
//!
//! Apply only notes which of the awaited names changed. One task then reads the holders of each
//! changed name and notifies only the waiters whose turn changed, so a queue of a thousand costs no
//! more than a queue of one. After a snapshot every awaited name counts as changed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use conclave_raft_store::Reader;
use conclave_state_machine::locks::queue::{self, Place};
use conclave_state_machine::response::Event;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::streams::Streams;

/// Most waiting streams on one member.
const WAITERS_MAX: usize = 100_000;

/// The state of a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Others are ahead.
    Waiting,
    /// The session holds the name with this fence, at the latest since this revision.
    Held { fence: i64, session: i64, revision: i64 },
    /// Its key is gone.
    Gone,
}

/// The first place of a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct First {
    pub(crate) place: Place,
    /// As of which this is known; not by itself a change.
    pub(crate) revision: i64,
}

/// Too many streams wait on this member.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("too many waiters")]
pub(crate) struct TooMany;

/// All waiters of one member.
#[derive(Default)]
pub(crate) struct Turns {
    names: Mutex<Names>,
    /// Number of entries in `names`: lets apply see without a lock that nobody waits.
    awaited: AtomicUsize,
    waiters: AtomicUsize,
    changed: Notify,
    streams: Streams,
}

/// The names that are waited for.
#[derive(Default)]
struct Names {
    awaited: HashMap<Bytes, Awaited>,
    /// Names to be read again, each once, so that the cost depends on the number of changed names
    /// and not on the number of waiters.
    changed: Vec<Bytes>,
    /// Number of the newest follower of any name.
    last: u64,
}

impl Names {
    /// Marks a name as changed; `None` if nobody waits for it.
    fn mark(&mut self, name: &[u8]) -> Option<&mut Awaited> {
        let awaited = self.awaited.get_mut(name)?;
        if !std::mem::replace(&mut awaited.is_changed, true) {
            self.changed.push(Bytes::copy_from_slice(name));
        }
        Some(awaited)
    }
}

/// A name that is waited for.
struct Awaited {
    /// `None` while nobody holds, or nothing is known yet.
    first: watch::Sender<Option<First>>,
    /// Followers by key of the place, then by follower number.
    places: BTreeMap<Bytes, BTreeMap<u64, watch::Sender<Turn>>>,
    /// Keys of places whose state is to be read again.
    touched: BTreeSet<Bytes>,
    is_changed: bool,
}

impl Default for Awaited {
    fn default() -> Self {
        let (first, _) = watch::channel(None);
        let (places, touched) = (BTreeMap::new(), BTreeSet::new());
        Self { first, places, touched, is_changed: false }
    }
}

impl Turns {
    /// The source of numbers for the streams that wait here.
    pub(crate) fn streams(&self) -> &Streams {
        &self.streams
    }

    /// Notes the applied events. Blocks for no longer than the lock of the names is held.
    pub(crate) fn note(&self, events: &[Event]) {
        if events.is_empty() || self.awaited.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut is_any = false;
        let mut names = self.names.lock();
        for event in events {
            let key = &event.kv.key;
            let Some(awaited) = queue::name_of(key).and_then(|name| names.mark(name)) else {
                continue;
            };
            is_any = true;
            if awaited.places.contains_key(key) {
                awaited.touched.insert(key.clone());
            }
        }
        drop(names);
        if is_any {
            self.changed.notify_one();
        }
    }

    /// Marks everything as changed: a snapshot replaced the state.
    pub(crate) fn note_all(&self) {
        let Names { awaited, changed, .. } = &mut *self.names.lock();
        for awaited in awaited.values_mut() {
            awaited.is_changed = true;
            awaited.touched = awaited.places.keys().cloned().collect();
        }
        *changed = awaited.keys().cloned().collect();
        self.changed.notify_one();
    }

    /// Notifies waiters until `shutdown`.
    pub(crate) async fn run(self: Arc<Self>, reader: Reader, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.changed.notified() => self.tell(&reader),
            }
        }
    }

    fn tell(&self, reader: &Reader) {
        let (changed, last): (Vec<(Bytes, BTreeSet<Bytes>)>, u64) = {
            let Names { awaited, changed, last } = &mut *self.names.lock();
            let take = |name: Bytes| {
                // Nobody may wait for it any more.
                let awaited = awaited.get_mut(&name)?;
                awaited.is_changed = false;
                Some((name, std::mem::take(&mut awaited.touched)))
            };
            (std::mem::take(changed).into_iter().filter_map(take).collect(), *last)
        };
        for (name, touched) in changed {
            match reader.holders(&name) {
                Ok((holders, revision)) => {
                    let others = others(reader, &name, &holders, touched);
                    if let Some(awaited) = self.names.lock().awaited.get(&name) {
                        // Followers that came after the read are not told: a key they follow may
                        // have been another's then.
                        awaited.tell(last, &holders, others, revision);
                    }
                }
                // Apply reads the same rows and stops the member with the reason.
                Err(error) => tracing::error!(%error, "cannot read who holds a lock"),
            }
        }
    }

    /// Follows the place `key` of `name`.
    ///
    /// # Errors
    /// [`TooMany`].
    pub(crate) fn follow(
        self: &Arc<Self>,
        name: &Bytes,
        key: &Bytes,
    ) -> Result<Following, TooMany> {
        let (sender, receiver) = watch::channel(Turn::Waiting);
        let (number, first) = self.enter(name, |awaited, number| {
            awaited.places.entry(key.clone()).or_default().insert(number, sender);
            awaited.touched.insert(key.clone());
        })?;
        Ok(Following {
            receiver,
            first,
            turns: Arc::clone(self),
            name: name.clone(),
            key: key.clone(),
            number,
        })
    }

    /// Counts a stream that waits for something other than a turn.
    ///
    /// # Errors
    /// [`TooMany`].
    pub(crate) fn admit(self: &Arc<Self>) -> Result<Admitted, TooMany> {
        self.count()?;
        Ok(Admitted { turns: Arc::clone(self) })
    }

    fn count(&self) -> Result<(), TooMany> {
        if self.waiters.fetch_add(1, Ordering::Relaxed) >= WAITERS_MAX {
            self.waiters.fetch_sub(1, Ordering::Relaxed);
            return Err(TooMany);
        }
        Ok(())
    }

    fn enter(
        &self,
        name: &Bytes,
        add: impl FnOnce(&mut Awaited, u64),
    ) -> Result<(u64, watch::Receiver<Option<First>>), TooMany> {
        self.count()?;
        let mut names = self.names.lock();
        names.last += 1;
        let number = names.last;
        names.awaited.entry(name.clone()).or_default();
        // Changes applied before this moment were not noted, so the name is read once.
        let awaited = names.mark(name).expect("it was entered just now");
        add(awaited, number);
        let mut first = awaited.first.subscribe();
        if first.borrow().is_some() {
            // Known from other followers already: tell this one, too.
            first.mark_changed();
        }
        self.awaited.store(names.awaited.len(), Ordering::Release);
        drop(names);
        self.changed.notify_one();
        Ok((number, first))
    }

    /// Number of places of `name` that are followed on this member.
    pub(crate) fn places(&self, name: &Bytes) -> usize {
        self.names.lock().awaited.get(name).map_or(0, |awaited| awaited.places.len())
    }

    fn leave(&self, name: &Bytes, key: &Bytes, number: u64) {
        self.waiters.fetch_sub(1, Ordering::Relaxed);
        let mut names = self.names.lock();
        let Some(awaited) = names.awaited.get_mut(name) else { return };
        if let Some(followers) = awaited.places.get_mut(key) {
            followers.remove(&number);
            if followers.is_empty() {
                awaited.places.remove(key);
            }
        }
        if awaited.places.is_empty() {
            names.awaited.remove(name);
        }
        self.awaited.store(names.awaited.len(), Ordering::Release);
    }
}

/// The states of the touched places that do not hold.
fn others(
    reader: &Reader,
    name: &[u8],
    holders: &[Place],
    touched: BTreeSet<Bytes>,
) -> Vec<(Bytes, Turn)> {
    let turn = |key: &Bytes| match holders.iter().find(|place| place.key == *key) {
        Some(place) => place.is_lost().then_some(Turn::Gone),
        // Unreadable rows stop the member elsewhere.
        None if queue::is_place(reader, name, key).unwrap_or(true) => Some(Turn::Waiting),
        None => Some(Turn::Gone),
    };
    touched.into_iter().filter_map(|key| turn(&key).map(|turn| (key, turn))).collect()
}

impl Awaited {
    /// Tells the followers numbered up to `last`, which existed before the read.
    fn tell(&self, last: u64, holders: &[Place], others: Vec<(Bytes, Turn)>, revision: i64) {
        for place in holders.iter().filter(|place| !place.is_lost()) {
            let Place { fence, session, .. } = *place;
            self.set(last, &place.key, Turn::Held { fence, session, revision });
        }
        for (key, turn) in others {
            self.set(last, &key, turn);
        }
        let first = holders.first().filter(|place| !place.is_lost());
        self.first.send_if_modified(|known| {
            let is_new = known.as_ref().map(|known| &known.place) != first;
            if is_new {
                *known = first.map(|place| First { place: place.clone(), revision });
            }
            is_new
        });
    }

    fn set(&self, last: u64, key: &Bytes, turn: Turn) {
        let followers = self.places.get(key).into_iter().flat_map(|all| all.range(..=last));
        for (_, follower) in followers {
            follower.send_if_modified(|known| {
                let is_new = match (&*known, turn) {
                    (
                        Turn::Held { fence, session, .. },
                        Turn::Held { fence: now, session: of, .. },
                    ) => (*fence, *session) != (now, of),
                    (known, turn) => *known != turn,
                };
                if is_new {
                    *known = turn;
                }
                is_new
            });
        }
    }
}

/// A stream that waits for something other than a turn; counts until dropped.
pub(crate) struct Admitted {
    turns: Arc<Turns>,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.turns.waiters.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A follower of one place; stops following when dropped.
pub(crate) struct Following {
    pub(crate) receiver: watch::Receiver<Turn>,
    /// The first place of the same queue.
    pub(crate) first: watch::Receiver<Option<First>>,
    turns: Arc<Turns>,
    name: Bytes,
    key: Bytes,
    number: u64,
}

impl Drop for Following {
    fn drop(&mut self) {
        self.turns.leave(&self.name, &self.key, self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(key: &Bytes, fence: i64) -> Place {
        let (key, value, claim) = (key.clone(), Bytes::new(), None);
        Place { key, fence, mod_revision: fence, version: 1, session: 1, value, claim }
    }

    #[test]
    fn what_was_read_before_somebody_came_is_not_told_to_it() {
        let turns = Arc::new(Turns::default());
        let (name, key) = (Bytes::from_static(b"n"), Bytes::from_static(b"n/1"));
        let tell = |last, turn| {
            let (holders, others) = match turn {
                Turn::Held { fence, .. } => (vec![place(&key, fence)], Vec::new()),
                other => (Vec::new(), vec![(key.clone(), other)]),
            };
            turns.names.lock().awaited[&name].tell(last, &holders, others, 20);
        };
        let read = |follower: &Following| *follower.receiver.borrow();
        let resigned = turns.follow(&name, &key).unwrap();
        let last = turns.names.lock().last;
        let led = Turn::Held { fence: 10, session: 1, revision: 20 };
        let again = turns.follow(&name, &key).unwrap();
        tell(last, led);
        assert_eq!((read(&resigned), read(&again)), (led, Turn::Waiting));
        drop(resigned);
        drop(again);
        let again = turns.follow(&name, &key).unwrap();
        tell(last, Turn::Gone);
        assert_eq!(read(&again), Turn::Waiting, "the numbers go on when nobody waits");
    }
}
