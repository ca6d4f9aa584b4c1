//! The revision-replay checker: every answer carries a revision, so the order is given, not searched for.
//!
//! Acknowledged writes are put in revision order; gaps are filled with requests of unknown outcome, recognised
//! by their unique values or by what they would delete. The model replays that order and every answer is
//! compared with the state at its revision. [`crate::order`] then checks the order against real time.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::history::{Event, History, Operation, Outcome, Request, Response, Revision, WatchNews};
use crate::model::{EMPTY_REVISION, State, Timeline};
use crate::order::{self, Floor};
use crate::verdict::{Fault, Violation};

/// What a replay found.
#[derive(Debug, Default)]
pub struct Replay {
    /// Every change, as replayed.
    pub timeline: Timeline,
    /// Everything found wrong.
    pub violations: Vec<Violation>,
    /// Requests of unknown outcome that turned out to have happened.
    pub filled: usize,
}

/// Replays the requests of a history that began with an empty store.
#[must_use]
pub fn check(history: &History) -> Replay {
    let mut violations = Vec::new();
    let evidence = Evidence::collect(history, &mut violations);
    let mut replayer = Replayer::new(history, &evidence);
    replayer.run();
    let Replayer { mut found, placed, .. } = replayer;
    violations.append(&mut found.violations);
    found.violations = violations;
    found.filled = placed.len();
    order::check(history, &placed, &evidence.floor, &mut found.violations);
    found
}

/// Whether an answer tells of a change.
#[must_use]
pub fn wrote(response: &Response) -> bool {
    match response {
        Response::Put { .. } => true,
        Response::Delete { previous } => !previous.is_empty(),
        Response::Range { .. } => false,
        Response::Txn { responses, .. } => responses.iter().any(wrote),
    }
}

/// What is known of each revision besides the acknowledged writes.
struct Evidence {
    /// Changes seen by watchers of everything, without previous values.
    events: BTreeMap<Revision, Vec<Event>>,
    /// Values seen by reads, by mod revision.
    values: BTreeMap<Revision, BTreeSet<(String, String)>>,
    floor: Floor,
    last: Revision,
}

impl Evidence {
    fn collect(history: &History, violations: &mut Vec<Violation>) -> Self {
        let mut events: BTreeMap<Revision, Vec<Event>> = BTreeMap::new();
        for session in history.sessions.iter().filter(|session| session.sees_all()) {
            let mut seen: BTreeMap<Revision, Vec<Event>> = BTreeMap::new();
            for response in &session.responses {
                let WatchNews::Events(news) = &response.news else { continue };
                news.iter()
                    .for_each(|event| seen.entry(event.revision()).or_default().push(event.bare()));
            }
            for (revision, changes) in seen {
                let known = events.entry(revision).or_insert_with(|| changes.clone());
                if *known != changes {
                    let detail = format!(
                        "revision {revision}: watcher {} on node {} saw {changes:?}, others saw {known:?}",
                        session.watcher, session.node
                    );
                    violations.push(Violation::new(Fault::Divergence, detail));
                }
            }
        }
        let mut values: BTreeMap<Revision, BTreeSet<(String, String)>> = BTreeMap::new();
        let mut last = events.last_key_value().map_or(EMPTY_REVISION, |(&revision, _)| revision);
        for operation in &history.operations {
            let Outcome::Ok { revision, response } = &operation.outcome else { continue };
            last = last.max(*revision);
            observe(response, &mut values);
        }
        Self { events, values, floor: Floor::of(history), last }
    }
}

fn observe(response: &Response, values: &mut BTreeMap<Revision, BTreeSet<(String, String)>>) {
    let kvs = match response {
        Response::Put { previous } => previous.as_slice(),
        Response::Delete { previous } => previous,
        Response::Range { kvs, .. } => kvs,
        Response::Txn { responses, .. } => {
            responses.iter().for_each(|response| observe(response, values));
            return;
        }
    };
    for kv in kvs {
        values.entry(kv.modified).or_default().insert((kv.key.clone(), kv.value.clone()));
    }
}

