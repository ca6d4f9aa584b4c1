//! Invariants of locks under random programs, against a queue kept in a plain list.

mod again;
mod cost;
mod program;
mod stranded;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use bytes::Bytes;
use conclave_state_machine::command::{
    Campaign, Command, LeaseGrant, LeaseRevoke, LockAcquire, LockBreak, LockCommand, LockConvert,
    Put, Range, SessionBegin,
};
use conclave_state_machine::leases::Broken;
use conclave_state_machine::locks::arrival;
use conclave_state_machine::locks::queue::{self, Place};
use conclave_state_machine::locks::seize;
use conclave_state_machine::locks::tenure::Tenure;
use conclave_state_machine::read::Table;
use conclave_state_machine::response::{LockResponse, LockState, Rejection, Response};
use proptest::prelude::*;

use self::program::{LATE, NAMES, SESSIONS, Step, commands, crowd_step, leases, step, unix_ms};
use crate::store::Store;

fn places(store: &Store, name: &str) -> Vec<Place> {
    let mut places = Vec::new();
    queue::visit(&store.rows, store.head().revision, name.as_bytes(), &mut |place| {
        places.push(place);
        ControlFlow::Continue(())
    })
    .expect("memory does not fail");
    places
}

fn holders(store: &Store, name: &str) -> Vec<Place> {
    let at = store.head().revision;
    queue::holders(&store.rows, at, name.as_bytes()).expect("memory does not fail")
}

