//! The instances from which a policy chooses, and the context of a call.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::node::Node;

/// Sets how the health of a list is judged.
///
/// ```
/// # use std::{sync::Arc, time::Instant};
/// # use conclave_client::balance::{Instance, Node, Snapshot};
/// use conclave_client::balance::SnapshotOptions;
///
/// # let now = Instant::now();
/// # let instance = Instance::new("a", "10.0.0.1:80");
/// # let node = |is_healthy| Arc::new(Node::new(Instance { is_healthy, ..instance.clone() }, now));
/// // With three large instances, one is enough to trust that the others are unavailable.
/// let options = SnapshotOptions { panic_percent: 30, ..SnapshotOptions::default() };
/// let list = Snapshot::new([true, false, false].map(node).into(), options);
/// assert!(!list.is_panic(now), "all calls go to the one that is well");
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SnapshotOptions {
    /// If less than this share of the instances, in percent, is available, all of them are
    /// candidates.
    pub panic_percent: u32,
    /// If less than this share of the local zone, in percent, is available, other zones are used,
    /// too.
    pub zone_percent: u32,
    /// How long the load of an instance is ramped up after it appeared or recovered.
    pub slow_start: Duration,
}

impl Default for SnapshotOptions {
    fn default() -> Self {
        Self { panic_percent: 50, zone_percent: 70, slow_start: Duration::from_secs(10) }
    }
}

/// The context of a call. Time and random number are inputs, so that a choice can be repeated.
///
/// ```
/// # use std::{sync::Arc, time::Instant};
/// # use conclave_client::balance::{Balancer, Instance, Node, Random, Snapshot, SnapshotOptions};
/// use conclave_client::balance::Ctx;
///
/// # let now = Instant::now();
/// # let node = |id: &str| Arc::new(Node::new(Instance::new(id, "10.0.0.1:80"), now));
/// # let list = Snapshot::new(["a", "b"].map(node).into(), SnapshotOptions::default());
/// // The call has failed on `a` already.
/// let tried = ["a".to_owned()];
/// let ctx = Ctx { tried: &tried, ..Ctx::new(now, 7) };
/// assert_eq!(Random.pick(&list, &ctx).unwrap().node.instance().id, "b");
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Ctx<'a> {
    /// The current time.
    pub now: Instant,
    /// A random number.
    pub random: u64,
    /// The [hashed](super::hash) key of the call, for policies that send calls with the same key to
    /// the same instance.
    pub key: Option<u64>,
    /// The ids of instances on which this call has already failed.
    pub tried: &'a [String],
}

impl Ctx<'_> {
    /// The context of a call without a key that has not been tried yet.
    #[must_use]
    pub fn new(now: Instant, random: u64) -> Self {
        Self { now, random, key: None, tried: &[] }
    }

    /// Random numbers derived from the one in here.
    pub(super) fn dice(&self) -> Dice {
        Dice(self.random)
    }
}

/// SplitMix64, <https://prng.di.unimi.it/splitmix64.c>: enough for spreading load.
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }

    /// A random number below `end`, which must not be 0.
    pub(super) fn below(&mut self, end: usize) -> usize {
        let wide = u128::from(self.next()) * (end as u128);
        usize::try_from(wide >> 64).expect("invariant: less than `end`, which is a usize")
    }

    /// A random number in 0.0..1.0.
    pub(super) fn unit(&mut self) -> f64 {
        unit(self.next())
    }
}

/// Makes every bit of the result depend on every bit of `value`.
pub(super) fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

/// Maps a random number to 0.0..1.0 by its upper 53 bits.
pub(super) fn unit(random: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
    let upper = (random >> 11) as f64;
    upper / 9_007_199_254_740_992.0
}

/// The choice of a policy.
///
/// ```
/// # use std::time::Instant;
/// use conclave_client::balance::{Balancer, Ctx, Pick, RoundRobin, Snapshot};
///
/// /// The first instance while it has no calls (its caches are warm), otherwise all in turn.
/// #[derive(Debug, Default)]
/// struct Warm(RoundRobin);
///
/// impl Balancer for Warm {
///     fn pick(&self, snapshot: &Snapshot, ctx: &Ctx<'_>) -> Option<Pick> {
///         let candidates = snapshot.candidates(ctx);
///         let free = candidates.first().filter(|node| node.in_flight() == 0);
///         free.map(|node| Pick::new(node)).or_else(|| self.0.pick(snapshot, ctx))
///     }
/// }
/// # assert!(Warm::default().pick(&Snapshot::default(), &Ctx::new(Instant::now(), 0)).is_none());
/// ```
#[derive(Debug, Clone)]
pub struct Pick {
    /// The instance for the call.
    pub node: Arc<Node>,
}

