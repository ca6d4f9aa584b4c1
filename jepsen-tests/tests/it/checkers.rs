//! Proof of the checkers: correct histories pass, and each seeded fault is found under its name.

use std::collections::BTreeSet;

use conclave_jepsen_tests::check;
use conclave_jepsen_tests::history::{Event, History, Outcome, Request, WatchNews};
use conclave_jepsen_tests::verdict::Fault;

use crate::simulated::{Bug, Simulation, simulate, stranger, tells_keys};

const SEEDS: std::ops::Range<u64> = 0..40;

fn faults(history: &History) -> BTreeSet<Fault> {
    check(history).violations.into_iter().map(|violation| violation.fault).collect()
}

/// The bug must be found for every seed, under one of the given names.
fn finds(bug: Bug, names: &[Fault]) {
    for seed in SEEDS {
        let found = faults(&simulate(seed, bug).history);
        let is_named = names.iter().any(|name| found.contains(name));
        assert!(is_named, "seed {seed}: {bug:?} was reported as {found:?}");
    }
}

/// A spoiled watch session must be found for every seed, under one of the given names.
fn finds_spoiled(names: &[Fault], spoil: impl Fn(&mut Simulation)) {
    for seed in SEEDS {
        let mut simulation = simulate(seed, Bug::None);
        spoil(&mut simulation);
        let found = faults(&simulation.history);
        assert!(
            names.iter().any(|name| found.contains(name)),
            "seed {seed}: reported as {found:?}"
        );
    }
}

/// The events of a response with at least `least` events in the watcher of everything that began at revision 1.
fn batch(simulation: &mut Simulation, least: usize) -> &mut Vec<Event> {
    let responses = &mut simulation.history.sessions[0].responses;
    let batches = responses.iter_mut().filter_map(|response| match &mut response.news {
        WatchNews::Events(events) if events.len() >= least => Some(events),
        _ => None,
    });
    batches.last().expect("a batch of events")
}

#[test]
fn correct_histories_pass() {
    let mut filled = 0;
    for seed in 0..200 {
        let simulation = simulate(seed, Bug::None);
        let findings = check(&simulation.history);
        assert!(findings.violations.is_empty(), "seed {seed}: {:#?}", findings.violations);
        assert!(findings.revisions > 50, "the history has substance");
        filled += findings.filled;
    }
    assert!(filled > 200, "unknown outcomes were placed");
}

#[test]
fn correct_histories_pass_without_any_watcher() {
    for seed in SEEDS {
        let mut simulation = simulate(seed, Bug::None);
        simulation.history.sessions.clear();
        let found = faults(&simulation.history);
        // Without a witness an unread write of unknown outcome cannot be judged, and nothing else is wrong.
        assert!(
            found.iter().all(|fault| matches!(fault, Fault::Inconclusive | Fault::WrongAnswer))
        );
    }
}

#[test]
fn a_lost_write_is_found() {
    finds(Bug::LoseWrite, &[Fault::LostWrite, Fault::RevisionReused]);
}

#[test]
fn a_stale_read_is_found() {
    finds(Bug::StaleRead, &[Fault::StaleRead]);
}

#[test]
fn old_data_under_a_new_revision_is_found() {
    finds(Bug::OldDataNewHeader, &[Fault::WrongAnswer]);
}

#[test]
fn a_write_applied_twice_is_found() {
    finds(Bug::ApplyTwice, &[Fault::Phantom]);
}

#[test]
fn a_refused_write_that_happened_is_found() {
    finds(Bug::ApplyRefused, &[Fault::Phantom]);
}

#[test]
fn a_revision_going_back_is_found() {
    finds(Bug::RevisionBack, &[Fault::RevisionBack, Fault::RevisionReused]);
}

#[test]
fn half_a_transaction_is_found() {
    finds(Bug::HalfTransaction, &[Fault::LostWrite]);
}

#[test]
fn a_duplicated_event_is_found() {
    finds_spoiled(&[Fault::Duplicated], |simulation| {
        let responses = &mut simulation.history.sessions[3].responses;
        let twice = responses.iter().find(|response| matches!(response.news, WatchNews::Events(_)));
        let twice = twice.expect("an event").clone();
        responses.push(twice);
    });
    finds_spoiled(&[Fault::Duplicated, Fault::Divergence], |simulation| {
        let events = batch(simulation, 1);
        events.insert(0, events[0].clone());
    });
}

#[test]
fn a_skipped_event_is_found() {
    finds_spoiled(&[Fault::Skipped], |simulation| drop(batch(simulation, 2).remove(0)));
    finds_spoiled(&[Fault::Skipped, Fault::Progress], |simulation| {
        let responses = &mut simulation.history.sessions[2].responses;
        let first =
            responses.iter().position(|response| matches!(response.news, WatchNews::Events(_)));
        responses.remove(first.expect("events"));
    });
}

#[test]
fn events_out_of_order_are_found() {
    finds_spoiled(&[Fault::Unordered], |simulation| {
        let events = batch(simulation, 3);
        let last = events.len() - 1;
        events.swap(0, last);
    });
    finds_spoiled(&[Fault::Duplicated, Fault::Skipped], |simulation| {
        let responses = &mut simulation.history.sessions[0].responses;
        let last = responses.len() - 1;
        responses.swap(1, last);
    });
}

