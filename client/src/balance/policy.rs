//! The policies that use no key.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use parking_lot::Mutex;

use super::{
    Balancer,
    node::Node,
    snapshot::{Ctx, Pick, Snapshot},
};

/// Chooses any instance, with equal probability.
///
/// ```
/// # use std::{sync::Arc, time::Instant};
/// # use conclave_client::balance::{Balancer, Instance, Node, Snapshot, SnapshotOptions};
/// use conclave_client::balance::{Ctx, Random};
///
/// # let now = Instant::now();
/// # let node = |id: &str| Arc::new(Node::new(Instance::new(id, "10.0.0.1:80"), now));
/// # let list = Snapshot::new(["a", "b", "c"].map(node).into(), SnapshotOptions::default());
/// // The random number is an argument: the same number gives the same choice.
/// let pick = |random| Random.pick(&list, &Ctx::new(now, random)).unwrap().node.instance().id.clone();
/// assert_eq!(pick(42), pick(42));
/// assert!((0..100).any(|random| pick(random) != pick(42)));
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct Random;

impl Balancer for Random {
    fn pick(&self, snapshot: &Snapshot, ctx: &Ctx<'_>) -> Option<Pick> {
        let candidates = snapshot.candidates(ctx);
        let start = ctx.dice().below(candidates.len().max(1));
        eased_in(&candidates, start, snapshot, ctx)
    }
}

/// Chooses each instance in turn.
///
/// ```
/// # use std::{sync::Arc, time::{Duration, Instant}};
/// # use conclave_client::balance::{Balancer, Ctx, Instance, Node, Snapshot, SnapshotOptions};
/// use conclave_client::balance::RoundRobin;
///
/// # let now = Instant::now();
/// # let node = |id: &str| Arc::new(Node::new(Instance::new(id, "10.0.0.1:80"), now));
/// # let options = SnapshotOptions { slow_start: Duration::ZERO, ..SnapshotOptions::default() };
/// # let list = Snapshot::new(["a", "b"].map(node).into(), options);
/// let policy = RoundRobin::default();
/// let picks = [1, 2, 3, 4].map(|random| policy.pick(&list, &Ctx::new(now, random)).unwrap());
/// let ids = picks.each_ref().map(|pick| pick.node.instance().id.as_str());
/// assert_eq!(ids, ["a", "b", "a", "b"]);
/// ```
#[derive(Debug, Default)]
pub struct RoundRobin {
    next: AtomicUsize,
}

impl Balancer for RoundRobin {
    fn pick(&self, snapshot: &Snapshot, ctx: &Ctx<'_>) -> Option<Pick> {
        let candidates = snapshot.candidates(ctx);
        let start = self.next.fetch_add(1, Ordering::Relaxed) % candidates.len().max(1);
        eased_in(&candidates, start, snapshot, ctx)
    }
}

/// The candidate at `start`, or with some probability a later one if its load is still being ramped
/// up.
fn eased_in(
    candidates: &[&Arc<Node>],
    start: usize,
    snapshot: &Snapshot,
    ctx: &Ctx<'_>,
) -> Option<Pick> {
    let mut dice = ctx.dice();
    // The first number may have determined the start.
    dice.next();
    let order = candidates.iter().cycle().skip(start).take(candidates.len());
    let is_chosen =
        |node: &&&Arc<Node>| dice.unit() < node.warmth(snapshot.options().slow_start, ctx.now);
    let chosen = order.clone().find(is_chosen).or_else(|| order.clone().next());
    chosen.map(|node| Pick::new(node))
}

/// Chooses each instance in turn, in proportion to its weight and evenly interleaved: the smooth
/// weighted round robin of nginx.
///
/// ```
/// # use std::{sync::Arc, time::{Duration, Instant}};
/// # use conclave_client::balance::{Balancer, Ctx, Instance, Node, Snapshot, SnapshotOptions};
/// use conclave_client::balance::Weighted;
///
/// # let now = Instant::now();
/// # let options = SnapshotOptions { slow_start: Duration::ZERO, ..SnapshotOptions::default() };
/// let node = |(id, weight)| Node::new(Instance { weight, ..Instance::new(id, "10.0.0.1:80") }, now);
/// let nodes = [("large", 200), ("small", 100)].map(node).map(Arc::new);
/// let list = Snapshot::new(nodes.into(), options);
/// let policy = Weighted::default();
/// let picks = [1, 2, 3].map(|random| policy.pick(&list, &Ctx::new(now, random)).unwrap());
/// let ids = picks.each_ref().map(|pick| pick.node.instance().id.as_str());
/// assert_eq!(ids, ["large", "small", "large"]);
/// ```
#[derive(Debug, Default)]
pub struct Weighted {
    /// The credit of each instance, by id.
    credits: Mutex<BTreeMap<String, f64>>,
}