/// What all steps so far have shown.
#[derive(Default)]
struct Seen {
    /// Highest fence that ever held a name.
    highest: BTreeMap<&'static str, i64>,
    /// Places that hold, by name.
    held: BTreeMap<&'static str, BTreeSet<i64>>,
    /// Places before which nothing but places stood once.
    behind_places: BTreeSet<(&'static str, i64)>,
    /// Since when those hold that do.
    since: BTreeMap<(&'static str, Bytes, i64), i64>,
}

impl Seen {
    fn check(&mut self, store: &Store) -> Result<(), TestCaseError> {
        for name in NAMES {
            let (places, holders) = (places(store, name), holders(store, name));
            check_queue(store, name, &places)?;
            self.check_first(store, name, &places)?;
            self.check_since(store, name, &holders)?;
            prop_assert_eq!(&places[..holders.len()], &holders[..], "holders come first");
            let exclusive = holders.iter().any(|place| place.share() == (1, 1));
            prop_assert!(!exclusive || holders.len() == 1, "an exclusive holder is alone");
            let used: u32 = holders.iter().map(|place| place.share().0).sum();
            prop_assert!(holders.iter().all(|place| used <= place.share().1 || holders.len() == 1));
            prop_assert_eq!(holders.is_empty(), places.is_empty(), "a lock with a queue is held");
            let held: BTreeSet<i64> = holders.iter().map(|place| place.fence).collect();
            for Place { fence, .. } in &places {
                // By what is kept beside the places, and by asking each of them.
                let alive = holders.iter().any(|place| place.fence == *fence && !place.is_lost());
                let holds = queue::holds(&store.rows, i64::MAX, name.as_bytes(), *fence);
                prop_assert_eq!(holds.expect("memory does not fail"), alive, "fence {}", fence);
            }
            let before = self.held.insert(name, held.clone()).unwrap_or_default();
            let highest = self.highest.entry(name).or_default();
            for fence in held.difference(&before) {
                prop_assert!(fence > highest, "fence {fence} after {highest}");
                *highest = *fence;
            }
            // What an exclusive holder writes may not be taken for older than what others wrote before.
            prop_assert!(!exclusive || held.last() == Some(highest), "exclusive after {highest}");
        }
        Ok(())
    }

    /// It is told since when somebody holds, or nothing; always of one who holds alone and never asked for less.
    fn check_since(
        &mut self,
        store: &Store,
        name: &'static str,
        holders: &[Place],
    ) -> Result<(), TestCaseError> {
        let key = |place: &Place| (name, place.key.clone(), place.fence);
        self.since
            .retain(|known, _| known.0 != name || holders.iter().any(|one| key(one) == *known));
        let tenure = Tenure::load(&store.rows, name.as_bytes()).expect("memory does not fail");
        for place in holders {
            let since = *self.since.entry(key(place)).or_insert(store.unix_ms);
            let told = tenure.since(place);
            prop_assert!(told == 0 || told == since, "{told} for {since}: {place:?}, {tenure:?}");
            let is_certain = place.share() == (1, 1) && place.version == 1 && !place.is_lost();
            prop_assert!(told > 0 || !is_certain, "{place:?}, {tenure:?}");
        }
        Ok(())
    }

    /// Who is first and was behind places alone has no key before it, which is what etcd's waiters wait for.
    fn check_first(
        &mut self,
        store: &Store,
        name: &'static str,
        places: &[Place],
    ) -> Result<(), TestCaseError> {
        let below = Range {
            key: Bytes::from(format!("{name}/")),
            range_end: Bytes::from(format!("{name}0")),
            ..Range::default()
        };
        let keys = store.range(&below).expect("nothing is compacted").kvs;
        for Place { key, fence, .. } in places {
            let in_front = keys.iter().filter(|kv| kv.create_revision < *fence).count();
            let is_first = queue::is_first(&store.rows, key, *fence);
            if is_first.expect("memory does not fail") {
                prop_assert_eq!(*fence, places[0].fence);
                let is_known = self.behind_places.contains(&(name, *fence));
                prop_assert!(in_front == 0 || !is_known, "{} keys before {}", in_front, fence);
            }
            let ahead = queue::ahead(&store.rows, name.as_bytes(), *fence, usize::MAX);
            let is_behind_places = ahead.expect("memory does not fail") == in_front;
            if is_behind_places {
                self.behind_places.insert((name, *fence));
            }
            let before = keys.iter().filter(|kv| kv.create_revision < *fence);
            let before = before.max_by_key(|kv| kv.create_revision).map(|kv| &kv.key);
            for (_, known) in self.behind_places.iter().filter(|(of, _)| *of == name) {
                let found = arrival::behind(&store.rows, 0, (key, *fence), *known);
                let Some(found) = found.expect("memory does not fail") else { continue };
                prop_assert!(is_behind_places, "{fence} is behind more, known is {known}");
                prop_assert_eq!(Some(&found), before, "known is {}", known);
            }
        }
        Ok(())
    }
}

/// The queue is exactly the leased children, oldest first, and nothing else is kept for it.
fn check_queue(store: &Store, name: &str, places: &[Place]) -> Result<(), TestCaseError> {
    let mut expected: Vec<(i64, Bytes)> = Vec::new();
    let all = Range {
        key: Bytes::from_static(b"\0"),
        range_end: Bytes::from_static(b"\0"),
        ..Default::default()
    };
    for kv in store.range(&all).expect("nothing is compacted").kvs {
        let child = kv.key.strip_prefix(format!("{name}/").as_bytes());
        let is_late = child == Some(LATE.as_bytes());
        if kv.lease != 0 && !is_late && child.is_some_and(|child| !child.contains(&b'/')) {
            expected.push((kv.create_revision, kv.key));
        }
    }
    expected.sort();
    let found: Vec<_> = places.iter().map(|place| (place.fence, place.key.clone())).collect();
    prop_assert_eq!(found, expected);
    for place in places {
        let lease = conclave_state_machine::leases::lease(&store.rows, place.session);
        prop_assert!(lease.expect("memory does not fail").is_some(), "its session lives");
    }
    Ok(())
}

/// What was told to one that asked for locks is so, and asking again changes nothing.
fn check_acquire(
    store: &mut Store,
    command: &Command,
    outcome: &Result<Response, Rejection>,
) -> Result<(), TestCaseError> {
    let Ok(Response::Lock(LockResponse::Places { state, taken })) = outcome else { return Ok(()) };
    prop_assert_eq!(taken.is_empty(), matches!(state, LockState::Busy | LockState::Cancelled));
    let held = taken.iter().filter(|place| {
        let name = std::str::from_utf8(&place.name).expect("names are text");
        holders(store, name).iter().any(|holder| holder.fence == place.fence)
    });
    let is_held = held.count() == taken.len() && !taken.is_empty();
    prop_assert_eq!(is_held, *state == LockState::Held);
    let revision = store.head().revision;
    let again = store.apply(command);
    prop_assert_eq!(&again.outcome, outcome);
    if !matches!(command, Command::Lock(LockCommand::Convert(_))) {
        prop_assert_eq!(store.head().revision, revision);
    }
    Ok(())
}

fn run(store: &mut Store, steps: &[Step]) -> Result<(), TestCaseError> {
    let mut seen = Seen::default();
    for (number, step) in steps.iter().enumerate() {
        if matches!(step, Step::Restart) {
            store.restart();
        }
        for command in commands(store, step, number) {
            store.unix_ms = unix_ms(number);
            let first = store.apply(&command);
            seen.check(store)?;
            check_acquire(store, &command, &first.outcome)?;
            if matches!(step, Step::Release { .. }) {
                let revision = store.head().revision;
                let again = store.apply(&command);
                prop_assert!(again.outcome.is_ok());
                prop_assert_eq!(store.head().revision, revision, "a release has one effect");
            }
        }
    }
    // Nothing stays behind when everybody is gone.
    for id in leases(store) {
        store.apply(&Command::LeaseRevoke(LeaseRevoke { id }));
    }
    prop_assert_eq!(store.rows.rows(Table::Place).count(), 0);
    prop_assert_eq!(store.rows.rows(Table::Lease).count(), 0);
    Ok(())
}

proptest! {
    #[test]
    fn locks_keep_their_invariants(steps in prop::collection::vec(step(), 1..80)) {
        run(&mut Store::new(), &steps)?;
    }

    #[test]
    fn a_crowd_keeps_them_too(steps in prop::collection::vec(crowd_step(), 40..120)) {
        let mut all: Vec<Step> = (1..=SESSIONS).map(Step::Begin).collect();
        all.extend(steps);
        run(&mut Store::new(), &all)?;
    }
}

#[test]
fn who_broke_a_lock_is_kept_with_the_session_that_had_it() {
    let mut store = Store::new();
    let lock = |command| Command::Lock(command);
    for id in 1..=2 {
        let begin = SessionBegin { id, ttl: 60, request_id: "b".into(), ..SessionBegin::default() };
        store.apply(&Command::SessionBegin(begin));
        let (names, request_id) = (vec!["a".into()], "r".into());
        let how = LockAcquire { permits: 1, limit: 1, can_wait: true, ..LockAcquire::default() };
        let acquire = LockAcquire { names, session: id, request_id, ..how };
        store.apply(&lock(LockCommand::Acquire(acquire)));
    }
    let [held, waiting] = [1, 2].map(|id| queue::key(b"a", id));
    let fence = places(&store, "a")[0].fence;
    let (by, reason) = ("ann".to_owned(), "stuck".to_owned());
    let told = |store: &Store, key: &Bytes, fence| {
        seize::broken(&store.rows, key, fence).expect("memory does not fail")
    };
    assert_eq!(told(&store, &held, fence), None);
    let (name, by_ann, why) = ("a".into(), by.clone(), reason.clone());
    let command = LockBreak { name, fence: 0, by: by_ann, reason: why };
    store.apply(&lock(LockCommand::Break(command)));
    store.restart();
    let broken = Broken { key: held.clone(), fence, by, reason };
    assert_eq!(told(&store, &held, fence), Some(broken));
    assert_eq!(told(&store, &held, fence + 1), None, "a later one was not broken");
    assert_eq!(told(&store, &waiting, fence), None);
    store.apply(&Command::LeaseRevoke(LeaseRevoke { id: 1 }));
    assert_eq!(told(&store, &held, fence), None, "it goes with the session");
}

#[test]
fn since_when_many_hold_is_told_where_it_is_certain() {
    let mut store = Store::new();
    let begin =
        |id| SessionBegin { id, ttl: 60, request_id: "b".into(), ..SessionBegin::default() };
    for id in 1..=5 {
        store.apply(&Command::SessionBegin(begin(id)));
    }
    let acquire = |store: &mut Store, session: i64, limit: u32| {
        store.unix_ms += 1;
        let (names, request_id) = (vec!["a".into()], Bytes::from(session.to_string()));
        let how =
            LockAcquire { permits: 1, limit, can_wait: true, attempt: 1, ..Default::default() };
        let acquire = LockAcquire { names, session, request_id, asked_ms: store.unix_ms, ..how };
        assert!(store.apply(&Command::Lock(LockCommand::Acquire(acquire))).outcome.is_ok());
    };
    let revoke = |store: &mut Store, id| {
        store.unix_ms += 1;
        assert!(store.apply(&Command::LeaseRevoke(LeaseRevoke { id })).outcome.is_ok());
    };
    let told = |store: &Store| {
        let tenure = Tenure::load(&store.rows, b"a").unwrap();
        holders(store, "a").iter().map(|place| tenure.since(place)).collect::<Vec<_>>()
    };
    acquire(&mut store, 1, 1);
    assert_eq!(told(&store), [1]);
    for reader in 2..=4 {
        acquire(&mut store, reader, u32::MAX);
    }
    revoke(&mut store, 1);
    assert_eq!(told(&store), [5; 3], "who waited for one that held alone came in together");
    acquire(&mut store, 5, u32::MAX);
    assert_eq!(told(&store), [5, 5, 5, 6], "and another one as it came");
    revoke(&mut store, 3);
    assert_eq!(told(&store), [5, 0, 0], "of who else holds it is not kept");
    revoke(&mut store, 2);
    assert_eq!(told(&store), [0, 0], "the first held before it was the first");
    store.apply(&Command::SessionBegin(begin(1)));
    acquire(&mut store, 1, 1);
    revoke(&mut store, 4);
    revoke(&mut store, 5);
    assert_eq!(told(&store), [store.unix_ms], "who holds alone never held before");
    for reader in 2..=3 {
        store.apply(&Command::SessionBegin(begin(reader)));
        acquire(&mut store, reader, u32::MAX);
    }
    store.unix_ms += 1;
    let (name, request_id) = ("a".into(), "1".into());
    let convert = LockConvert {
        name,
        session: 1,
        request_id,
        permits: 1,
        limit: u32::MAX,
        ..LockConvert::default()
    };
    assert!(store.apply(&Command::Lock(LockCommand::Convert(convert))).outcome.is_ok());
    assert_eq!(told(&store), [0; 3], "nor is it of who asks for less, and of whom that lets in");
}

/// Found by reading: such a key got a row of a place, which nobody counted.
#[test]
fn a_key_that_got_its_lease_later_is_no_candidate() {
    let mut store = Store::new();
    for id in 1..=2 {
        store.apply(&Command::LeaseGrant(LeaseGrant { id, ttl: 60 }));
    }
    let campaign = |session| {
        let (name, attempt) = ("e".into(), 1);
        let campaign = Campaign { name, session, attempt, number: 1, ..Campaign::default() };
        Command::Lock(LockCommand::Campaign(campaign))
    };
    let late = queue::key(b"e", 2);
    let first = store.apply(&campaign(1)).outcome;
    assert!(first.is_ok(), "{first:?}");
    for lease in [0, 2] {
        let put = Put { key: late.clone(), lease, ..Put::default() };
        assert!(store.apply(&Command::Put(put)).outcome.is_ok());
    }
    let refused = store.apply(&campaign(2)).outcome;
    assert!(matches!(refused, Err(Rejection::InvalidLock(_))), "{refused:?}");
    let rows = store.rows.rows(Table::Place).count();
    let keys = Range { key: "e/".into(), range_end: "e0".into(), ..Range::default() };
    assert_eq!((rows, store.range(&keys).unwrap().count), (2, 2), "a front, and one place");
    store.apply(&Command::LeaseRevoke(LeaseRevoke { id: 1 }));
    assert_eq!(store.rows.rows(Table::Place).count(), 0);
}

#[test]
fn a_place_is_first_as_long_as_none_lost_its_lease() {
    let mut store = Store::new();
    for id in 1..=3 {
        store.apply(&Command::LeaseGrant(LeaseGrant { id, ttl: 60 }));
    }
    let key = |session| queue::key(b"a", session);
    let put = |session, lease| Command::Put(Put { key: key(session), lease, ..Put::default() });
    let is_first = |store: &Store, session| {
        let kv =
            store.range(&Range { key: key(session), ..Range::default() }).unwrap().kvs.remove(0);
        queue::is_first(&store.rows, &kv.key, kv.create_revision).expect("memory does not fail")
    };
    for id in 1..=3 {
        store.apply(&put(id, id));
    }
    assert_eq!([1, 2, 3].map(|id| is_first(&store, id)), [true, false, false]);
    store.apply(&Command::LeaseRevoke(LeaseRevoke { id: 1 }));
    assert_eq!([2, 3].map(|id| is_first(&store, id)), [true, false]);
    store.apply(&put(2, 0));
    assert_eq!(
        [2, 3].map(|id| is_first(&store, id)),
        [false; 2],
        "its key still is before the third"
    );
    store.apply(&Command::LeaseRevoke(LeaseRevoke { id: 3 }));
    store.apply(&Command::LeaseGrant(LeaseGrant { id: 3, ttl: 60 }));
    store.apply(&put(3, 3));
    assert!(is_first(&store, 3), "of a new queue");
}

/// A newcomer learns from the last events whom it is behind; what is no place among them takes a whole look.
#[test]
fn a_newcomer_is_told_whom_it_is_behind() {
    let mut store = Store::new();
    for id in 1..=4 {
        store.apply(&Command::LeaseGrant(LeaseGrant { id, ttl: 60 }));
    }
    let mut put = |key: &str, lease| {
        let put = Put { key: Bytes::copy_from_slice(key.as_bytes()), lease, ..Put::default() };
        assert!(store.apply(&Command::Put(put)).outcome.is_ok());
        store.head().revision
    };
    let [_, known, other] =
        [("n/1", 1), ("n/2", 2), ("other", 0)].map(|(key, lease)| put(key, lease));
    let place = put("n/3", 3);
    let stranger = put("n/3/deeper", 3);
    let last = put("n/4", 4);
    let behind = |key: &'static [u8], fence, compacted, known| {
        arrival::behind(&store.rows, compacted, (key, fence), known).unwrap()
    };
    assert_eq!(behind(b"n/3", place, 0, known).unwrap(), "n/2");
    assert_eq!(behind(b"n/3", place, known - 1, known).unwrap(), "n/2");
    assert_eq!(behind(b"n/3", place, known, known), None, "what came may be compacted");
    assert_eq!(behind(b"n/3", other, 0, known), None, "it is not there");
    assert_eq!(behind(b"n/4", last, 0, place), None, "{stranger} is no place");
}
