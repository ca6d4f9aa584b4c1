//! Checks the watchers' messages: no live instance may disappear.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use conclave_proto::v1;
use v1::instance_change::{Kind, Reason};
use v1::instance_watch_response::Snapshot;

/// First letter of the ids of instances whose sessions are going to die.
pub(super) const DOOMED: char = 'x';

/// Live instances that any watcher saw disappear.
#[derive(Default)]
pub(super) struct Audit {
    wrong: AtomicUsize,
}

impl Audit {
    /// How often an instance of a live session was removed, marked as stale, or left out.
    pub(super) fn wrongly_removed(&self) -> usize {
        self.wrong.load(Ordering::Relaxed)
    }
}

/// What one watcher has seen.
pub(super) struct Witness {
    audit: Arc<Audit>,
    /// Number of live instances in the previous snapshot.
    living: usize,
    /// Ids of live instances in the snapshot being received; a snapshot that broke off is sent
    /// again.
    told: BTreeSet<String>,
}

impl Witness {
    pub(super) fn new(audit: Arc<Audit>) -> Self {
        Self { audit, living: 0, told: BTreeSet::new() }
    }

    /// Checks a message. All live instances are in the first snapshot; none are added later.
    pub(super) fn note(&mut self, message: &v1::InstanceWatchResponse) {
        let lives = |change: &&v1::InstanceChange| {
            change.instance.as_ref().is_some_and(|instance| !instance.id.starts_with(DOOMED))
        };
        let of_living = message.changes.iter().filter(lives);
        let lost = of_living.clone().filter(|change| {
            let is_stale = change.instance.as_ref().is_some_and(|instance| instance.stale);
            is_stale || change.kind() == Kind::Removed && change.reason() != Reason::Deregistered
        });
        self.report(lost.count());
        if message.snapshot() == Snapshot::None {
            return;
        }
        let ids = of_living.filter_map(|change| change.instance.as_ref());
        self.told.extend(ids.map(|instance| instance.id.clone()));
        if !message.more {
            let living = std::mem::take(&mut self.told).len();
            self.report(self.living.saturating_sub(living));
            self.living = living;
        }
    }

    fn report(&self, wrong: usize) {
        self.audit.wrong.fetch_add(wrong, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(snapshot: Snapshot, kind: Kind, ids: &[&str]) -> v1::InstanceWatchResponse {
        let change = |id: &&str| v1::InstanceChange {
            kind: kind.into(),
            reason: Reason::SessionExpired.into(),
            instance: Some(v1::Instance { id: (*id).to_owned(), ..Default::default() }),
        };
        let changes = ids.iter().map(change).collect();
        v1::InstanceWatchResponse { snapshot: snapshot.into(), changes, ..Default::default() }
    }

    #[test]
    fn the_living_are_missed_and_the_dead_are_not() {
        let audit = Arc::new(Audit::default());
        let mut witness = Witness::new(Arc::clone(&audit));
        let mut wrong_after = |message| {
            witness.note(&message);
            audit.wrongly_removed()
        };
        assert_eq!(wrong_after(message(Snapshot::Asked, Kind::Added, &["a", "b", "x"])), 0);
        assert_eq!(wrong_after(message(Snapshot::None, Kind::Removed, &["x"])), 0);
        assert_eq!(wrong_after(message(Snapshot::None, Kind::Removed, &["a"])), 1);
        let part = message(Snapshot::Behind, Kind::Added, &["a"]);
        let part = v1::InstanceWatchResponse { more: true, ..part };
        assert_eq!(wrong_after(part), 1, "the rest is to come");
        assert_eq!(wrong_after(message(Snapshot::Behind, Kind::Added, &["b"])), 1);
        assert_eq!(wrong_after(message(Snapshot::Compacted, Kind::Added, &["b"])), 2, "left out");
        let mut stale = message(Snapshot::None, Kind::Updated, &["b"]);
        stale.changes[0].instance.as_mut().unwrap().stale = true;
        assert_eq!(wrong_after(stale), 3);
    }
}