impl Balancer for Weighted {
    fn pick(&self, snapshot: &Snapshot, ctx: &Ctx<'_>) -> Option<Pick> {
        let candidates = snapshot.candidates(ctx);
        let mut credits = self.credits.lock();
        let mut next = BTreeMap::new();
        let mut total = 0.0;
        for node in &candidates {
            let weight = node.weight(snapshot.options().slow_start, ctx.now);
            total += weight;
            let id = &node.instance().id;
            next.insert(id.clone(), credits.get(id).copied().unwrap_or(0.0) + weight);
        }
        let credit = |node: &&&Arc<Node>| next[&node.instance().id];
        // Of equals the first one, so that the order of the list decides.
        let best = candidates.iter().rev().max_by(|a, b| credit(a).total_cmp(&credit(b)))?;
        *next.get_mut(&best.instance().id).expect("it is a candidate") -= total;
        // Instances that are no candidates now start again at 0, and old ids are not kept.
        *credits = next;
        Some(Pick::new(best))
    }
}

/// Chooses the instance with the fewest calls in flight relative to its weight; among equals, any.
///
/// ```
/// # use std::{sync::Arc, time::Instant};
/// # use conclave_client::balance::{Balancer, Ctx, Instance, Node, Snapshot, SnapshotOptions};
/// use conclave_client::balance::LeastRequests;
///
/// # let now = Instant::now();
/// # let node = |id: &str| Arc::new(Node::new(Instance::new(id, "10.0.0.1:80"), now));
/// let list = Snapshot::new(["a", "b"].map(node).into(), SnapshotOptions::default());
/// let long = list.nodes()[0].enter(); // a call to `a` that takes its time
/// let pick = LeastRequests.pick(&list, &Ctx::new(now, 1)).unwrap();
/// assert_eq!(pick.node.instance().id, "b");
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct LeastRequests;

impl Balancer for LeastRequests {
    fn pick(&self, snapshot: &Snapshot, ctx: &Ctx<'_>) -> Option<Pick> {
        let candidates = snapshot.candidates(ctx);
        let load = |node: &&&Arc<Node>| {
            let calls = f64::from(node.in_flight().saturating_add(1));
            calls / node.weight(snapshot.options().slow_start, ctx.now)
        };
        let start = ctx.dice().below(candidates.len().max(1));
        let order = candidates.iter().cycle().skip(start).take(candidates.len());
        order.min_by(|a, b| load(a).total_cmp(&load(b))).map(|node| Pick::new(node))
    }
}

/// Chooses, of two random instances, the one that is expected to answer first: latency (a moving
/// average that follows peaks at once) times calls in flight, divided by the weight. Two are enough
/// to avoid slow instances, and few enough that not all callers choose the same one.
///
/// ```
/// # use std::{sync::Arc, time::{Duration, Instant}};
/// # use conclave_client::balance::{Balancer, Ctx, Instance, Node, Snapshot, SnapshotOptions};
/// use conclave_client::balance::{BreakerOptions, Outcome, PeakEwma};
///
/// # let now = Instant::now();
/// # let node = |id: &str| Arc::new(Node::new(Instance::new(id, "10.0.0.1:80"), now));
/// let list = Snapshot::new(["a", "b"].map(node).into(), SnapshotOptions::default());
/// let paused = Outcome::Success { latency: Duration::from_secs(2) }; // it collected garbage
/// list.nodes()[0].done(paused, &BreakerOptions::default(), now);
/// let pick = PeakEwma.pick(&list, &Ctx::new(now, 1)).unwrap();
/// assert_eq!(pick.node.instance().id, "b");
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct PeakEwma;

