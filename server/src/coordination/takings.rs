//! Tells sessions that are kept alive through this member what others took from them.
//!
//! A holder hears of the end of its own session and knows what it releases itself. If an operator
//! breaks its lock, or somebody deletes the key by hand, it would find out only by asking. So a
//! stream that follows its sessions here is told; this costs apply one look at each change of a
//! leased key. What was taken before a session was followed is not told, so a client asks once when
//! it begins to follow.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use conclave_proto::v1;
use conclave_state_machine::locks::claim::Claim;
use conclave_state_machine::response::{
    Applied, Event, EventKind, KeyValue, LeaseChange, LockResponse, Response,
};
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Most recent breaks that are remembered with who made them; streams that end because of one
/// report that.
const BROKEN_MAX: usize = 256;
/// Most taken places that wait to be told to one stream; beyond that, the holder is told to ask.
const TAKEN_MAX: usize = 1_024;

/// The followers of each session on one member.
#[derive(Default)]
pub(crate) struct Takings {
    followers: Mutex<HashMap<i64, Vec<Arc<Inbox>>>>,
    /// Number of entries in `followers`: lets apply see without a lock that nobody follows.
    followed: AtomicUsize,
    broken: Mutex<VecDeque<(Bytes, i64, v1::Broken)>>,
}

/// What one stream is still to be told.
#[derive(Default)]
struct Inbox {
    told: Mutex<Told>,
    changed: Notify,
}

/// What happened to the sessions of a stream.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Told {
    pub(crate) taken: Vec<v1::PlaceTaken>,
    /// Sessions that ended.
    pub(crate) ended: Vec<i64>,
    /// More places may have been taken; the holder has to ask.
    pub(crate) is_unsure: bool,
}

impl Inbox {
    fn tell(&self, add: impl FnOnce(&mut Told)) {
        add(&mut self.told.lock());
        self.changed.notify_one();
    }
}

impl Told {
    fn take(&mut self, taken: v1::PlaceTaken) {
        if self.taken.len() < TAKEN_MAX {
            self.taken.push(taken);
        } else {
            self.is_unsure = true;
        }
    }
}

impl Takings {
    /// Notes what was applied. Blocks for no longer than the locks of this struct are held.
    pub(crate) fn note(&self, result: &Applied) {
        let broken = match &result.outcome {
            Ok(Response::Lock(LockResponse::Seized { places, by, reason })) => {
                let broken = v1::Broken { by: by.clone(), reason: reason.clone() };
                let mut known = self.broken.lock();
                let places = places.iter().map(|place| (place.key.clone(), place.fence));
                known.extend(places.map(|(key, fence)| (key, fence, broken.clone())));
                let excess = known.len().saturating_sub(BROKEN_MAX);
                known.drain(..excess);
                Some(broken)
            }
            // What holders and waiters do to their own places.
            Ok(Response::Lock(_)) => return,
            _ => None,
        };
        if self.followed.load(Ordering::Acquire) == 0 {
            return;
        }
        if result.lack_prev {
            self.note_all();
        }
        let ended = self.note_ended(&result.leases);
        for event in &result.events {
            if let Some(place) = taken_from(event).filter(|place| !ended.contains(&place.lease)) {
                self.note_taken(place, broken.as_ref());
            }
        }
    }

    /// Tells of ended sessions and returns the followed ones among them: their places ended with
    /// them.
    fn note_ended(&self, leases: &[LeaseChange]) -> BTreeSet<i64> {
        let mut ended = BTreeSet::new();
        for change in leases {
            let LeaseChange::Ended { id } = change else { continue };
            for inbox in self.followers.lock().get(id).into_iter().flatten() {
                inbox.tell(|told| told.ended.push(*id));
                ended.insert(*id);
            }
        }
        ended
    }

    fn note_taken(&self, place: &KeyValue, broken: Option<&v1::Broken>) {
        let followers = self.followers.lock();
        let Some(inboxes) = followers.get(&place.lease) else { return };
        // Keys that are no lock places have no holder, and candidates have streams of their own.
        let Some(claim) = Claim::decode(&place.value) else { return };
        let taken = v1::PlaceTaken {
            session: place.lease,
            key: place.key.clone(),
            fence: place.create_revision,
            request_ids: claim.requests,
            broken: broken.cloned(),
        };
        for inbox in inboxes {
            inbox.tell(|told| told.take(taken.clone()));
        }
    }

    /// Marks everything as uncertain: a snapshot replaced the state, or previous values of deleted
    /// keys are missing.
    pub(crate) fn note_all(&self) {
        for inbox in self.followers.lock().values().flatten() {
            inbox.tell(|told| told.is_unsure = true);
        }
    }

    /// Who broke a place and why, if this member applied that lately. The place had this `fence`,
    /// or a later one if it was moved meanwhile.
    pub(crate) fn broken(&self, key: &[u8], fence: i64) -> Option<v1::Broken> {
        let broken = self.broken.lock();
        let is_it = |known: &&(Bytes, i64, v1::Broken)| known.0 == key && known.1 >= fence;
        broken.iter().rev().find(is_it).map(|known| known.2.clone())
    }

    /// Starts to follow; no sessions at first.
    pub(crate) fn follow(self: &Arc<Self>) -> Followed {
        Followed { takings: Arc::clone(self), inbox: Arc::default(), sessions: BTreeSet::new() }
    }
}

/// The place, as it was before, that a session loses by a change of its key.
fn taken_from(event: &Event) -> Option<&KeyValue> {
    let place = event.prev_kv.as_ref().filter(|prev| prev.lease != 0)?;
    let is_taken = event.kind == EventKind::Delete || event.kv.lease != place.lease;
    is_taken.then_some(place)
}

