//! Consistent hashing with bounded load.

use std::sync::Arc;

use super::{
    Balancer,
    node::Node,
    snapshot::{Ctx, Pick, Snapshot, mix, unit},
};

/// Hashes the key of a call, with the same result in every process and release: FNV-1a, then mixed.
#[must_use]
pub fn hash(bytes: &[u8]) -> u64 {
    let fold = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    mix(bytes.iter().fold(0xcbf2_9ce4_8422_2325, fold))
}

/// Sends calls with the same [key](Ctx::key) to the same instance, to use its caches, unless its
/// calls in flight are far above its share; then the key's next instance takes over.
///
/// Each key has its own order of instances (weighted rendezvous hashing): when an instance
/// disappears, only its keys move, and they spread over all others. Calls without a key go to any
/// instance.
///
/// ```
/// # use std::{sync::Arc, time::Instant};
/// # use conclave_client::balance::{Balancer, Instance, Node, Snapshot, SnapshotOptions};
/// use conclave_client::balance::{ConsistentHash, Ctx, hash};
///
/// # let now = Instant::now();
/// # let node = |id: &str| Arc::new(Node::new(Instance::new(id, "10.0.0.1:80"), now));
/// # let list = Snapshot::new(["a", "b", "c"].map(node).into(), SnapshotOptions::default());
/// let policy = ConsistentHash::with_overload(2.0);
/// let ctx = Ctx { key: Some(hash(b"user-17")), ..Ctx::new(now, 0) };
/// let first = policy.pick(&list, &ctx).unwrap().node;
/// let again = policy.pick(&list, &Ctx { random: 1, ..ctx }).unwrap().node;
/// assert_eq!(first.instance(), again.instance(), "its caches know user 17");
/// ```
#[derive(Debug, Clone, Copy)]
pub struct ConsistentHash {
    /// How many times its share an instance may have.
    overload: f64,
}

impl ConsistentHash {
    /// Sets another limit: an instance may have `overload` times its share of the calls in flight,
    /// at least 1.0. Default 1.25.
    #[must_use]
    pub fn with_overload(overload: f64) -> Self {
        Self { overload: overload.max(1.0) }
    }
}

impl Default for ConsistentHash {
    fn default() -> Self {
        Self { overload: 1.25 }
    }
}

impl Balancer for ConsistentHash {
    fn pick(&self, snapshot: &Snapshot, ctx: &Ctx<'_>) -> Option<Pick> {
        let candidates = snapshot.candidates(ctx);
        let key = ctx.key.unwrap_or(ctx.random);
        let calls: u32 = candidates.iter().map(|node| node.in_flight()).sum();
        let total: f64 = candidates.iter().map(|node| weight(node)).sum();
        let has_room = |node: &&&Arc<Node>| {
            let share = f64::from(calls.saturating_add(1)) * weight(node) / total;
            f64::from(node.in_flight()) < (share * self.overload).ceil()
        };
        let best = candidates
            .iter()
            .filter(has_room)
            .max_by(|a, b| score(key, a).total_cmp(&score(key, b)))?;
        Some(Pick::new(best))
    }
}

/// The full weight even during the ramp-up: otherwise keys would move twice.
fn weight(node: &Node) -> f64 {
    f64::from(node.instance().weight)
}

/// The instance with the highest score gets the key, with a probability in proportion to its
/// weight.
fn score(key: u64, node: &Node) -> f64 {
    let random = mix(key ^ hash(node.instance().id.as_bytes()));
    // Not 0, whose logarithm is infinite.
    weight(node) / -unit(random).max(f64::MIN_POSITIVE).ln()
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Instant};

    use proptest::prelude::*;

    use super::{super::snapshot::tests::snapshot, *};

    fn owner(list: &Snapshot, key: u64, tried: &[String]) -> String {
        let ctx = Ctx { key: Some(key), tried, ..Ctx::new(Instant::now(), 0) };
        let pick = ConsistentHash::default().pick(list, &ctx).expect("a candidate");
        pick.node.instance().id.clone()
    }

    proptest! {
        /// When an instance disappears, only its own keys move.
        #[test]
        fn only_the_keys_of_the_missing_move(
            weights in proptest::collection::vec(1_u32..200, 2..8),
            keys in proptest::collection::vec(any::<u64>(), 1..50),
            gone in any::<prop::sample::Index>(),
        ) {
            let list = snapshot(&weights, Instant::now());
            let gone = gone.index(weights.len()).to_string();
            for key in keys {
                let before = owner(&list, key, &[]);
                let after = owner(&list, key, std::slice::from_ref(&gone));
                prop_assert_ne!(&after, &gone);
                prop_assert!(before == gone || before == after);
            }
        }

        /// Even with calls that never end, no instance gets more than the bound (1.25 by default)
        /// times its share, rounded up.
        #[test]
        fn the_load_is_bounded(
            overload in prop_oneof![Just(None), (1.0..4.0_f64).prop_map(Some)],
            weights in proptest::collection::vec(1_u32..5, 1..6),
            keys in proptest::collection::vec(0_u64..3, 1..60),
        ) {
            let now = Instant::now();
            let policy = overload.map_or_else(ConsistentHash::default, ConsistentHash::with_overload);
            let bound = overload.unwrap_or(1.25);
            let list = snapshot(&weights, now);
            let total = f64::from(weights.iter().sum::<u32>());
            let mut held = Vec::new();
            for (calls, key) in (1_u32..).zip(keys) {
                let ctx = Ctx { key: Some(key), ..Ctx::new(now, 0) };
                let pick = policy.pick(&list, &ctx).expect("somebody has room");
                held.push(pick.node.enter());
                let share = f64::from(calls) * f64::from(pick.node.instance().weight) / total;
                prop_assert!(f64::from(pick.node.in_flight()) <= (share * bound).ceil());
            }
        }
    }

    #[test]
    fn keys_are_spread_by_weight() {
        let list = snapshot(&[100, 100, 200], Instant::now());
        let mut counts: BTreeMap<String, u32> = BTreeMap::new();
        for key in 0..40_000_u64 {
            *counts.entry(owner(&list, hash(&key.to_be_bytes()), &[])).or_default() += 1;
        }
        for (id, expected) in [("0", 10_000), ("1", 10_000), ("2", 20_000_u32)] {
            assert!(counts[id].abs_diff(expected) < 600, "{counts:?}");
        }
    }

    #[test]
    fn the_hash_never_changes() {
        assert_eq!(hash(b""), 0xf52a_15e9_a9b5_e89b);
    }
}