impl Balancer for PeakEwma {
    fn pick(&self, snapshot: &Snapshot, ctx: &Ctx<'_>) -> Option<Pick> {
        let candidates = snapshot.candidates(ctx);
        let (a, b) = match candidates.as_slice() {
            [] => return None,
            [only] => return Some(Pick::new(only)),
            many => {
                let mut dice = ctx.dice();
                let a = dice.below(many.len());
                // Any instance but `a`.
                let b = (a + 1 + dice.below(many.len() - 1)) % many.len();
                (many[a], many[b])
            }
        };
        let cost = |node: &Node| node.cost(snapshot.options().slow_start, ctx.now);
        Some(Pick::new(if cost(a) <= cost(b) { a } else { b }))
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use proptest::prelude::*;

    use super::{super::snapshot::tests::snapshot, *};
    use crate::balance::{BreakerOptions, ConsistentHash, Outcome, ZoneFirst};

    fn all() -> Vec<Box<dyn Balancer>> {
        vec![
            Box::new(Random),
            Box::new(RoundRobin::default()),
            Box::new(Weighted::default()),
            Box::new(LeastRequests),
            Box::new(PeakEwma),
            Box::new(ConsistentHash::default()),
            Box::new(ZoneFirst::new("here", PeakEwma)),
        ]
    }

    fn counts(
        balancer: &dyn Balancer,
        list: &Snapshot,
        picks: u64,
        now: Instant,
    ) -> BTreeMap<String, u64> {
        let mut counts = BTreeMap::new();
        for random in 0..picks {
            let pick = balancer.pick(list, &Ctx::new(now, random)).expect("a candidate");
            *counts.entry(pick.node.instance().id.clone()).or_default() += 1;
        }
        counts
    }

    proptest! {
        /// Every policy picks a candidate if there is one, and nothing else.
        #[test]
        fn a_pick_is_a_candidate(
            weights in proptest::collection::vec(0_u32..3, 0..8),
            broken in proptest::collection::vec(any::<bool>(), 8),
            tried in proptest::collection::vec(0_usize..8, 0..4),
            random in any::<u64>(),
            key in any::<Option<u64>>(),
        ) {
            let now = Instant::now();
            let list = snapshot(&weights, now);
            for (node, is_broken) in list.nodes().iter().zip(broken) {
                if is_broken {
                    node.done(Outcome::NotSent, &BreakerOptions::default(), now);
                }
            }
            let tried: Vec<String> = tried.iter().map(ToString::to_string).collect();
            let ctx = Ctx { now, random, key, tried: &tried };
            let candidates = list.candidates(&ctx);
            for balancer in all() {
                match balancer.pick(&list, &ctx) {
                    Some(pick) => {
                        prop_assert!(candidates.iter().any(|node| Arc::ptr_eq(node, &pick.node)));
                    }
                    None => prop_assert!(candidates.is_empty(), "{balancer:?}"),
                }
            }
        }

        /// Over as many picks as the sum of the weights, each instance gets exactly its weight.
        #[test]
        fn weights_are_kept_exactly(weights in proptest::collection::vec(1_u32..20, 1..8)) {
            let now = Instant::now();
            let list = snapshot(&weights, now);
            let balancer = Weighted::default();
            let total: u32 = weights.iter().sum();
            for _ in 0..3 {
                let counts = counts(&balancer, &list, u64::from(total), now);
                for (id, weight) in weights.iter().enumerate() {
                    prop_assert_eq!(counts[&id.to_string()], u64::from(*weight));
                }
            }
        }

        /// With calls that never end, the loads differ by at most one call.
        #[test]
        fn least_requests_levels_the_load(count in 1_usize..8, calls in 1_u64..100) {
            let now = Instant::now();
            let list = snapshot(&vec![100; count], now);
            let mut held = Vec::new();
            for random in 0..calls {
                let pick = LeastRequests.pick(&list, &Ctx::new(now, random)).expect("a candidate");
                held.push(pick.node.enter());
            }
            let loads = list.nodes().iter().map(|node| node.in_flight());
            let (least, most) = (loads.clone().min().unwrap(), loads.max().unwrap());
            prop_assert!(most - least <= 1);
        }
    }

    #[test]
    fn turns_and_chance_are_fair() {
        let now = Instant::now();
        let list = snapshot(&[100; 4], now);
        assert!(counts(&RoundRobin::default(), &list, 40, now).values().all(|count| *count == 10));
        for balancer in [&Random as &dyn Balancer, &PeakEwma, &LeastRequests] {
            let counts = counts(balancer, &list, 40_000, now);
            assert_eq!(counts.len(), 4, "{balancer:?}");
            assert!(counts.values().all(|count| (9_000..11_000).contains(count)), "{counts:?}");
        }
    }

    #[test]
    fn the_slow_one_gets_little_from_peak_ewma() {
        let now = Instant::now();
        let list = snapshot(&[100; 3], now);
        for (node, ms) in list.nodes().iter().zip([10, 10, 1000]) {
            let outcome = Outcome::Success { latency: Duration::from_millis(ms) };
            node.done(outcome, &BreakerOptions::default(), now);
        }
        let counts = counts(&PeakEwma, &list, 9_000, now);
        assert_eq!(counts.get("2"), None, "two of three are always better");
    }

    #[test]
    fn a_new_instance_is_eased_in() {
        let start = Instant::now();
        let list = snapshot(&[100; 4], start);
        let options = crate::balance::SnapshotOptions::default();
        let now = start + options.slow_start;
        let mut nodes = list.nodes().to_vec();
        nodes[3] = Arc::new(Node::new(nodes[3].instance().clone(), now));
        let list = Snapshot::new(nodes, options);
        for balancer in [&Random as &dyn Balancer, &RoundRobin::default(), &Weighted::default()] {
            let young = counts(balancer, &list, 10_000, now)["3"];
            assert!((150..500).contains(&young), "{balancer:?}: {young} of a fair 2500");
            let later = now + options.slow_start;
            let grown = counts(balancer, &list, 10_000, later)["3"];
            assert!((2_300..2_700).contains(&grown), "{balancer:?}: {grown}");
        }
    }
}
