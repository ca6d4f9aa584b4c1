//! How long a process may rely on a lease: until the earliest moment at which a server may end it.
//!
//! The server counts the TTL from when a heartbeat arrives, the client from when it was sent. The
//! client also takes the TTL a little shorter, because clocks differ in speed. So the client gives
//! up first, whatever the network does.

use std::{ops::Add, time::Duration};

/// Part of the TTL by which the loss is reported early, to allow for clocks of different speeds.
const SKEW_DIVISOR: u32 = 50;

/// The earliest moment at which the server may end a lease whose last answered heartbeat was sent
/// at `confirmed`.
pub(crate) fn lost_at<T: Add<Duration, Output = T>>(confirmed: T, ttl: Duration) -> T {
    confirmed + (ttl - ttl / SKEW_DIVISOR)
}

/// The new `confirmed`, after the answer to a heartbeat `sent` then has arrived at `now`. If the
/// clock has already given the lease up, it stays lost whatever the server says: a caller may have
/// been told so.
pub(crate) fn confirm<T>(confirmed: T, ttl: Duration, (sent, now): (T, T)) -> T
where
    T: Add<Duration, Output = T> + Copy + Ord,
{
    if now < lost_at(confirmed, ttl) { confirmed.max(sent) } else { confirmed }
}

#[cfg(test)]
mod tests {
    use conclave_state_machine::expiry::{ExpiryQueue, Renewal};
    use proptest::prelude::*;

    use super::*;

    const LEASE: i64 = 7;
    /// Clock rates are in millionths of real time.
    const REAL: u64 = 1_000_000;
    /// How much faster or slower than the client's a server's clock may run.
    const SKEW_MAX: u64 = REAL / 50;

    /// One heartbeat.
    #[derive(Clone, Debug)]
    struct Beat {
        /// In real time, since the session was requested.
        sent: Duration,
        /// Time for the way there and the way back; `None` if the message is lost.
        there: Option<Duration>,
        back: Option<Duration>,
    }

    /// A leader, with a clock of its own, that takes over at `from`.
    #[derive(Clone, Debug)]
    struct Leader {
        from: Duration,
        rate: u64,
        grace: Duration,
    }

    #[derive(Clone, Debug)]
    struct World {
        ttl: Duration,
        client_rate: u64,
        /// The first one leads from the beginning.
        leaders: Vec<Leader>,
        /// The first one is the request for the session, which always arrives.
        beats: Vec<Beat>,
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
    enum Event {
        Leads(usize),
        Arrives(usize),
        Answered(usize),
    }

    fn scaled(time: Duration, by: u64, of: u64) -> Duration {
        let nanos = time.as_nanos() * u128::from(by) / u128::from(of);
        Duration::from_nanos(u64::try_from(nanos).expect("centuries"))
    }

    /// What a clock reads at a real time.
    fn reading(rate: u64, real: Duration) -> Duration {
        scaled(real, rate, REAL)
    }

    /// The real time at which a clock shows this reading.
    fn real(rate: u64, reading: Duration) -> Duration {
        scaled(reading, REAL, rate)
    }

    /// The current leader, and when the lease ends if it is not renewed.
    struct Server {
        rate: u64,
        queue: ExpiryQueue,
    }

    impl Server {
        fn follow(leader: &Leader, ttl: Duration, now: Duration) -> Server {
            let mut queue = ExpiryQueue::new();
            queue.grant((LEASE, 0), ttl, reading(leader.rate, now));
            queue.restart(reading(leader.rate, now), leader.grace);
            Server { rate: leader.rate, queue }
        }

        /// The end of the lease, in real time.
        fn ends(&self) -> Duration {
            let left = self.queue.remaining(LEASE, Duration::ZERO);
            real(self.rate, left.expect("it is there"))
        }

        fn renew(&mut self, now: Duration) -> bool {
            matches!(self.queue.renew(LEASE, reading(self.rate, now)), Renewal::Renewed { .. })
        }
    }

