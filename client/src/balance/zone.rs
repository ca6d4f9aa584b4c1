//! A policy that prefers the local zone.

use std::sync::Arc;

use super::{
    Balancer,
    node::{Node, Outcome},
    snapshot::{Ctx, Pick, Snapshot},
};

/// Uses another policy among the instances of the local zone while
/// [enough](super::SnapshotOptions::zone_percent) of them are available, otherwise among all
/// instances.
///
/// ```
/// # use std::{sync::Arc, time::Instant};
/// # use conclave_client::balance::{Balancer, Ctx, Instance, Node, Snapshot, SnapshotOptions};
/// use conclave_client::balance::{PeakEwma, ZoneFirst};
///
/// # let now = Instant::now();
/// let at = |zone: &str| Instance { zone: zone.to_owned(), ..Instance::new(zone, "10.0.0.1:80") };
/// let nodes = ["eu-1", "eu-2"].map(|zone| Arc::new(Node::new(at(zone), now)));
/// let list = Snapshot::new(nodes.into(), SnapshotOptions::default());
/// let policy = ZoneFirst::new("eu-2", PeakEwma);
/// let zone = |ctx| policy.pick(&list, &ctx).unwrap().node.instance().zone.clone();
/// assert_eq!(zone(Ctx::new(now, 1)), "eu-2");
/// // A call that failed there is tried in another zone.
/// assert_eq!(zone(Ctx { tried: &["eu-2".to_owned()], ..Ctx::new(now, 1) }), "eu-1");
/// ```
#[derive(Debug, Clone, Default)]
pub struct ZoneFirst<B> {
    zone: String,
    policy: B,
}

impl<B> ZoneFirst<B> {
    /// Prefers instances in `zone`.
    pub fn new(zone: impl Into<String>, policy: B) -> Self {
        Self { zone: zone.into(), policy }
    }
}

impl<B: Balancer> Balancer for ZoneFirst<B> {
    fn pick(&self, snapshot: &Snapshot, ctx: &Ctx<'_>) -> Option<Pick> {
        let is_local = |node: &&Arc<Node>| node.instance().zone == self.zone;
        let local = snapshot.nodes().iter().filter(is_local).cloned().collect();
        let local = Snapshot::new(local, *snapshot.options());
        let is_enough = local.has_share(snapshot.options().zone_percent, ctx.now);
        let pick = if is_enough { self.policy.pick(&local, ctx) } else { None };
        // A call that failed on all instances of the zone may go to other zones.
        pick.or_else(|| self.policy.pick(snapshot, ctx))
    }

    fn done(&self, pick: &Pick, outcome: Outcome) {
        self.policy.done(pick, outcome);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::balance::{BreakerOptions, Instance, PeakEwma, SnapshotOptions};

    #[test]
    fn other_zones_help_when_the_own_one_is_unwell() {
        let now = Instant::now();
        let node = |id: usize| {
            let instance = Instance::new(id.to_string(), "h:1");
            let zone = if id < 4 { "here" } else { "there" }.to_owned();
            Arc::new(Node::new(Instance { zone, ..instance }, now))
        };
        let list = Snapshot::new((0..8).map(node).collect(), SnapshotOptions::default());
        let policy = ZoneFirst::new("here", PeakEwma);
        let zones = |tried: &[String]| {
            let picks = (0..100).map(|random| {
                let ctx = Ctx { tried, ..Ctx::new(now, random) };
                policy.pick(&list, &ctx).expect("a candidate").node.instance().zone.clone()
            });
            picks.collect::<std::collections::BTreeSet<_>>().into_iter().collect::<Vec<_>>()
        };
        assert_eq!(zones(&[]), ["here"]);
        let all_here: Vec<String> = (0..4).map(|id: usize| id.to_string()).collect();
        assert_eq!(zones(&all_here), ["there"]);
        list.nodes()[0].done(Outcome::NotSent, &BreakerOptions::default(), now);
        assert_eq!(zones(&[]), ["here"]);
        list.nodes()[1].done(Outcome::NotSent, &BreakerOptions::default(), now);
        assert_eq!(zones(&[]), ["here", "there"]);
    }
}
