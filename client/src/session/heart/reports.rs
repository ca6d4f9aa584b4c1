//! What instances say about themselves with every heartbeat of their sessions.
//!
//! What is said already costs the cluster nothing. So all of it is said again and again, and whatever gets lost with a
//! stream, or is undone by a copy of an earlier heartbeat that comes late, the next one mends.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use conclave_proto::v1::{InstanceReport, ReportRefused};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::Heart;
use super::kept::Tracked;
use crate::login::is_stale;
use crate::moment::Moment;

/// Reports of one heartbeat: first what is new, then what was not said for the longest time.
const REPORTS_MAX: usize = 1_000;
/// Least time from a heartbeat to one that is sent early, because there is something new to say.
pub(super) const EARLY_PAUSE: Duration = Duration::from_millis(500);
/// What was refused is said again after this time; so long a stream also lasts before it is opened again for the
/// sake of a new token.
const REFUSED_PAUSE: Duration = Duration::from_secs(60);

/// Session, service and id of an instance.
type Place = (i64, String, String);

/// What there is to say.
#[derive(Debug, Default)]
pub(super) struct Reports {
    said: Mutex<SaidByAll>,
    /// Whether the server of the present stream takes reports, as far as that is known.
    taken: watch::Sender<Option<bool>>,
}

#[derive(Debug, Default)]
struct SaidByAll {
    instances: HashMap<Place, Said>,
    /// Grows with each heartbeat and each [`Saying`].
    count: u64,
    /// When the stream was opened again for the sake of a new token.
    reopened: Option<Moment>,
}

/// What one instance says.
#[derive(Debug)]
struct Said {
    report: InstanceReport,
    /// Of the [`Saying`] that says it.
    number: u64,
    /// The count when it was said last; 0: it was not said yet.
    said_at: u64,
    /// It was refused, and is not said again before.
    rests_until: Option<Moment>,
}

impl Said {
    fn rests(&self, now: Moment) -> bool {
        self.rests_until.is_some_and(|until| now < until)
    }
}

/// An instance that says something, until this is dropped.
#[derive(Debug)]
#[must_use = "nothing is said any more when it is dropped"]
pub(crate) struct Saying {
    heart: Arc<Heart>,
    place: Place,
    number: u64,
}

impl Drop for Saying {
    fn drop(&mut self) {
        let instances = &mut self.heart.reports.said.lock().instances;
        // Somebody else may speak for the instance by now.
        if instances.get(&self.place).is_some_and(|said| said.number == self.number) {
            instances.remove(&self.place);
        }
    }
}

/// What is to be done after a message of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    Listen,
    /// The stream has to be opened with a new token.
    Reopen,
}

impl Heart {
    /// Says this about an instance with every heartbeat from now on, in place of what was said about it.
    pub(crate) fn say(self: &Arc<Self>, report: InstanceReport) -> Saying {
        let place = (report.session, report.service.clone(), report.id.clone());
        let (number, is_news) = self.reports.say(&place, report);
        if is_news {
            self.wake();
        }
        Saying { heart: Arc::clone(self), place, number }
    }

    /// Whether the server takes reports with heartbeats; `None` while that is not known.
    pub(crate) fn takes_reports(&self) -> watch::Receiver<Option<bool>> {
        self.reports.taken.subscribe()
    }
}

impl Reports {
    fn say(&self, place: &Place, report: InstanceReport) -> (u64, bool) {
        let mut said = self.said.lock();
        said.count += 1;
        let number = said.count;
        if let Some(before) = said.instances.get_mut(place).filter(|said| said.report == report) {
            before.number = number;
            return (number, false);
        }
        let (said_at, rests_until) = (0, None);
        said.instances.insert(place.clone(), Said { report, number, said_at, rests_until });
        (number, true)
    }

    /// Notes what the server says about itself; `None` with a new stream.
    pub(super) fn note_taken(&self, is_taken: Option<bool>) {
        self.taken.send_if_modified(|taken| std::mem::replace(taken, is_taken) != is_taken);
    }

    /// What the next heartbeat says, which renews `sessions`.
    pub(super) fn next(
        &self,
        sessions: &HashMap<i64, Tracked>,
        now: Moment,
    ) -> Vec<InstanceReport> {
        if *self.taken.borrow() == Some(false) {
            return Vec::new();
        }
        let said = &mut *self.said.lock();
        said.count += 1;
        let is_due = |(place, said): &(&Place, &mut Said)| {
            sessions.contains_key(&place.0) && !said.rests(now)
        };
        let mut due: Vec<&mut Said> =
            said.instances.iter_mut().filter(is_due).map(|(_, said)| said).collect();
        due.sort_unstable_by_key(|said| said.said_at);
        due.truncate(REPORTS_MAX);
        let count = said.count;
        let say = |said: &mut Said| {
            said.said_at = count;
            said.report.clone()
        };
        due.into_iter().map(say).collect()
    }

    /// Whether there is something new to say with a heartbeat that renews `sessions`.
    pub(super) fn has_news(&self, sessions: &HashMap<i64, Tracked>) -> bool {
        let is_news =
            |(place, said): (&Place, &Said)| said.said_at == 0 && sessions.contains_key(&place.0);
        *self.taken.borrow() != Some(false) && self.said.lock().instances.iter().any(is_news)
    }

