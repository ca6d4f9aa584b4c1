//! Changes of several revisions as one: the same list at each revision that is told, and why who went is gone.

use std::collections::BTreeMap;
use std::sync::Arc;

use conclave_state_machine::history;
use conclave_state_machine::registry::coalesce::{Change, coalesce};
use conclave_state_machine::registry::record::Record;
use conclave_state_machine::registry::view::{Delta, KeyChange, Shown, View};
use conclave_state_machine::registry::{key, lost_key, span};
use conclave_state_machine::response::{Cause, Event};
use proptest::prelude::*;

use crate::registry::{NO_FAILURE, SERVICES, Step, command, service, step};
use crate::store::Store;

type Known = BTreeMap<String, Arc<Shown>>;

/// What one revision changed, as watchers are told.
fn changes(store: &Store, view: &mut View, number: usize, events: &[Event]) -> Vec<Change> {
    let (service, revision) = (service(number), events[0].kv.mod_revision);
    let causes = history::causes(&store.rows, revision, &span(&service).0).expect(NO_FAILURE);
    let causes: BTreeMap<_, Cause> = causes.into_iter().collect();
    let change = |delta: Delta| {
        let cause = causes.get(&key(&service, &delta.id));
        let cause = cause.or_else(|| causes.get(&lost_key(&service, &delta.id))).copied();
        Change { delta, cause }
    };
    view.step(events.iter().map(KeyChange::from)).into_iter().map(change).collect()
}

/// What each revision of a program changed in a service.
fn revisions(steps: &[Step], number: usize) -> Vec<Vec<Change>> {
    let (mut store, mut view) = (Store::new(), View::new(service(number)));
    let mut revisions = Vec::new();
    for (now_ms, step) in (1_000..).step_by(3_000).zip(steps) {
        let command = command(&store, step, now_ms);
        let applied = store.apply(&command);
        let by_revision =
            applied.events.chunk_by(|one, next| one.kv.mod_revision == next.kv.mod_revision);
        for events in by_revision {
            revisions.push(changes(&store, &mut view, number, events));
        }
    }
    revisions
}

fn apply(known: &mut Known, changes: &[Change]) {
    for Change { delta, .. } in changes {
        match &delta.after {
            Some(shown) => _ = known.insert(delta.id.clone(), Arc::clone(shown)),
            None => _ = known.remove(&delta.id),
        }
    }
}

fn deltas(changes: &[Change]) -> Vec<&Delta> {
    changes.iter().map(|change| &change.delta).collect()
}

fn merged(revisions: &[Vec<Change>]) -> Vec<Change> {
    coalesce(revisions.iter().map(Vec::as_slice))
}

proptest! {
    #[test]
    fn whoever_is_told_less_often_knows_the_same(
        steps in prop::collection::vec(step(), 1..80),
        windows in prop::collection::vec(1..8_usize, 1..20),
    ) {
        for number in 0..SERVICES.len() {
            let all = revisions(&steps, number);
            let (mut each, mut fewer) = (Known::new(), Known::new());
            let mut rest = all.as_slice();
            for window in windows.iter().cycle() {
                let (taken, later) = rest.split_at(rest.len().min(*window));
                let told = merged(taken);
                prop_assert!(told.is_sorted_by(|one, next| one.delta.id < next.delta.id));
                for Change { delta, cause } in &told {
                    prop_assert_eq!(&delta.before, &fewer.get(&delta.id).cloned());
                    prop_assert_ne!(&delta.before, &delta.after);
                    let last = taken.iter().flatten().rfind(|change| change.delta.id == delta.id);
                    if delta.after.is_none() {
                        prop_assert_eq!(*cause, last.and_then(|last| last.cause));
                    }
                }
                taken.iter().for_each(|changes| apply(&mut each, changes));
                apply(&mut fewer, &told);
                prop_assert_eq!(&fewer, &each);
                let (first, second) = taken.split_at(taken.len() / 2);
                let halves = merged(&[merged(first), merged(second)]);
                // But for the reason of what came back and went once more: of that the second half does not tell.
                prop_assert_eq!(deltas(&halves), deltas(&told), "windows of windows");
                rest = later;
                if rest.is_empty() {
                    break;
                }
            }
        }
    }
}

fn shown(mod_revision: i64, is_lost: bool) -> Option<Arc<Shown>> {
    let mut record = Record::new("h:1");
    record.details.lost_ms = i64::from(is_lost);
    let value = record.encode().into();
    Some(Arc::new(Shown { record, value, fence: 1, mod_revision, session: 1 }))
}

#[test]
fn why_an_instance_is_gone_is_what_was_said_last() {
    let (up, lost, back) = (shown(1, false), shown(2, true), shown(3, false));
    let still_lost = shown(4, true);
    let check = |states: &[&Option<Arc<Shown>>], causes: &[Option<Cause>]| {
        let changes = states.windows(2).zip(causes).map(|(states, cause)| {
            let (before, after) = (states[0].clone(), states[1].clone());
            vec![Change { delta: Delta { id: "a".to_owned(), before, after }, cause: *cause }]
        });
        merged(&changes.collect::<Vec<_>>()).pop().map(|change| change.cause)
    };
    let (expired, admin) = (Some(Cause::SessionExpired), Some(Cause::Admin));
    assert_eq!(check(&[&up, &None, &back], &[admin, None]), Some(None), "it is back");
    assert_eq!(check(&[&up, &lost, &None], &[expired, admin]), Some(admin));
    assert_eq!(check(&[&up, &lost, &still_lost], &[expired, None]), Some(expired));
    assert_eq!(check(&[&up, &None, &back, &None], &[admin, None, None]), Some(None), "unknown");
    assert_eq!(check(&[&None, &up, &None], &[None, admin]), None, "nobody has heard of it");
}