impl Pick {
    /// Chooses a node.
    #[must_use]
    pub fn new(node: &Arc<Node>) -> Self {
        Self { node: Arc::clone(node) }
    }
}

/// The instances of a service at one moment.
///
/// ```
/// use std::{sync::Arc, time::Instant};
/// use conclave_client::balance::{Ctx, Instance, Node, Snapshot, SnapshotOptions};
///
/// // A test of a policy needs no servers.
/// let now = Instant::now();
/// let node = |(id, is_healthy)| Instance { is_healthy, ..Instance::new(id, "10.0.0.1:80") };
/// let list = [("a", true), ("b", true), ("c", false)].map(node);
/// let nodes = list.map(|instance| Arc::new(Node::new(instance, now)));
/// let snapshot = Snapshot::new(nodes.into(), SnapshotOptions::default());
/// assert_eq!(snapshot.candidates(&Ctx::new(now, 0)).len(), 2, "c is unwell");
/// assert!(!snapshot.is_panic(now));
/// ```
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    nodes: Vec<Arc<Node>>,
    options: SnapshotOptions,
}

impl Snapshot {
    /// A list of nodes, and how to judge its health.
    #[must_use]
    pub fn new(nodes: Vec<Arc<Node>>, options: SnapshotOptions) -> Self {
        Self { nodes, options }
    }

    /// All instances, whatever their state.
    #[must_use]
    pub fn nodes(&self) -> &[Arc<Node>] {
        &self.nodes
    }

    /// How the health of the list is judged.
    #[must_use]
    pub fn options(&self) -> &SnapshotOptions {
        &self.options
    }

    /// The instances that the call may go to: those that are available and on which it has not been
    /// tried. In panic mode also unavailable ones; never those of weight 0.
    #[must_use]
    pub fn candidates(&self, ctx: &Ctx<'_>) -> Vec<&Arc<Node>> {
        let is_panic = self.is_panic(ctx.now);
        let is_candidate = |node: &&Arc<Node>| {
            let instance = node.instance();
            !ctx.tried.contains(&instance.id)
                && instance.weight > 0
                && (is_panic || node.is_available(ctx.now))
        };
        self.nodes.iter().filter(is_candidate).collect()
    }

    /// Whether so few instances are available that the health data is not trusted.
    #[must_use]
    pub fn is_panic(&self, now: Instant) -> bool {
        !self.has_share(self.options.panic_percent, now)
    }

    /// Whether at least this share of the instances with a weight is available.
    pub(super) fn has_share(&self, percent: u32, now: Instant) -> bool {
        let weighty = self.nodes.iter().filter(|node| node.instance().weight > 0);
        let (mut count, mut available) = (0_usize, 0_usize);
        for node in weighty {
            count += 1;
            available += usize::from(node.is_available(now));
        }
        available * 100 >= count * percent as usize
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::balance::{BreakerOptions, Instance, Outcome};

    /// Instances `0`, `1`, ... with these weights and no ramp-up.
    pub(in crate::balance) fn snapshot(weights: &[u32], now: Instant) -> Snapshot {
        let node = |(id, weight): (usize, &u32)| {
            let instance = Instance::new(id.to_string(), format!("h{id}:1"));
            Arc::new(Node::new(Instance { weight: *weight, ..instance }, now))
        };
        let nodes = weights.iter().enumerate().map(node).collect();
        let slow_start = Duration::ZERO;
        Snapshot::new(nodes, SnapshotOptions { slow_start, ..SnapshotOptions::default() })
    }

    #[test]
    fn when_most_are_unwell_all_are_candidates() {
        let now = Instant::now();
        let list = snapshot(&[100, 100, 100, 0], now);
        let count = |tried: &[String]| list.candidates(&Ctx { tried, ..Ctx::new(now, 0) }).len();
        assert_eq!(count(&[]), 3);
        list.nodes()[0].done(Outcome::NotSent, &BreakerOptions::default(), now);
        assert_eq!(count(&[]), 2);
        assert_eq!(count(&["1".to_owned()]), 1);
        list.nodes()[1].done(Outcome::NotSent, &BreakerOptions::default(), now);
        assert!(list.is_panic(now));
        assert_eq!(count(&[]), 3, "but not the one of weight 0");
        assert_eq!(count(&["0".to_owned(), "1".to_owned(), "2".to_owned()]), 0);
        assert!(!Snapshot::default().is_panic(now));
    }

    proptest! {
        #[test]
        fn dice_stay_below(random in any::<u64>(), end in 1_usize..1000) {
            let mut dice = Dice(random);
            for _ in 0..20 {
                prop_assert!(dice.below(end) < end);
                let unit = dice.unit();
                prop_assert!((0.0..1.0).contains(&unit));
            }
        }
    }
}
