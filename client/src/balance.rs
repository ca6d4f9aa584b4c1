//! Spreading calls over the instances of a service.
//!
//! ```text
//!  list of instances ──► BalancedChannel ──► Snapshot ──► Balancer::pick ──► one tonic channel
//!  (registry, static)          │                ▲                                   │
//!                              └── Node: calls in flight, latency, breaker ◄── outcome ┘
//! ```
//! A [`BalancedChannel`] keeps the last good list when whoever feeds it has nothing to say, and never
//! replaces it by an empty one. What is known about an instance (calls in flight, latency, failures)
//! is kept in its [`Node`], whatever the policy; a policy ([`Balancer`]) only chooses. Policies and
//! breakers are pure: time and chance are arguments.
//!
//! | policy | choice |
//! |---|---|
//! | [`PeakEwma`] (default) | of two at random, the one that is expected to answer first |
//! | [`LeastRequests`] | the fewest calls in flight for its weight |
//! | [`RoundRobin`] | each in turn |
//! | [`Weighted`] | each in turn, as often as its weight says, well mixed |
//! | [`Random`] | any |
//! | [`ConsistentHash`] | the same for the same key, unless it has far more than its share |
//! | [`ZoneFirst`] | another policy among those in the own zone, while enough of them are well |
//!
//! An instance that keeps failing is left alone for a while ([`breaker`](BreakerOptions)), then tried
//! with one call, then eased in. One that answers clearly slower than the others, or fails clearly more often,
//! is [ejected](OutlierOptions) for a while, as long as that concerns few. If too many are unwell the list is not trusted: calls go to all of
//! them again (panic mode), because an outage of what reports health is likelier than one of all.

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
    /// The instance for a call, one of the snapshot's [candidates](Snapshot::candidates); `None` if
    /// there are none.
    fn pick(&self, snapshot: &Snapshot, ctx: &Ctx<'_>) -> Option<Pick>;

    /// How a call went that this policy chose the instance for. What all policies need, the
    /// [`Node`] has noted already.
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
