//! The space quota of a member: which writes it refuses, and when it raises the alarm that makes all refuse.

use conclave_state_machine::command::AlarmKind;
use conclave_state_machine::head::Head;
use conclave_state_machine::response::{Event, EventKind};
use tokio::sync::Notify;

/// The quota, and word of writes that exceeded it though no check of this member stood in their way.
#[derive(Debug)]
pub(crate) struct Space {
    /// Logical size at which writes are refused; `None` for no quota.
    quota_bytes: Option<i64>,
    overrun: Notify,
}

impl Space {
    pub(crate) fn new(quota_bytes: Option<i64>) -> Self {
        Self { quota_bytes, overrun: Notify::new() }
    }

    /// The quota in bytes; `None` for no quota.
    pub(crate) fn quota_bytes(&self) -> Option<i64> {
        self.quota_bytes
    }

    /// Whether a write that costs `cost_bytes` keeps a store of `used_bytes` below the quota. One that costs
    /// nothing, such as a delete, always may.
    pub(crate) fn has_room(&self, used_bytes: i64, cost_bytes: usize) -> bool {
        let Some(quota_bytes) = self.quota_bytes else { return true };
        let cost_bytes = i64::try_from(cost_bytes).unwrap_or(i64::MAX);
        cost_bytes == 0 || used_bytes.saturating_add(cost_bytes) < quota_bytes
    }

    /// Notes what was applied to a store that has `used_bytes` since. Called by apply: nothing here waits.
    ///
    /// Only the member that a client asks compares a write with its quota before it is proposed, and several
    /// writes may pass that check together. As in etcd, a write that was proposed is applied by every member;
    /// one that is beyond the quota raises the alarm, and a delete or a compaction never does.
    pub(crate) fn note(&self, events: &[Event], used_bytes: i64) {
        let is_beyond = self.quota_bytes.is_some_and(|quota_bytes| used_bytes >= quota_bytes);
        if is_beyond && events.iter().any(|event| event.kind == EventKind::Put) {
            self.overrun.notify_one();
        }
    }

    /// Waits for a write beyond the quota since the last call.
    pub(crate) async fn overrun(&self) {
        self.overrun.notified().await;
    }
}

/// Whether the alarm that makes all members refuse writes is active for this one.
pub(crate) fn is_raised(head: &Head, member_id: u64) -> bool {
    head.alarms.contains(&(member_id, AlarmKind::NoSpace))
}

#[cfg(test)]
mod tests {
    use conclave_state_machine::response::KeyValue;
    use futures::FutureExt;

    use super::*;

    fn event(kind: EventKind) -> Event {
        Event { kind, kv: KeyValue::default(), prev_kv: None }
    }

    #[tokio::test]
    async fn only_growth_beyond_the_quota_is_an_overrun() {
        let space = Space::new(Some(100));
        let is_noted = || space.overrun().now_or_never().is_some();
        space.note(&[event(EventKind::Put)], 99);
        assert!(!is_noted(), "below");
        space.note(&[event(EventKind::Delete)], 100);
        space.note(&[], 100);
        assert!(!is_noted(), "nothing grew");
        space.note(&[event(EventKind::Delete), event(EventKind::Put)], 100);
        assert!(is_noted());
        assert!(!is_noted(), "once");
        let unlimited = Space::new(None);
        unlimited.note(&[event(EventKind::Put)], i64::MAX);
        assert!(unlimited.overrun().now_or_never().is_none());
    }

    #[test]
    fn what_costs_nothing_always_has_room() {
        let space = Space::new(Some(100));
        assert!(space.has_room(40, 59) && !space.has_room(40, 60));
        assert!(space.has_room(1_000, 0) && !space.has_room(i64::MAX, usize::MAX));
        assert!(Space::new(None).has_room(i64::MAX, usize::MAX));
    }
}