/// The sessions that one stream follows, until dropped.
pub(crate) struct Followed {
    takings: Arc<Takings>,
    inbox: Arc<Inbox>,
    sessions: BTreeSet<i64>,
}

impl Followed {
    /// Follows exactly these sessions from now on.
    pub(crate) fn set(&mut self, sessions: &[i64]) {
        let sessions = sessions.iter().copied().collect();
        let mut followers = self.takings.followers.lock();
        for id in self.sessions.difference(&sessions) {
            leave(&mut followers, *id, &self.inbox);
        }
        for id in sessions.difference(&self.sessions) {
            followers.entry(*id).or_default().push(Arc::clone(&self.inbox));
        }
        self.takings.followed.store(followers.len(), Ordering::Release);
        drop(followers);
        self.sessions = sessions;
    }

    /// Waits for something to tell. Cancel-safe.
    pub(crate) async fn next(&self) -> Told {
        loop {
            let told = std::mem::take(&mut *self.inbox.told.lock());
            if told != Told::default() {
                return told;
            }
            self.inbox.changed.notified().await;
        }
    }
}

fn leave(followers: &mut HashMap<i64, Vec<Arc<Inbox>>>, id: i64, inbox: &Arc<Inbox>) {
    let Some(inboxes) = followers.get_mut(&id) else { return };
    inboxes.retain(|one| !Arc::ptr_eq(one, inbox));
    if inboxes.is_empty() {
        followers.remove(&id);
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.set(&[]);
    }
}

#[cfg(test)]
mod tests {
    use conclave_state_machine::response::Taken;
    use futures::FutureExt;

    use super::*;

    fn deleted(key: &str, lease: i64, value: Bytes) -> Event {
        let kv = KeyValue { key: key.to_owned().into(), ..KeyValue::default() };
        let prev = KeyValue { lease, value, create_revision: 5, ..kv.clone() };
        Event { kind: EventKind::Delete, kv, prev_kv: Some(prev) }
    }

    fn applied(outcome: Response, events: Vec<Event>) -> Applied {
        let (leases, lack_prev) = (Vec::new(), false);
        Applied { outcome: Ok(outcome), revision: 9, events, lack_prev, leases }
    }

    fn claim(request: &str) -> Bytes {
        Claim { requests: vec![request.to_owned().into()], ..Claim::default() }.encode()
    }

    fn seized(key: &str) -> Response {
        let places = vec![Taken { name: "l".into(), key: key.to_owned().into(), fence: 5 }];
        Response::Lock(LockResponse::Seized { places, by: "ann".into(), reason: "stuck".into() })
    }

    #[test]
    fn a_session_hears_what_others_take_from_it_and_of_nothing_else() {
        let takings = Arc::new(Takings::default());
        let mut followed = takings.follow();
        followed.set(&[1, 2]);
        let next = |followed: &Followed| followed.next().now_or_never();
        let release = Response::Lock(LockResponse::Released { was_held: true });
        takings.note(&applied(release, vec![deleted("l/1", 1, claim("r"))]));
        takings.note(&applied(Response::LeaseRevoke, vec![deleted("l/3", 3, claim("r"))]));
        takings.note(&applied(Response::LeaseRevoke, vec![deleted("k", 1, "a value".into())]));
        assert_eq!(next(&followed), None);

        takings.note(&applied(seized("l/1"), vec![deleted("l/1", 1, claim("r"))]));
        takings.note(&applied(Response::LeaseRevoke, vec![deleted("l/2", 2, claim("s"))]));
        let told = next(&followed).expect("something to tell");
        let broken = v1::Broken { by: "ann".into(), reason: "stuck".into() };
        let first = v1::PlaceTaken {
            session: 1,
            key: "l/1".into(),
            fence: 5,
            request_ids: vec!["r".into()],
            broken: Some(broken.clone()),
        };
        assert_eq!(told.taken[0], first);
        assert_eq!((told.taken[1].session, &told.taken[1].broken), (2, &None));
        assert_eq!(takings.broken(b"l/1", 5), Some(broken));
        assert_eq!(takings.broken(b"l/1", 6), None);

        followed.set(&[2]);
        takings.note(&applied(Response::LeaseRevoke, vec![deleted("l/1", 1, claim("r"))]));
        assert_eq!(next(&followed), None, "it is followed no more");
        drop(followed);
        assert_eq!(takings.followed.load(Ordering::Acquire), 0);
    }

    #[test]
    fn what_goes_with_its_session_is_told_as_the_end_of_it() {
        let takings = Arc::new(Takings::default());
        let mut followed = takings.follow();
        followed.set(&[1]);
        let ended = |ids: &[i64]| ids.iter().map(|id| LeaseChange::Ended { id: *id }).collect();
        let events = vec![deleted("l/1", 1, claim("r"))];
        takings.note(&Applied { leases: ended(&[1, 7]), ..applied(Response::LeaseRevoke, events) });
        let told = followed.next().now_or_never().expect("something to tell");
        assert_eq!(told, Told { ended: vec![1], ..Told::default() });
    }

    #[test]
    fn whatever_is_too_much_to_be_told_is_to_be_asked_for() {
        let takings = Arc::new(Takings::default());
        let mut followed = takings.follow();
        followed.set(&[1]);
        for _ in 0..2 * TAKEN_MAX {
            takings.note(&applied(seized("l/1"), vec![deleted("l/1", 1, claim("r"))]));
        }
        let told = followed.next().now_or_never().expect("something to tell");
        assert!(told.is_unsure && told.taken.len() == TAKEN_MAX);
        assert_eq!(takings.broken.lock().len(), BROKEN_MAX);
        takings.note(&Applied { lack_prev: true, ..applied(Response::LeaseRevoke, Vec::new()) });
        assert!(followed.next().now_or_never().expect("something to tell").is_unsure);
    }
}
