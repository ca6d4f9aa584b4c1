//! Counts promotions of learners, and their refusals.

use conclave_state_machine::members::rules::MemberRefusal;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::Label;

/// Promotions of learners requested while this member led.
#[derive(Clone, Debug)]
pub(crate) struct Promotions {
    successes: Counter,
    failures: Family<Label, Counter>,
}

impl Default for Promotions {
    fn default() -> Self {
        let promotions = Self { successes: Counter::default(), failures: Family::default() };
        // The usual reason is exported before it happens.
        promotions.of(MemberRefusal::LearnerNotReady).inc_by(0);
        promotions
    }
}

impl Promotions {
    /// Counts a promotion.
    pub(crate) fn made(&self) {
        self.successes.inc();
    }

    /// Counts a refused promotion.
    pub(crate) fn refused(&self, refusal: MemberRefusal) {
        self.of(refusal).inc();
    }

    fn of(&self, refusal: MemberRefusal) -> Counter {
        self.failures.get_or_create(&[("Reason", refusal.to_string())]).clone()
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "etcd_server_learner_promote_successes",
            "Learners promoted while this member led",
            self.successes.clone(),
        );
        registry.register(
            "etcd_server_learner_promote_failures",
            "Promotions refused while this member led",
            self.failures.clone(),
        );
    }
}
