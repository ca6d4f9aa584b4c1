//! Deadlines of leases: local to each node, not part of the replicated state.
//!
//! Every member tracks every lease, so that a new leader can restart all deadlines from memory;
//! only the leader acts on them. Time is an argument: the time since some fixed moment of a
//! monotonic clock, so that tests and the simulator control it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Most renewed leases that one call of [`ExpiryQueue::take_expired`] moves to their new position.
const MOVES_MAX: usize = 10_000;

/// Deadlines of all leases, ordered by time.
///
/// A renewal only changes the lease's deadline. Its position in the order is corrected when it
/// comes up, about once per TTL, however many heartbeats there were.
#[derive(Debug, Default)]
pub struct ExpiryQueue {
    leases: BTreeMap<i64, Tracked>,
    places: BTreeSet<(Duration, i64)>,
}

/// One lease of the queue.
#[derive(Clone, Copy, Debug)]
struct Tracked {
    /// Tells apart leases that had the same id, by a number of the caller's choice (its grant's log
    /// index).
    granted: u64,
    ttl: Duration,
    deadline: Duration,
    /// Its position in the order: never after the deadline.
    place: Duration,
    /// [`ExpiryQueue::take_expired`] returned it: it can no longer be renewed, because the command
    /// that ends it may already be in the log.
    is_ending: bool,
}

/// What a keep-alive found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// The lease lives for its full TTL again.
    Renewed {
        /// The full TTL.
        ttl: Duration,
    },
    /// The deadline has passed; the lease still exists but is being ended.
    Ending,
    /// There is no such lease.
    Unknown,
}

impl ExpiryQueue {
    /// Creates an empty queue.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns how many leases are tracked.
    #[must_use]
    pub fn len(&self) -> usize {
        self.leases.len()
    }