struct Replayer<'a> {
    operations: &'a [Operation],
    evidence: &'a Evidence,
    /// Acknowledged writes by revision.
    writes: BTreeMap<Revision, Vec<usize>>,
    /// Everything else that was answered, by the revision it is about.
    reads: BTreeMap<Revision, Vec<usize>>,
    /// Who writes a value. Values are unique.
    writers: HashMap<&'a str, usize>,
    /// Unknown outcomes that could delete.
    deleters: Vec<usize>,
    /// Unknown outcomes found to have happened, with their revisions.
    placed: HashMap<usize, Revision>,
    state: State,
    found: Replay,
}

impl<'a> Replayer<'a> {
    fn new(history: &'a History, evidence: &'a Evidence) -> Self {
        let mut replayer = Self {
            operations: &history.operations,
            evidence,
            writes: BTreeMap::new(),
            reads: BTreeMap::new(),
            writers: HashMap::new(),
            deleters: Vec::new(),
            placed: HashMap::new(),
            state: State::default(),
            found: Replay::default(),
        };
        for (index, operation) in history.operations.iter().enumerate() {
            replayer.index(index, operation);
        }
        replayer
    }

    fn index(&mut self, index: usize, operation: &'a Operation) {
        let mut values = Vec::new();
        let deletes = contents(&operation.request, &mut values);
        self.writers.extend(values.into_iter().map(|value| (value, index)));
        match &operation.outcome {
            Outcome::Ok { revision, response } if wrote(response) => {
                self.writes.entry(*revision).or_default().push(index);
            }
            Outcome::Ok { revision, .. } => {
                let about = match &operation.request {
                    Request::Range(range) if range.revision > 0 => range.revision,
                    _ => *revision,
                };
                self.reads.entry(about).or_default().push(index);
            }
            Outcome::Unknown(_) if deletes => self.deleters.push(index),
            Outcome::Unknown(_) | Outcome::Failed(_) => {}
        }
    }

    fn run(&mut self) {
        self.check_reads(EMPTY_REVISION);
        for revision in EMPTY_REVISION + 1..=self.evidence.last {
            self.step(revision);
            self.check_reads(revision);
        }
        let beyond: Vec<Revision> = self.reads.keys().copied().collect();
        for revision in beyond {
            let detail = format!("an answer is about revision {revision}, which never existed");
            self.violation(Fault::WrongAnswer, detail);
        }
    }

    fn violation(&mut self, fault: Fault, detail: String) {
        self.found.violations.push(Violation::new(fault, detail));
    }

    /// Replays one revision.
    fn step(&mut self, revision: Revision) {
        let acknowledged = self.writes.remove(&revision).unwrap_or_default();
        if let [first, second, ..] = acknowledged[..] {
            let (first, second) = (self.describe(first), self.describe(second));
            self.violation(
                Fault::RevisionReused,
                format!("revision {revision}: {first} and {second}"),
            );
        }
        match acknowledged.first() {
            Some(&index) => self.replay_acknowledged(index, revision),
            None => self.fill(revision),
        }
    }

    fn replay_acknowledged(&mut self, index: usize, revision: Revision) {
        let operation = &self.operations[index];
        let effect = self.state.preview(&operation.request, revision);
        if let Some(seen) = self.evidence.events.get(&revision) {
            let wanted: Vec<Event> = effect.events.iter().map(Event::bare).collect();
            if *seen != wanted {
                let detail =
                    format!("{} but revision {revision} is {seen:?}", self.describe(index));
                self.violation(Fault::LostWrite, detail);
                return self.follow(revision, seen);
            }
        }
        if !matches!(&operation.outcome, Outcome::Ok { response, .. } if *response == effect.response)
        {
            let detail =
                format!("{}: the model answers {:?}", self.describe(index), effect.response);
            self.violation(Fault::WrongAnswer, detail);
        }
        self.state.follow(&effect.events);
        self.found.timeline.push(revision, effect.events);
    }

