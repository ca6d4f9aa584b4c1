//! The order given by revisions against real time: nobody may see less than was known before they asked, and
//! nobody may see what was not yet asked for.

use std::collections::{BTreeMap, HashMap};

use crate::history::{History, Nanos, Operation, Outcome, Revision, WatchNews};
use crate::model::EMPTY_REVISION;
use crate::replay::wrote;
use crate::verdict::{Fault, Violation};

/// The newest revision anybody had been shown by each moment.
#[derive(Debug)]
pub struct Floor {
    /// Moments, rising, with the newest revision shown up to then.
    shown: Vec<(Nanos, Revision)>,
}

impl Floor {
    /// Collects what every answer and every event showed.
    #[must_use]
    pub fn of(history: &History) -> Self {
        let answers = history.operations.iter().filter_map(|operation| match &operation.outcome {
            Outcome::Ok { revision, .. } => Some((operation.end, *revision)),
            Outcome::Failed(_) | Outcome::Unknown(_) => None,
        });
        let responses = history.sessions.iter().flat_map(|session| &session.responses);
        let events = responses.filter_map(|response| match &response.news {
            WatchNews::Events(events) => Some((response.time, events.last()?.revision())),
            WatchNews::Created | WatchNews::Progress | WatchNews::Canceled { .. } => None,
        });
        let mut shown: Vec<(Nanos, Revision)> = answers.chain(events).collect();
        shown.sort_unstable();
        let mut newest = EMPTY_REVISION;
        for (_, revision) in &mut shown {
            newest = newest.max(*revision);
            *revision = newest;
        }
        Self { shown }
    }

    /// The newest revision shown strictly before `moment`.
    #[must_use]
    pub fn before(&self, moment: Nanos) -> Revision {
        let count = self.shown.partition_point(|(shown, _)| *shown < moment);
        count.checked_sub(1).map_or(EMPTY_REVISION, |last| self.shown[last].1)
    }
}

/// Checks a history whose requests of unknown outcome happened at the revisions in `placed`.
pub fn check(
    history: &History,
    placed: &HashMap<usize, Revision>,
    floor: &Floor,
    violations: &mut Vec<Violation>,
) {
    for (index, operation) in history.operations.iter().enumerate() {
        check_floor(operation, placed.get(&index).copied(), floor, violations);
    }
    check_sessions(&history.operations, violations);
    check_future(history, placed, violations);
}

fn check_floor(
    operation: &Operation,
    placed: Option<Revision>,
    floor: &Floor,
    violations: &mut Vec<Violation>,
) {
    let known = floor.before(operation.start);
    let (fault, revision) = match (&operation.outcome, placed) {
        (Outcome::Ok { revision, response }, _) if wrote(response) && *revision <= known => {
            (Fault::RevisionBack, revision)
        }
        (Outcome::Ok { revision, .. }, _)
            if *revision < known && !operation.request.is_serializable() =>
        {
            (Fault::StaleRead, revision)
        }
        (_, Some(revision)) if revision <= known => (Fault::RevisionBack, &{ revision }),
        _ => return,
    };
    let Operation { client, node, start, request, .. } = operation;
    let detail = format!(
        "client {client} on node {node} sent {request:?} at {start} ns, when revision {known} was known, \
         and it happened at revision {revision}"
    );
    violations.push(Violation::new(fault, detail));
}

/// One connection talks to one member, which never goes back while it runs.
fn check_sessions(operations: &[Operation], violations: &mut Vec<Violation>) {
    let mut sessions: BTreeMap<(u32, u32), Vec<(Nanos, Revision)>> = BTreeMap::new();
    for operation in operations {
        if let Outcome::Ok { revision, .. } = operation.outcome {
            let session = sessions.entry((operation.client, operation.session)).or_default();
            session.push((operation.start, revision));
        }
    }
    for ((client, session), mut answers) in sessions {
        answers.sort_unstable();
        for pair in answers.windows(2) {
            let [(_, before), (start, after)] = pair else { continue };
            if after < before {
                let detail = format!(
                    "client {client}, connection {session}: revision {after} at {start} ns after {before}"
                );
                violations.push(Violation::new(Fault::SessionBack, detail));
            }
        }
    }
}

/// A revision can only be shown after the request that made it, and all requests before that, were sent.
fn check_future(
    history: &History,
    placed: &HashMap<usize, Revision>,
    violations: &mut Vec<Violation>,
) {
    let mut sent: BTreeMap<Revision, Nanos> = BTreeMap::new();
    for (index, operation) in history.operations.iter().enumerate() {
        let revision = match &operation.outcome {
            Outcome::Ok { revision, response } if wrote(response) => Some(*revision),
            _ => placed.get(&index).copied(),
        };
        if let Some(revision) = revision {
            sent.insert(revision, operation.start);
        }
    }
    let mut latest = 0;
    for start in sent.values_mut() {
        latest = latest.max(*start);
        *start = latest;
    }
    let sent_by = |revision| sent.range(..=revision).next_back().map_or(0, |(_, &start)| start);
    for operation in &history.operations {
        if let Outcome::Ok { revision, .. } = operation.outcome
            && operation.end < sent_by(revision)
        {
            let detail = format!("{operation:?} shows a revision whose request was not yet sent");
            violations.push(Violation::new(Fault::FromTheFuture, detail));
        }
    }
    for session in &history.sessions {
        for response in &session.responses {
            let WatchNews::Events(events) = &response.news else { continue };
            if events.last().is_some_and(|event| response.time < sent_by(event.revision())) {
                let detail = format!(
                    "watcher {}: {response:?} before the request was sent",
                    session.watcher
                );
                violations.push(Violation::new(Fault::FromTheFuture, detail));
            }
        }
    }
}