    /// Returns whether no lease is tracked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.leases.is_empty()
    }

    /// Tracks a lease that begins `now`; one that is known begins again. It is given as its id and
    /// the number that tells it apart from other leases of this id.
    pub fn grant(&mut self, (id, granted): (i64, u64), ttl: Duration, now: Duration) {
        self.remove(id);
        // Saturating: the largest TTL (9e9 s) fits easily, and for anything larger the latest
        // possible deadline is right.
        let deadline = now.saturating_add(ttl);
        let tracked = Tracked { granted, ttl, deadline, place: deadline, is_ending: false };
        self.leases.insert(id, tracked);
        self.places.insert((deadline, id));
    }

    /// Forgets a lease that ended. Returns whether it was known.
    pub fn remove(&mut self, id: i64) -> bool {
        let Some(tracked) = self.leases.remove(&id) else { return false };
        self.places.remove(&(tracked.place, id));
        true
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.leases.clear();
        self.places.clear();
    }

    /// Gives every lease its full TTL plus `grace` from `now`. A new leader does this, because it
    /// does not know when its predecessor last renewed them.
    pub fn restart(&mut self, now: Duration, grace: Duration) {
        self.places.clear();
        for (id, tracked) in &mut self.leases {
            tracked.deadline = now.saturating_add(tracked.ttl).saturating_add(grace);
            tracked.is_ending = false;
            tracked.place = tracked.deadline;
            self.places.insert((tracked.place, *id));
        }
    }

    /// Gives a lease its full TTL from `now`, unless its deadline has passed. Never moves a deadline
    /// back: a restarted lease keeps its grace.
    pub fn renew(&mut self, id: i64, now: Duration) -> Renewal {
        let Some(tracked) = self.leases.get_mut(&id) else { return Renewal::Unknown };
        if tracked.is_ending || tracked.deadline <= now {
            return Renewal::Ending;
        }
        tracked.deadline = tracked.deadline.max(now.saturating_add(tracked.ttl));
        Renewal::Renewed { ttl: tracked.ttl }
    }

    /// Returns at most `limit` leases whose deadline is not after `now`, with the number they were
    /// granted with, earliest deadline first. Fewer, or none, if many renewed leases had to be
    /// moved first.
    ///
    /// They can no longer be renewed. They stay in the queue until [`ExpiryQueue::remove`] is
    /// called (after the command that ends them was applied), and are returned again after `retry`,
    /// in case that command was lost.
    pub fn take_expired(
        &mut self,
        now: Duration,
        limit: usize,
        retry: Duration,
    ) -> Vec<(i64, u64)> {
        let (mut expired, mut moves) = (Vec::new(), 0..MOVES_MAX);
        while expired.len() < limit
            && !moves.is_empty()
            && let Some(&(place, id)) = self.places.first().filter(|(place, _)| *place <= now)
        {
            self.places.remove(&(place, id));
            let Some(tracked) = self.leases.get_mut(&id) else { continue };
            if place < tracked.deadline {
                moves.next();
            } else {
                tracked.deadline = now.saturating_add(retry);
                tracked.is_ending = true;
                expired.push((id, tracked.granted));
            }
            tracked.place = tracked.deadline;
            self.places.insert((tracked.place, id));
        }
        expired
    }

    /// Makes [`ExpiryQueue::take_expired`] return those of `ids` that are ending again at `at`, if
    /// it would be later: the command that was to end them has failed.
    pub fn hurry(&mut self, ids: &[i64], at: Duration) {
        for id in ids {
            let Some(tracked) = self.leases.get_mut(id) else { continue };
            if tracked.is_ending && tracked.deadline > at {
                self.places.remove(&(tracked.place, *id));
                (tracked.deadline, tracked.place) = (at, at);
                self.places.insert((at, *id));
            }
        }
    }

    /// Returns a time before which [`ExpiryQueue::take_expired`] returns nothing. It may still
    /// return nothing then.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        self.places.first().map(|(at, _)| *at)
    }

    /// Returns the time a lease has left, zero if it is being ended, `None` if it is unknown.
    #[must_use]
    pub fn remaining(&self, id: i64, now: Duration) -> Option<Duration> {
        self.leases.get(&id).map(|tracked| tracked.remaining(now))
    }

    /// Returns every lease with the time it has left, the shortest first.
    #[must_use]
    pub fn by_remaining(&self, now: Duration) -> Vec<(i64, Duration)> {
        let mut all: Vec<_> = self.leases.iter().map(|(id, t)| (*id, t.remaining(now))).collect();
        all.sort_by_key(|(id, remaining)| (*remaining, *id));
        all
    }

    /// Returns the TTL a lease was granted with.
    #[must_use]
    pub fn ttl(&self, id: i64) -> Option<Duration> {
        self.leases.get(&id).map(|tracked| tracked.ttl)
    }
}

