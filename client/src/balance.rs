//! Client-side load balancing over the instances of a service.
//!
//! ```text
//!  list of instances ──► BalancedChannel ──► Snapshot ──► Balancer::pick ──► one tonic channel
//!  (registry, static)          │                ▲                                   │
//!                              └── Node: calls in flight, latency, breaker ◄── outcome ┘
//! ```
//! A [`BalancedChannel`] keeps the last good list while its source is silent, and never replaces it
//! by an empty one. What is known about an instance (calls in flight, latency, failures) is kept in
//! its [`Node`], whatever the policy; a policy ([`Balancer`]) only chooses. Policies and breakers
//! are pure functions: time and random numbers are arguments.
//!
//! | policy | choice |
//! |---|---|
//! | [`PeakEwma`] (default) | of two random instances, the one that is expected to answer first |
//! | [`LeastRequests`] | the fewest calls in flight relative to the weight |
//! | [`RoundRobin`] | each instance in turn |
//! | [`Weighted`] | each instance in turn, in proportion to its weight, evenly interleaved |
//! | [`Random`] | any instance, with equal probability |
//! | [`ConsistentHash`] | the same instance for the same key, unless its load is far above its share |
//! | [`ZoneFirst`] | another policy among the instances of the local zone, while enough of them are available |
//!
//! An instance that keeps failing gets no calls for a while ([`breaker`](BreakerOptions)), then a
//! single trial call, then a growing share. One that answers clearly slower than the others, or
//! fails clearly more often, is [ejected](OutlierOptions) for a while, unless too many are
//! unavailable already. If too many instances are unavailable, the health data is not trusted and
//! calls go to all of them again (panic mode): a fault in the health reporting is likelier than the
//! failure of most instances.

mod attempt;
mod breaker;
mod channel;
mod hash;
mod node;
mod outlier;
mod policy;
mod snapshot;
mod table;
mod zone;

use std::fmt::Debug;

pub use self::{
    breaker::{Breaker, BreakerOptions, State},
    channel::{BalancedChannel, ChannelBuilder, RouteKey, Serving},
    hash::{ConsistentHash, hash},
    node::{InFlight, Instance, Node, Outcome},
    outlier::OutlierOptions,
    policy::{LeastRequests, PeakEwma, Random, RoundRobin, Weighted},
    snapshot::{Ctx, Pick, Snapshot, SnapshotOptions},
    zone::ZoneFirst,
};

/// A policy: chooses the instance for a call.
///
/// ```
/// use std::sync::Arc;
/// use conclave_client::balance::{Balancer, Ctx, Instance, Node, Pick, Snapshot};
///
/// /// Prefers the instance whose id sorts first.
/// #[derive(Debug)]
/// struct First;
///
/// impl Balancer for First {
///     fn pick(&self, snapshot: &Snapshot, ctx: &Ctx<'_>) -> Option<Pick> {
///         let candidates = snapshot.candidates(ctx);
///         let node = candidates.iter().min_by_key(|node| node.instance().id.as_str())?;
///         Some(Pick::new(node))
///     }
/// }
/// ```
pub trait Balancer: Debug + Send + Sync {
    /// Chooses the instance for a call, one of the snapshot's [candidates](Snapshot::candidates);
    /// `None` if there are none.
    fn pick(&self, snapshot: &Snapshot, ctx: &Ctx<'_>) -> Option<Pick>;

    /// Reports the outcome of a call for which this policy chose the instance. The [`Node`] has
    /// already recorded what all policies need.
    fn done(&self, pick: &Pick, outcome: Outcome) {
        let (_, _) = (pick, outcome);
    }
}

impl<B: Balancer + ?Sized> Balancer for Box<B> {
    fn pick(&self, snapshot: &Snapshot, ctx: &Ctx<'_>) -> Option<Pick> {
        (**self).pick(snapshot, ctx)
    }

    fn done(&self, pick: &Pick, outcome: Outcome) {
        (**self).done(pick, outcome);
    }
}
