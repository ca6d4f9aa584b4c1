//! Combines several successive changes of a service's instances into one, for watchers that are
//! updated less often.

use std::collections::BTreeMap;

use super::view::Delta;
use crate::response::Cause;

/// One change of one instance, and why it was deleted.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// How the instance was shown before and is shown after the change.
    pub delta: Delta,
    /// Why it was deleted, even if it is kept after its loss; `None` if nothing was deleted or the
    /// reason is no longer known.
    pub cause: Option<Cause>,
}

impl Change {
    /// Appends the next change of the same instance.
    ///
    /// The cause is that of the later change. The earlier cause stays only if the instance is kept
    /// after its loss both before and after the later change.
    fn then(&mut self, next: &Change) {
        let stays_lost = is_lost(&self.delta) && is_lost(&next.delta);
        self.cause = next.cause.or(self.cause.filter(|_| stays_lost));
        self.delta.after.clone_from(&next.delta.after);
    }
}

fn is_lost(delta: &Delta) -> bool {
    delta.after.as_ref().is_some_and(|shown| shown.record.is_stale())
}

/// Combines the changes of successive revisions, by id: at most one change of each instance.
/// Applying the result gives the same state as applying each. Instances that end up as they began
/// are left out.
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