#[test]
fn a_phantom_event_is_found() {
    finds_spoiled(&[Fault::Phantom, Fault::LostWrite], |simulation| {
        let is_put = |event: &&Event| matches!(event, Event::Put { .. });
        let puts = simulation.log.iter().flat_map(|(_, _, events)| events).filter(is_put);
        let wanted = puts.skip(20).map(Event::revision).next().expect("a put");
        for session in &mut simulation.history.sessions {
            for response in &mut session.responses {
                if let WatchNews::Events(events) = &mut response.news {
                    events.iter_mut().for_each(|event| spoil_value(event, wanted));
                }
            }
        }
    });
}

fn spoil_value(event: &mut Event, revision: i64) {
    if let Event::Put { kv, .. } = event
        && kv.modified == revision
    {
        *kv = stranger(kv);
    }
}

#[test]
fn watchers_that_disagree_are_found() {
    finds_spoiled(&[Fault::Divergence], |simulation| {
        let events = batch(simulation, 1);
        events.iter_mut().for_each(|event| {
            if let Event::Put { kv, .. } = event {
                *kv = stranger(kv);
            } else {
                let (key, revision) = (event.key().to_owned() + "x", event.revision());
                *event = Event::Delete { key, revision, previous: None };
            }
        });
    });
}

#[test]
fn a_revision_split_over_responses_is_found() {
    finds_spoiled(&[Fault::Torn], |simulation| {
        let responses = &mut simulation.history.sessions[0].responses;
        let is_pair = |events: &Vec<Event>| {
            let count = events.len();
            count > 1 && events[count - 1].revision() == events[count - 2].revision()
        };
        let position = responses.iter().position(
            |response| matches!(&response.news, WatchNews::Events(events) if is_pair(events)),
        );
        let position = position.expect("a transaction with two changes");
        let mut second = responses[position].clone();
        let (WatchNews::Events(head), WatchNews::Events(tail)) =
            (&mut responses[position].news, &mut second.news)
        else {
            panic!("events");
        };
        *tail = vec![head.pop().expect("two events")];
        responses.insert(position + 1, second);
    });
}

#[test]
fn progress_ahead_of_events_is_found() {
    finds_spoiled(&[Fault::Progress], |simulation| {
        let responses = &mut simulation.history.sessions[0].responses;
        let last = responses.last_mut().expect("responses");
        last.news = WatchNews::Progress;
        responses.push(conclave_jepsen_tests::history::WatchResponse {
            time: 1 << 40,
            revision: simulation.log.last().expect("changes").0,
            news: WatchNews::Progress,
        });
    });
}

#[test]
fn a_wrong_previous_value_is_found() {
    finds_spoiled(&[Fault::PreviousValue], |simulation| {
        let responses = simulation.history.sessions[0].responses.iter_mut();
        let events = responses.flat_map(|response| match &mut response.news {
            WatchNews::Events(events) => events.iter_mut(),
            _ => [].iter_mut(),
        });
        let mut with_previous = events.filter(|event| event.previous().is_some());
        let event = with_previous.next().expect("an overwritten key");
        *event = event.bare();
    });
}

#[test]
fn an_event_nobody_asked_for_is_found() {
    finds_spoiled(&[Fault::Unfiltered], |simulation| {
        simulation.history.sessions[0].no_deletes = true
    });
    finds_spoiled(&[Fault::Unfiltered], |simulation| {
        simulation.history.sessions[2].start = "x".into()
    });
}

#[test]
fn a_watch_that_begins_too_late_is_found() {
    finds_spoiled(&[Fault::Skipped], |simulation| {
        let session = &mut simulation.history.sessions[1];
        session.from -= 5;
    });
}

#[test]
fn an_answer_from_the_future_is_found() {
    finds_spoiled(&[Fault::FromTheFuture], |simulation| {
        let operations = &mut simulation.history.operations;
        let end = operations.iter().map(|operation| operation.end).max().expect("operations");
        let is_put = |operation: &&mut conclave_jepsen_tests::history::Operation| {
            matches!(
                (&operation.request, &operation.outcome),
                (Request::Put { .. }, Outcome::Ok { .. })
            )
        };
        let operation = operations.iter_mut().find(is_put).expect("a put");
        (operation.start, operation.end) = (end + 1, end + 2);
    });
}

#[test]
fn a_connection_going_back_is_found() {
    finds_spoiled(&[Fault::SessionBack], |simulation| {
        let operations = &mut simulation.history.operations;
        let reads = operations.iter_mut().rev().filter(|operation| tells_keys(&operation.outcome));
        let read = reads.into_iter().next().expect("a read");
        let Request::Range(range) = &mut read.request else { panic!("a range") };
        range.serializable = true;
        let Outcome::Ok { revision, response } = &mut read.outcome else { panic!("an answer") };
        *revision = 1;
        *response = conclave_jepsen_tests::history::Response::Range { kvs: Vec::new(), count: 0 };
    });
}

#[test]
fn histories_survive_the_disk() {
    let history = simulate(7, Bug::None).history;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("history.jsonl");
    history.save(&path).unwrap();
    assert_eq!(History::load(&path).unwrap(), history);
}
