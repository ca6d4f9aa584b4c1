//! Which check is next: what is due first, and fair to services.
//!
//! Targets that never answer hold their places for as long as their owners like. So a service has a share of
//! the places only, and a place that becomes free goes to the service with the fewest checks under way.

use std::collections::{BTreeSet, HashMap};

use bytes::Bytes;
use tokio::time::Instant;

/// Checks that run at once.
const RUNNING_MAX: usize = 256;
/// Checks of one service among them.
const SERVICE_RUNNING_MAX: usize = 32;

/// Service and id.
pub(super) type Place = (Bytes, String);

/// Checks that are to be made, each at most once at a time.
#[derive(Default)]
pub(super) struct Schedule {
    /// Those that are not due yet, by when they are.
    coming: BTreeSet<(Instant, Place)>,
    services: HashMap<Bytes, Share>,
    /// Services with checks that are due and have a place of their share left: how many run, and since when the
    /// first is due.
    ready: BTreeSet<(usize, Instant, Bytes)>,
    running: usize,
    waiting: usize,
}

/// The checks of a service that are due or run.
#[derive(Default)]
struct Share {
    due: BTreeSet<(Instant, String)>,
    running: usize,
}

impl Share {
    /// The entry of a service in `Schedule::ready`.
    fn entry(&self, service: &Bytes) -> Option<(usize, Instant, Bytes)> {
        let (first, _) = self.due.first().filter(|_| self.running < SERVICE_RUNNING_MAX)?;
        Some((self.running, *first, Bytes::clone(service)))
    }
}

impl Schedule {
    /// Adds a check that is to be made then.
    pub(super) fn add(&mut self, place: Place, due: Instant) {
        self.coming.insert((due, place));
    }

    /// Takes out a check that was added for then and has not begun.
    pub(super) fn remove(&mut self, (service, id): &Place, due: Instant) {
        if self.coming.remove(&(due, (Bytes::clone(service), id.clone()))) {
            return;
        }
        let mut is_found = false;
        self.change(service, |share| is_found = share.due.remove(&(due, id.clone())));
        self.waiting -= usize::from(is_found);
    }

    /// Begins the next check that is due and has a place.
    pub(super) fn begin(&mut self, now: Instant) -> Option<Place> {
        while let Some((due, (service, id))) = self.coming.pop_first() {
            if due > now {
                self.coming.insert((due, (service, id)));
                break;
            }
            self.change(&service, |share| _ = share.due.insert((due, id)));
            self.waiting += 1;
        }
        if self.running >= RUNNING_MAX {
            return None;
        }
        let service = self.ready.first().map(|(_, _, service)| Bytes::clone(service))?;
        let mut begun = None;
        self.change(&service, |share| {
            begun = share.due.pop_first();
            share.running += 1;
        });
        let (_, id) = begun.expect("invariant: a service that is ready has a check that is due");
        self.running += 1;
        self.waiting -= 1;
        Some((service, id))
    }

    /// A check of the service has ended.
    pub(super) fn ended(&mut self, service: &Bytes) {
        self.running -= 1;
        self.change(service, |share| share.running -= 1);
    }

    /// When there may be something to begin, if no check ends before; `None` if there will not.
    pub(super) fn next(&self) -> Option<Instant> {
        let ready = self.ready.first().filter(|_| self.running < RUNNING_MAX);
        let ready = ready.map(|(_, due, _)| *due);
        ready.or_else(|| self.coming.first().map(|(due, _)| *due))
    }

    /// Checks that are due and wait for a place.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    fn change(&mut self, service: &Bytes, change: impl FnOnce(&mut Share)) {
        let share = self.services.entry(Bytes::clone(service)).or_default();
        if let Some(entry) = share.entry(service) {
            self.ready.remove(&entry);
        }
        change(share);
        match share.entry(service) {
            Some(entry) => _ = self.ready.insert(entry),
            None if share.running == 0 => _ = self.services.remove(service),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn place(service: &str, id: usize) -> Place {
        (Bytes::copy_from_slice(service.as_bytes()), id.to_string())
    }

    fn begun(schedule: &mut Schedule, now: Instant) -> Vec<Place> {
        std::iter::from_fn(|| schedule.begin(now)).collect()
    }

    #[test]
    fn checks_begin_when_they_are_due() {
        let now = Instant::now();
        let mut schedule = Schedule::default();
        let later = now + Duration::from_secs(1);
        schedule.add(place("a", 1), later);
        schedule.add(place("a", 2), now);
        assert_eq!(schedule.next(), Some(now));
        assert_eq!(begun(&mut schedule, now), [place("a", 2)]);
        assert_eq!(schedule.next(), Some(later));
        schedule.remove(&place("a", 1), later);
        assert_eq!((schedule.next(), begun(&mut schedule, later)), (None, vec![]));
        schedule.ended(&place("a", 2).0);
        assert!(schedule.services.is_empty(), "nothing is left of it");
    }

    #[test]
    fn a_service_has_a_share() {
        let now = Instant::now();
        let mut schedule = Schedule::default();
        for id in 0..600 {
            schedule.add(place("silent", id), now);
        }
        let later = now + Duration::from_secs(1);
        schedule.add(place("web", 1), later);
        assert_eq!(begun(&mut schedule, later).len(), SERVICE_RUNNING_MAX + 1);
        assert_eq!(schedule.waiting(), 600 - SERVICE_RUNNING_MAX);
        assert_eq!(schedule.next(), None, "one has to end first");
        schedule.ended(&place("silent", 0).0);
        assert_eq!(begun(&mut schedule, later).len(), 1);
        assert_eq!(schedule.waiting(), 600 - SERVICE_RUNNING_MAX - 1);
        for place in (0..600).map(|id| place("silent", id)) {
            // One that has begun is not there to be taken out.
            schedule.remove(&place, now);
        }
        assert_eq!(schedule.waiting(), 0);
    }

    #[test]
    fn a_free_place_goes_to_who_has_the_fewest() {
        let now = Instant::now();
        let mut schedule = Schedule::default();
        for service in 0..20 {
            for id in 0..100 {
                schedule.add(place(&service.to_string(), id), now);
            }
        }
        assert_eq!(begun(&mut schedule, now).len(), RUNNING_MAX);
        let later = now + Duration::from_secs(1);
        schedule.add(place("web", 1), later);
        assert_eq!((schedule.begin(later), schedule.waiting()), (None, 2_001 - RUNNING_MAX));
        schedule.ended(&place("7", 0).0);
        assert_eq!(begun(&mut schedule, later), [place("web", 1)], "though others are due longer");
    }
}
