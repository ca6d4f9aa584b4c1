//! Changes of the instances of a service, and several in a row as one: for watchers who are told less often.

use std::collections::BTreeMap;

use super::view::Delta;
use crate::response::Cause;

/// One change of one instance, and why it went.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// How it was and is shown.
    pub delta: Delta,
    /// Why it was deleted, also if it is kept after its loss; `None` if nothing was deleted, or nobody knows any
    /// more.
    pub cause: Option<Cause>,
}

impl Change {
    /// This change and the next one of the same instance, as one.
    ///
    /// Why it is gone is what the later change says. Only an instance that is kept after its loss, and that the
    /// later change let be so, is gone for the reason that the earlier one had.
    fn then(&mut self, next: &Change) {
        let stays_lost = is_lost(&self.delta) && is_lost(&next.delta);
        self.cause = next.cause.or(self.cause.filter(|_| stays_lost));
        self.delta.after.clone_from(&next.delta.after);
    }
}

fn is_lost(delta: &Delta) -> bool {
    delta.after.as_ref().is_some_and(|shown| shown.record.is_stale())
}

/// What revisions in a row changed in all, by id: at most one change of each instance. Whoever applies it knows
/// what he would know had he applied each; what is in the end as it was before is left out.
pub fn coalesce<'a>(revisions: impl IntoIterator<Item = &'a [Change]>) -> Vec<Change> {
    let mut changes: BTreeMap<&str, Change> = BTreeMap::new();
    for change in revisions.into_iter().flatten() {
        changes
            .entry(&change.delta.id)
            .and_modify(|before| before.then(change))
            .or_insert_with(|| change.clone());
    }
    changes.into_values().filter(|Change { delta, .. }| delta.before != delta.after).collect()
}
