//! The watch checker: what every session received against the replayed history of the store.
//!
//! Filter, Ordered, Unique, Atomic, Bookmarkable, Resumable, Reliable, PrevKV and IsCreate of etcd's own tests;
//! the wording of a violation says which. A session's stream may end at any point (its node was killed); what
//! it did deliver must be an unbroken run of the history from where it was asked to begin.

use crate::history::{Event, Revision, WatchNews, WatchResponse, WatchSession, in_range};
use crate::model::Timeline;
use crate::verdict::{Fault, Violation};

/// Checks one session.
pub fn check(session: &WatchSession, timeline: &Timeline, violations: &mut Vec<Violation>) {
    let mut checker = Checker { session, timeline, next: None, seen_at: 0, violations };
    for response in &session.responses {
        checker.response(response);
    }
}

/// The next revision a session would deliver: what a resuming client asks for.
#[must_use]
pub fn resume_revision(session: &WatchSession) -> Option<Revision> {
    let mut next = (session.from > 0).then_some(session.from);
    for response in &session.responses {
        next = match &response.news {
            WatchNews::Created if next.is_none() => Some(response.revision + 1),
            WatchNews::Events(events) => events.last().map(|event| event.revision() + 1).or(next),
            WatchNews::Progress => next.map(|next| next.max(response.revision + 1)),
            WatchNews::Created | WatchNews::Canceled { .. } => next,
        };
    }
    next
}

struct Checker<'a> {
    session: &'a WatchSession,
    timeline: &'a Timeline,
    /// The first revision not yet delivered; unknown until the watcher is created.
    next: Option<Revision>,
    /// The revision of the last event of the response before.
    seen_at: Revision,
    violations: &'a mut Vec<Violation>,
}

impl Checker<'_> {
    fn violation(&mut self, fault: Fault, detail: &str) {
        let WatchSession { watcher, node, start, end, from, .. } = self.session;
        let detail = format!(
            "watcher {watcher} on node {node} ({start:?}..{end:?} from revision {from}): {detail}"
        );
        self.violations.push(Violation::new(fault, detail));
    }

    fn response(&mut self, response: &WatchResponse) {
        match &response.news {
            WatchNews::Created => {
                let from = self.session.from;
                self.next = Some(if from > 0 { from } else { response.revision + 1 });
            }
            WatchNews::Events(events) => self.events(events, response.revision),
            WatchNews::Progress => self.progress(response.revision),
            WatchNews::Canceled { reason, compact_revision } => {
                let is_compacted = *compact_revision > 0;
                if !is_compacted {
                    self.violation(
                        Fault::Canceled,
                        &format!("cancelled by the server: {reason:?}"),
                    );
                }
            }
        }
    }

    fn events(&mut self, events: &[Event], header: Revision) {
        let (Some(first), Some(last)) = (events.first(), events.last()) else {
            return self.violation(Fault::WrongEvent, "a response of events without events");
        };
        let Some(next) = self.next else {
            return self.violation(Fault::Unordered, "events before the watcher was created");
        };
        if header < last.revision() {
            self.violation(
                Fault::WrongEvent,
                &format!("header revision {header} is below {last:?}"),
            );
        }
        if first.revision() == self.seen_at {
            let detail = format!("revision {} is split over responses", self.seen_at);
            self.violation(Fault::Torn, &detail);
        } else if first.revision() < next {
            let detail =
                format!("{first:?} again, or from before; the next one is at least {next}");
            self.violation(Fault::Duplicated, &detail);
        }
        if let Some(pair) = events.windows(2).find(|pair| pair[1].revision() < pair[0].revision()) {
            let detail = format!("{:?} after {:?}", pair[1], pair[0]);
            self.violation(Fault::Unordered, &detail);
        } else {
            self.compare(events, next.max(self.seen_at), last.revision());
        }
        self.seen_at = last.revision();
        self.next = Some(self.next.unwrap_or(0).max(last.revision() + 1));
    }

    /// Compares delivered events with the history from `first` to `last`.
    fn compare(&mut self, events: &[Event], first: Revision, last: Revision) {
        let timeline = self.timeline;
        let mut wanted =
            timeline.between(first, last).filter(|event| self.session.wants(event)).peekable();
        let mut faults = Vec::new();
        let mut previous: Option<&Event> = None;
        for event in events {
            if !self.session.wants(event) {
                faults.push((Fault::Unfiltered, format!("{event:?} was not asked for")));
                continue;
            }
            if event.revision() < first {
                continue; // Reported already.
            }
            if previous.is_some_and(|previous| previous.bare() == event.bare()) {
                faults.push((Fault::Duplicated, format!("{event:?} twice in a row")));
                continue;
            }
            previous = Some(event);
            while let Some(missed) = wanted.next_if(|wanted| is_before(wanted, event)) {
                faults.push((Fault::Skipped, format!("{missed:?} is missing before {event:?}")));
            }
            match wanted.next() {
                Some(wanted) => {
                    faults.extend(difference(event, wanted, self.session.with_previous))
                }
                None => {
                    faults.push((Fault::WrongEvent, format!("{event:?} is not in the history")))
                }
            }
        }
        for missed in wanted {
            faults.push((Fault::Skipped, format!("{missed:?} is missing")));
        }
        faults.into_iter().for_each(|(fault, detail)| self.violation(fault, &detail));
    }

    /// A progress notice promises that everything up to its revision was delivered.
    fn progress(&mut self, revision: Revision) {
        let Some(next) = self.next else {
            return self.violation(Fault::Progress, "progress before the watcher was created");
        };
        let timeline = self.timeline;
        let missed = timeline.between(next, revision).find(|event| self.session.wants(event));
        if let Some(missed) = missed {
            let detail = format!("progress at {revision}, but {missed:?} was not delivered");
            // The promise is broken; what comes late is not reported once more as duplicated.
            return self.violation(Fault::Progress, &detail);
        }
        self.next = Some(next.max(revision + 1));
    }
}

fn is_before(wanted: &Event, event: &Event) -> bool {
    let same_place = wanted.revision() == event.revision() && wanted.key() == event.key();
    wanted.revision() < event.revision() || (wanted.revision() == event.revision() && !same_place)
}

fn difference(event: &Event, wanted: &Event, with_previous: bool) -> Option<(Fault, String)> {
    if event.bare() != wanted.bare() {
        return Some((Fault::WrongEvent, format!("{event:?} should be {wanted:?}")));
    }
    let previous = if with_previous { wanted.previous() } else { None };
    (event.previous() != previous)
        .then(|| (Fault::PreviousValue, format!("{event:?} should have previous {previous:?}")))
}

impl WatchSession {
    /// Whether the session asked for such an event.
    #[must_use]
    pub fn wants(&self, event: &Event) -> bool {
        let is_filtered = match event {
            Event::Put { .. } => self.no_puts,
            Event::Delete { .. } => self.no_deletes,
        };
        !is_filtered && in_range(event.key(), &self.start, &self.end)
    }
}