impl Tracked {
    fn remaining(&self, now: Duration) -> Duration {
        if self.is_ending { Duration::ZERO } else { self.deadline.saturating_sub(now) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RETRY: Duration = Duration::from_secs(5);

    /// The ids that are returned; all were granted with number 0.
    fn expired(queue: &mut ExpiryQueue, now: Duration, limit: usize) -> Vec<i64> {
        let taken = queue.take_expired(now, limit, RETRY).into_iter();
        taken.map(|(id, granted)| if granted == 0 { id } else { panic!("{granted}") }).collect()
    }

    fn secs(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    #[test]
    fn a_lease_expires_at_its_ttl_and_not_before() {
        let mut queue = ExpiryQueue::new();
        queue.grant((1, 0), secs(10), secs(100));
        assert_eq!(expired(&mut queue, secs(109), 10), Vec::<i64>::new());
        assert_eq!(queue.remaining(1, secs(109)), Some(secs(1)));
        assert_eq!(expired(&mut queue, secs(110), 10), vec![1]);
    }

    #[test]
    fn a_renewed_lease_lives_its_full_ttl_again() {
        let mut queue = ExpiryQueue::new();
        queue.grant((1, 0), secs(10), secs(0));
        assert_eq!(queue.renew(1, secs(9)), Renewal::Renewed { ttl: secs(10) });
        assert_eq!(expired(&mut queue, secs(18), 10), Vec::<i64>::new());
        assert_eq!(queue.next_deadline(), Some(secs(19)));
        assert_eq!(queue.renew(1, secs(19)), Renewal::Ending);
        assert_eq!(queue.renew(2, secs(19)), Renewal::Unknown);
    }

    #[test]
    fn an_ending_lease_is_handed_out_again_until_it_is_removed() {
        let mut queue = ExpiryQueue::new();
        queue.grant((7, 0), secs(1), secs(0));
        assert_eq!(expired(&mut queue, secs(1), 10), vec![7]);
        assert_eq!(queue.renew(7, secs(1)), Renewal::Ending);
        assert_eq!(queue.remaining(7, secs(1)), Some(Duration::ZERO));
        assert_eq!(expired(&mut queue, secs(5), 10), Vec::<i64>::new());
        assert_eq!(expired(&mut queue, secs(6), 10), vec![7]);
        assert!(queue.remove(7));
        assert!(!queue.remove(7));
        assert_eq!(queue.next_deadline(), None);
    }

    #[test]
    fn a_lease_whose_end_failed_is_handed_out_again_soon() {
        let mut queue = ExpiryQueue::new();
        queue.grant((7, 0), secs(1), secs(0));
        queue.grant((8, 0), secs(3), secs(0));
        assert_eq!(expired(&mut queue, secs(1), 10), vec![7]);
        queue.hurry(&[7, 8, 9], secs(2));
        assert_eq!(queue.renew(7, secs(1)), Renewal::Ending);
        assert_eq!(expired(&mut queue, secs(2), 10), vec![7]);
        queue.hurry(&[7], secs(100));
        assert_eq!(expired(&mut queue, secs(7), 10), vec![8, 7], "no later than it would be");
    }

    #[test]
    fn what_expires_is_the_last_lease_of_its_id() {
        let mut queue = ExpiryQueue::new();
        queue.grant((7, 3), secs(1), secs(0));
        queue.grant((7, 5), secs(2), secs(0));
        queue.restart(secs(0), secs(0));
        assert_eq!(queue.take_expired(secs(2), 10, RETRY), vec![(7, 5)]);
        assert_eq!(queue.take_expired(secs(9), 10, RETRY), vec![(7, 5)], "asked again");
    }

    #[test]
    fn a_new_leader_restarts_every_deadline() {
        let mut queue = ExpiryQueue::new();
        queue.grant((1, 0), secs(10), secs(0));
        queue.grant((2, 0), secs(20), secs(0));
        assert_eq!(expired(&mut queue, secs(10), 10), vec![1]);
        queue.restart(secs(100), secs(1));
        assert_eq!(queue.by_remaining(secs(100)), vec![(1, secs(11)), (2, secs(21))]);
        // Renewing at once must not take the grace away.
        assert_eq!(queue.renew(1, secs(100)), Renewal::Renewed { ttl: secs(10) });
        assert_eq!(queue.remaining(1, secs(100)), Some(secs(11)));
    }

    #[test]
    fn the_largest_ttl_does_not_overflow() {
        let mut queue = ExpiryQueue::new();
        queue.grant((1, 0), secs(9_000_000_000), secs(4_000_000_000));
        assert_eq!(queue.remaining(1, secs(4_000_000_001)), Some(secs(8_999_999_999)));
        queue.grant((2, 0), Duration::MAX, secs(1));
        queue.restart(secs(2), secs(3));
        assert_eq!(queue.remaining(2, Duration::ZERO), Some(Duration::MAX));
    }

    #[test]
    fn the_longest_expired_come_first_and_the_limit_holds() {
        let mut queue = ExpiryQueue::new();
        for id in 0..10 {
            queue.grant((id, 0), secs(20 - u64::try_from(id).unwrap()), secs(0));
        }
        assert_eq!(expired(&mut queue, secs(100), 3), vec![9, 8, 7]);
        assert_eq!(expired(&mut queue, secs(100), 3), vec![6, 5, 4]);
    }

    #[test]
    fn many_renewed_leases_are_put_in_their_places_bit_by_bit() {
        let mut queue = ExpiryQueue::new();
        let count = i64::try_from(MOVES_MAX).unwrap() * 2;
        for id in 0..count {
            queue.grant((id, 0), secs(10), secs(0));
            queue.renew(id, secs(if id == 7 { 2 } else { 5 }));
        }
        // Two calls move 10,000 leases each; the third returns what is due.
        for _ in 0..2 {
            assert_eq!(expired(&mut queue, secs(12), 10), Vec::<i64>::new());
            assert!(queue.next_deadline() <= Some(secs(12)));
        }
        assert_eq!(expired(&mut queue, secs(12), 10), vec![7]);
        assert_eq!(queue.next_deadline(), Some(secs(15)));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Grant(i64, u64),
        Renew(i64),
        Remove(i64),
        Take(usize),
        Restart(u64),
        Hurry(i64, u64),
        Pass(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..8i64, 1..20u64).prop_map(|(id, ttl)| Step::Grant(id, ttl)),
            (0..8i64).prop_map(Step::Renew),
            (0..8i64).prop_map(Step::Remove),
            (0..4usize).prop_map(Step::Take),
            (0..3u64).prop_map(Step::Restart),
            (0..8i64, 0..7u64).prop_map(|(id, after)| Step::Hurry(id, after)),
            (0..10u64).prop_map(Step::Pass),
        ]
    }

    /// The same rules over an unordered list: id -> (ttl, deadline, is ending).
    #[derive(Default)]
    struct Naive(BTreeMap<i64, (u64, u64, bool)>);

    impl Naive {
        fn renew(&mut self, id: i64, now: u64) -> Renewal {
            match self.0.get_mut(&id) {
                None => Renewal::Unknown,
                Some((_, deadline, ending)) if *ending || *deadline <= now => Renewal::Ending,
                Some((ttl, deadline, _)) => {
                    *deadline = (*deadline).max(now + *ttl);
                    Renewal::Renewed { ttl: secs(*ttl) }
                }
            }
        }

        fn take(&mut self, now: u64, limit: usize) -> Vec<i64> {
            let mut due: Vec<(u64, i64)> =
                self.0.iter().filter(|(_, l)| l.1 <= now).map(|(id, l)| (l.1, *id)).collect();
            due.sort_unstable();
            due.truncate(limit);
            for (_, id) in &due {
                let lease = self.0.get_mut(id).unwrap();
                (lease.1, lease.2) = (now + RETRY.as_secs(), true);
            }
            due.into_iter().map(|(_, id)| id).collect()
        }
    }

    proptest! {
        #[test]
        fn behaves_like_an_unordered_list(steps in prop::collection::vec(step(), 0..200)) {
            let (mut queue, mut naive, mut now) = (ExpiryQueue::new(), Naive::default(), 0u64);
            for step in steps {
                match step {
                    Step::Grant(id, ttl) => {
                        queue.grant((id, 0), secs(ttl), secs(now));
                        naive.0.insert(id, (ttl, now + ttl, false));
                    }
                    Step::Renew(id) => prop_assert_eq!(queue.renew(id, secs(now)), naive.renew(id, now)),
                    Step::Remove(id) => prop_assert_eq!(queue.remove(id), naive.0.remove(&id).is_some()),
                    Step::Take(limit) => {
                        prop_assert_eq!(expired(&mut queue, secs(now), limit), naive.take(now, limit));
                    }
                    Step::Restart(grace) => {
                        queue.restart(secs(now), secs(grace));
                        for lease in naive.0.values_mut() {
                            (lease.1, lease.2) = (now + lease.0 + grace, false);
                        }
                    }
                    Step::Hurry(id, after) => {
                        queue.hurry(&[id], secs(now + after));
                        if let Some((_, deadline, true)) = naive.0.get_mut(&id) {
                            *deadline = (*deadline).min(now + after);
                        }
                    }
                    Step::Pass(s) => now += s,
                }
                prop_assert_eq!(queue.len(), naive.0.len());
                let earliest = naive.0.values().map(|l| secs(l.1)).min();
                prop_assert!(queue.next_deadline() <= earliest);
                prop_assert_eq!(queue.next_deadline().is_some(), earliest.is_some());
                for (id, lease) in &naive.0 {
                    let left = if lease.2 { 0 } else { lease.1.saturating_sub(now) };
                    prop_assert_eq!(queue.remaining(*id, secs(now)), Some(secs(left)));
                }
            }
        }
    }
}