    /// Takes what the server refused.
    pub(super) fn refused(&self, refused: &[ReportRefused], now: Moment) -> Next {
        let mut said = self.said.lock();
        let may_reopen = said.reopened.is_none_or(|reopened| now >= reopened + REFUSED_PAUSE);
        if may_reopen && refused.iter().any(|refused| is_stale(&refused.reason)) {
            said.reopened = Some(now);
            return Next::Reopen;
        }
        for ReportRefused { session, service, id, fence, reason, .. } in refused {
            tracing::warn!(session, service, id, reason, "a report was refused");
            let place = (*session, service.clone(), id.clone());
            let said = said.instances.get_mut(&place).filter(|said| said.report.fence == *fence);
            // What is new since then was not refused.
            if let Some(said) = said.filter(|said| said.said_at > 0) {
                said.rests_until = Some(now + REFUSED_PAUSE);
            }
        }
        Next::Listen
    }
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::moment::sleep_through;
    use crate::session::SessionState;

    fn sessions(ids: &[i64]) -> HashMap<i64, Tracked> {
        let tracked = || Tracked {
            ttl: Duration::from_secs(60),
            confirmed: Moment::now(),
            state: watch::Sender::new(SessionState::Active),
            lost: CancellationToken::new(),
        };
        ids.iter().map(|id| (*id, tracked())).collect()
    }

    fn report(id: &str, weight: u32) -> InstanceReport {
        let (id, service) = (id.to_owned(), "api".to_owned());
        let weight = Some(weight);
        InstanceReport { session: 1, service, id, fence: 5, weight, ..InstanceReport::default() }
    }

    fn refusal(id: &str, fence: i64, reason: &str) -> ReportRefused {
        let (id, service, reason) = (id.to_owned(), "api".to_owned(), reason.to_owned());
        ReportRefused { session: 1, service, id, fence, reason, ..ReportRefused::default() }
    }

    fn ids(reports: &[InstanceReport]) -> Vec<String> {
        let mut ids: Vec<String> = reports.iter().map(|report| report.id.clone()).collect();
        ids.sort_unstable();
        ids
    }

    #[test]
    fn what_is_new_goes_first_and_all_in_turn() {
        let (heart, all) = (Arc::new(Heart::default()), sessions(&[1]));
        let (reports, now) = (&heart.reports, Moment::now());
        let names: Vec<String> =
            (0..REPORTS_MAX + 2).map(|number| format!("{number:04}")).collect();
        let sayings: Vec<Saying> = names.iter().map(|name| heart.say(report(name, 1))).collect();
        let first = reports.next(&all, now);
        assert_eq!(first.len(), REPORTS_MAX);
        assert!(reports.has_news(&all), "some had no room");
        let mut heard = ids(&[first, reports.next(&all, now)].concat());
        heard.dedup();
        assert_eq!((heard.len(), reports.has_news(&all)), (names.len(), false));
        let _news = heart.say(report("0000", 2));
        let third = reports.next(&all, now);
        assert_eq!((&*third[0].id, third[0].weight), ("0000", Some(2)));
        drop(sayings);
        assert_eq!(ids(&reports.next(&all, now)), ["0000"], "the last to speak for it is there");
    }

    #[test]
    fn nothing_is_said_about_sessions_that_ended_or_to_who_does_not_listen() {
        let heart = Arc::new(Heart::default());
        let (reports, now) = (&heart.reports, Moment::now());
        let _saying = heart.say(report("a", 1));
        assert!(
            !reports.has_news(&sessions(&[2])) && reports.next(&sessions(&[2]), now).is_empty()
        );
        let all = sessions(&[1]);
        reports.note_taken(Some(false));
        assert!(!reports.has_news(&all) && reports.next(&all, now).is_empty());
        reports.note_taken(None);
        assert!(reports.has_news(&all), "another server may");
        assert_eq!(ids(&reports.next(&all, now)), ["a"]);
        assert!(!reports.has_news(&all));
        let _same = heart.say(report("a", 1));
        assert!(!reports.has_news(&all), "it said so before");
        assert_eq!(ids(&reports.next(&all, now)), ["a"], "and says it again");
    }

    #[test]
    fn what_was_refused_rests_until_it_changes_or_a_minute_has_passed() {
        let (heart, all) = (Arc::new(Heart::default()), sessions(&[1]));
        let reports = &heart.reports;
        let said = || ids(&reports.next(&all, Moment::now())).len();
        let refuse =
            |fence| reports.refused(&[refusal("a", fence, "instance not found")], Moment::now());
        let _saying = heart.say(report("a", 1));
        assert_eq!(said(), 1);
        assert_eq!((refuse(4), said()), (Next::Listen, 1), "an earlier registration");
        assert_eq!((refuse(5), said()), (Next::Listen, 0));
        let _news = heart.say(report("a", 2));
        refuse(5);
        assert_eq!(said(), 1, "that was about what it said before");
        refuse(5);
        assert_eq!(said(), 0);
        sleep_through(REFUSED_PAUSE);
        assert_eq!(said(), 1);
    }

    #[test]
    fn a_stream_is_opened_again_for_a_new_token_but_not_again_and_again() {
        let (heart, all) = (Arc::new(Heart::default()), sessions(&[1]));
        let reports = &heart.reports;
        let _saying = heart.say(report("a", 1));
        reports.next(&all, Moment::now());
        let stale = [refusal("a", 5, "etcdserver: revision of auth store is old")];
        assert_eq!(reports.refused(&stale, Moment::now()), Next::Reopen);
        assert_eq!(reports.next(&all, Moment::now()).len(), 1);
        assert_eq!(reports.refused(&stale, Moment::now()), Next::Listen);
        assert!(reports.next(&all, Moment::now()).is_empty());
        sleep_through(REFUSED_PAUSE);
        assert_eq!(reports.refused(&stale, Moment::now()), Next::Reopen);
    }
}