    /// When, in real time, the client considers the session lost, and when a server may end it.
    fn run(world: &World) -> (Duration, Duration) {
        let World { ttl, client_rate, leaders, beats } = world;
        let clock = |now| reading(*client_rate, now);
        let mut events: Vec<(Duration, Event)> = Vec::new();
        let begun = beats[0].sent + beats[0].there.expect("it arrives");
        for (number, beat) in beats.iter().enumerate() {
            let Some(there) = beat.there else { continue };
            // A client that does not know the session yet sends no heartbeat for it.
            let arrives = (beat.sent + there).max(begun);
            events.push((arrives, Event::Arrives(number)));
            events.extend(beat.back.map(|back| (arrives + back, Event::Answered(number))));
        }
        let later = leaders.iter().enumerate().skip(1);
        events.extend(later.map(|(number, leader)| (begun + leader.from, Event::Leads(number))));
        events.sort();
        let mut server = Server::follow(&leaders[0], *ttl, begun);
        let mut confirmed = clock(beats[0].sent);
        let (mut ended, mut renewed) = (None, vec![false; beats.len()]);
        for (now, event) in events {
            let ends = server.ends();
            if ended.is_none() && ends <= now {
                ended = Some(ends);
            }
            match event {
                Event::Leads(number) => server = Server::follow(&leaders[number], *ttl, now),
                Event::Arrives(number) => renewed[number] = ended.is_none() && server.renew(now),
                Event::Answered(number) if renewed[number] => {
                    let sent = clock(beats[number].sent);
                    confirmed = confirm(confirmed, *ttl, (sent, clock(now)));
                }
                Event::Answered(_) => {}
            }
        }
        let lost = real(*client_rate, lost_at(confirmed, *ttl));
        (lost, ended.unwrap_or_else(|| server.ends()))
    }

    fn time(to_ms: u64) -> impl Strategy<Value = Duration> {
        // Often zero, where it is close.
        prop_oneof![Just(0), 0..=to_ms].prop_map(Duration::from_millis)
    }

    fn beat() -> impl Strategy<Value = Beat> {
        let way = || prop_oneof![4 => time(8_000).prop_map(Some), 1 => Just(None)];
        (time(60_000), way(), way()).prop_map(|(sent, there, back)| Beat { sent, there, back })
    }

    prop_compose! {
        fn world()(
            ttl_ms in 1_000..20_000_u64,
            client_rate in REAL / 2..=2 * REAL,
            skewed in prop::collection::vec((REAL - SKEW_MAX..=REAL + SKEW_MAX, time(60_000), time(5_000)), 1..4),
            first in time(5_000),
            back in time(8_000),
            mut beats in prop::collection::vec(beat(), 0..24),
        ) -> World {
            let leader = |(skew, from, grace)| {
                let rate = client_rate * skew / REAL;
                Leader { from, rate, grace }
            };
            let mut leaders: Vec<Leader> = skewed.into_iter().map(leader).collect();
            leaders[0].grace = Duration::ZERO;
            beats.insert(0, Beat { sent: Duration::ZERO, there: Some(first), back: Some(back) });
            World { ttl: Duration::from_millis(ttl_ms), client_rate, leaders, beats }
        }
    }

    proptest! {
        /// Whatever the network does and whichever member leads, as long as no clock runs faster or
        /// slower than another by more than a fiftieth.
        #[test]
        fn a_holder_gives_up_before_anybody_else_may_hold(world in world()) {
            let (lost, ended) = run(&world);
            prop_assert!(lost <= ended, "relied on until {lost:?}, ended at {ended:?}");
        }
    }

    #[test]
    fn the_bound_is_what_clocks_may_differ_by() {
        // The server's clock runs that much faster, and messages take no time.
        let ttl = Duration::from_secs(60);
        let there = Some(Duration::ZERO);
        let leader = |rate| Leader { from: Duration::ZERO, rate, grace: Duration::ZERO };
        let world = |rate| World {
            ttl,
            client_rate: REAL,
            leaders: vec![leader(rate)],
            beats: vec![Beat { sent: Duration::ZERO, there, back: there }],
        };
        let (lost, ended) = run(&world(REAL + SKEW_MAX));
        assert!(lost <= ended && ended - lost < ttl / 1_000, "{lost:?}, {ended:?}");
        let (lost, ended) = run(&world(REAL + 2 * SKEW_MAX));
        assert!(lost > ended, "{lost:?}, {ended:?}: against that only fences help");
    }
}