    /// Finds the request of unknown outcome that made `revision`.
    fn fill(&mut self, revision: Revision) {
        let candidate = self.candidate(revision);
        let seen = self.evidence.events.get(&revision);
        if let Some(index) = candidate {
            let effect = self.state.preview(&self.operations[index].request, revision);
            self.placed.insert(index, revision);
            self.state.follow(&effect.events);
            self.found.timeline.push(revision, effect.events);
            return;
        }
        match seen {
            Some(seen) => {
                let nearest = seen.iter().find_map(|event| self.writer_of(event));
                let nearest =
                    nearest.map_or_else(|| "no request".to_owned(), |index| self.describe(index));
                let detail = format!("revision {revision} is {seen:?}; nearest: {nearest}");
                self.violation(Fault::Phantom, detail);
                self.follow(revision, seen);
            }
            None if self.is_watched(revision) => {
                self.violation(Fault::Hole, format!("nothing happened at revision {revision}"));
            }
            None => {
                let detail = format!("nothing tells what happened at revision {revision}");
                self.violation(Fault::Inconclusive, detail);
            }
        }
    }

    fn candidate(&self, revision: Revision) -> Option<usize> {
        if let Some(seen) = self.evidence.events.get(&revision) {
            let writer = seen.iter().find_map(|event| self.writer_of(event));
            let fits = |&index: &usize| self.fits(index, revision, seen);
            return match writer {
                Some(writer) => Some(writer).filter(fits),
                None => self.deleters.iter().copied().find(fits),
            };
        }
        // No watcher saw it: a read that saw one of its values names the writer.
        let (_, value) = self.evidence.values.get(&revision)?.first()?;
        let writer = *self.writers.get(value.as_str())?;
        self.is_free(writer, revision).then_some(writer)
    }

    fn writer_of(&self, event: &Event) -> Option<usize> {
        let Event::Put { kv, .. } = event else { return None };
        self.writers.get(kv.value.as_str()).copied()
    }

    fn fits(&self, index: usize, revision: Revision, seen: &[Event]) -> bool {
        let effect = self.state.preview(&self.operations[index].request, revision);
        self.is_free(index, revision)
            && effect.events.len() == seen.len()
            && effect.events.iter().zip(seen).all(|(event, seen)| event.bare() == *seen)
    }

    /// Whether the request may have happened at `revision` and nowhere else.
    fn is_free(&self, index: usize, revision: Revision) -> bool {
        let operation = &self.operations[index];
        matches!(operation.outcome, Outcome::Unknown(_))
            && !self.placed.contains_key(&index)
            && self.evidence.floor.before(operation.start) < revision
    }

    /// Whether a watcher of everything saw revisions on both sides of `revision`.
    fn is_watched(&self, revision: Revision) -> bool {
        let events = &self.evidence.events;
        events.range(..revision).next().is_some() && events.range(revision + 1..).next().is_some()
    }

    /// Takes over what watchers saw where no request explains it, so that one fault is not reported many times.
    fn follow(&mut self, revision: Revision, seen: &[Event]) {
        let with_previous = seen.iter().map(|event| {
            let previous = self.state.get(event.key()).cloned();
            match event.clone() {
                Event::Put { kv, .. } => Event::Put { kv, previous },
                Event::Delete { key, revision, .. } => Event::Delete { key, revision, previous },
            }
        });
        let events: Vec<Event> = with_previous.collect();
        self.state.follow(&events);
        self.found.timeline.push(revision, events);
    }

    fn check_reads(&mut self, revision: Revision) {
        for index in self.reads.remove(&revision).unwrap_or_default() {
            let operation = &self.operations[index];
            let Outcome::Ok { response, revision: header } = &operation.outcome else { continue };
            let effect = self.state.preview(&operation.request, revision);
            if effect.response != *response || *header < revision {
                let detail =
                    format!("{}: the model answers {:?}", self.describe(index), effect.response);
                self.violation(Fault::WrongAnswer, detail);
            }
        }
    }

    fn describe(&self, index: usize) -> String {
        let Operation { client, node, start, end, request, outcome, .. } = &self.operations[index];
        format!(
            "client {client} on node {node} [{start}..{end} ns] asked {request:?}, got {outcome:?}"
        )
    }
}

/// Collects the values a request may write; tells whether it may delete.
fn contents<'a>(request: &'a Request, values: &mut Vec<&'a str>) -> bool {
    match request {
        Request::Put { value, .. } => {
            values.push(value);
            false
        }
        Request::Delete { .. } => true,
        Request::Range(_) => false,
        Request::Txn(txn) => {
            let mut deletes = false;
            for request in txn.success.iter().chain(&txn.failure) {
                deletes |= contents(request, values);
            }
            deletes
        }
    }
}
