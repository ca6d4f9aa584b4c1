//! Who on this member waits for which queue, and whose turn it is.
//!
//! Apply only notes which of the awaited names changed; one task asks the store who holds each of them
//! and tells those, and only those, whose turn changed: a queue of a thousand costs no more than one.
//! After a snapshot every awaited name counts as changed.

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

/// Waiting streams of one member.
const WAITERS_MAX: usize = 100_000;

/// How a place stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Behind others.
    Waiting,
    /// It holds, with this fence, as of this revision at the latest.
    Held { fence: i64, revision: i64 },
    /// Its key is gone.
    Gone,
}

/// Who is first of a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct First {
    pub(crate) place: Place,
    /// As of which this is known; not by itself a change.
    pub(crate) revision: i64,
}

/// Too many wait on this member.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("too many waiters")]
pub(crate) struct TooMany;

/// All waiting of one member.
#[derive(Default)]
pub(crate) struct Turns {
    names: Mutex<Names>,
    /// Entries of `names`, so that apply need not lock to find that nobody waits.
    awaited: AtomicUsize,
    waiters: AtomicUsize,
    changed: Notify,
}

/// The names that somebody waits for.
#[derive(Default)]
struct Names {
    awaited: HashMap<Bytes, Awaited>,
    /// Those whose state is to be asked for, each once: what that costs goes by what changed, not by how
    /// many wait.
    changed: Vec<Bytes>,
}

impl Names {
    /// Marks a name, and says whether somebody waits for it.
    fn mark(&mut self, name: &[u8]) -> Option<&mut Awaited> {
        let awaited = self.awaited.get_mut(name)?;
        if !std::mem::replace(&mut awaited.is_changed, true) {
            self.changed.push(Bytes::copy_from_slice(name));
        }
        Some(awaited)
    }
}

/// A name that somebody waits for.
struct Awaited {
    /// `None` while nobody is, or nothing is known yet.
    first: watch::Sender<Option<First>>,
    /// By key of the place, then by number.
    places: BTreeMap<Bytes, BTreeMap<u64, watch::Sender<Turn>>>,
    next: u64,
    /// Keys of places whose state is to be asked for.
    touched: BTreeSet<Bytes>,
    is_changed: bool,
}

impl Default for Awaited {
    fn default() -> Self {
        let (first, _) = watch::channel(None);
        let (places, touched) = (BTreeMap::new(), BTreeSet::new());
        Self { first, places, next: 0, touched, is_changed: false }
    }
}

impl Turns {
    /// Notes what was applied. Never blocks.
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

    /// Something unknown happened: a snapshot replaced the state.
    pub(crate) fn note_all(&self) {
        let Names { awaited, changed } = &mut *self.names.lock();
        for awaited in awaited.values_mut() {
            awaited.is_changed = true;
            awaited.touched = awaited.places.keys().cloned().collect();
        }
        *changed = awaited.keys().cloned().collect();
        self.changed.notify_one();
    }

    /// Tells who waits until `shutdown`.
    pub(crate) async fn run(self: Arc<Self>, reader: Reader, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.changed.notified() => self.tell(&reader),
            }
        }
    }

    fn tell(&self, reader: &Reader) {
        let changed: Vec<(Bytes, BTreeSet<Bytes>)> = {
            let Names { awaited, changed } = &mut *self.names.lock();
            let take = |name: Bytes| {
                // Nobody may wait for it any more.
                let awaited = awaited.get_mut(&name)?;
                awaited.is_changed = false;
                Some((name, std::mem::take(&mut awaited.touched)))
            };
            std::mem::take(changed).into_iter().filter_map(take).collect()
        };
        for (name, touched) in changed {
            match reader.holders(&name) {
                Ok((holders, revision)) => {
                    let others = others(reader, &name, &holders, touched);
                    if let Some(awaited) = self.names.lock().awaited.get(&name) {
                        awaited.tell(&holders, others, revision);
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

    /// Counts one who waits for something else than a turn.
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
        names.awaited.entry(name.clone()).or_default();
        // Whatever was applied before this moment is not noted: it is asked for.
        let awaited = names.mark(name).expect("it was entered just now");
        awaited.next += 1;
        let number = awaited.next;
        add(awaited, number);
        let mut first = awaited.first.subscribe();
        if first.borrow().is_some() {
            // Others know already; this one is to hear of it.
            first.mark_changed();
        }
        self.awaited.store(names.awaited.len(), Ordering::Release);
        drop(names);
        self.changed.notify_one();
        Ok((number, first))
    }

    /// Places of `name` that somebody on this member follows.
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

/// How those of the touched places stand that do not hold.
fn others(
    reader: &Reader,
    name: &[u8],
    holders: &[Place],
    touched: BTreeSet<Bytes>,
) -> Vec<(Bytes, Turn)> {
    let turn = |key: &Bytes| match holders.iter().find(|place| place.key == *key) {
        Some(place) => place.is_lost().then_some(Turn::Gone),
        // What cannot be read stops the member elsewhere.
        None if queue::is_place(reader, name, key).unwrap_or(true) => Some(Turn::Waiting),
        None => Some(Turn::Gone),
    };
    touched.into_iter().filter_map(|key| turn(&key).map(|turn| (key, turn))).collect()
}

impl Awaited {
    fn tell(&self, holders: &[Place], others: Vec<(Bytes, Turn)>, revision: i64) {
        for place in holders.iter().filter(|place| !place.is_lost()) {
            self.set(&place.key, Turn::Held { fence: place.fence, revision });
        }
        for (key, turn) in others {
            self.set(&key, turn);
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

    fn set(&self, key: &Bytes, turn: Turn) {
        for follower in self.places.get(key).into_iter().flat_map(BTreeMap::values) {
            follower.send_if_modified(|known| {
                let is_new = match (&*known, turn) {
                    (Turn::Held { fence, .. }, Turn::Held { fence: now, .. }) => *fence != now,
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

/// One who waits for something else than a turn; counts until it is dropped.
pub(crate) struct Admitted {
    turns: Arc<Turns>,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.turns.waiters.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One who waits; leaves when dropped.
pub(crate) struct Following {
    pub(crate) receiver: watch::Receiver<Turn>,
    /// The first of the same queue.
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
