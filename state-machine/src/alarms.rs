//! Alarms: what a member found wrong, known to all members until somebody clears it.

use crate::command::{AlarmAction, AlarmChange, AlarmKind};
use crate::head::Head;

/// Carries out `change` and returns the alarms it touched or listed.
pub(crate) fn apply(head: &mut Head, change: AlarmChange) -> Vec<(u64, AlarmKind)> {
    let is_meant = |alarm: &(u64, AlarmKind)| {
        let (member, kind) = *alarm;
        (change.member == 0 || change.member == member)
            && (change.alarm == AlarmKind::None || change.alarm == kind)
    };
    match change.action {
        // A list is of all members, as in etcd.
        AlarmAction::Get => {
            let kind = change.alarm;
            let alarms = head.alarms.iter().copied();
            alarms.filter(|alarm| kind == AlarmKind::None || alarm.1 == kind).collect()
        }
        AlarmAction::Activate if change.alarm == AlarmKind::None => Vec::new(),
        AlarmAction::Activate => {
            let alarm = (change.member, change.alarm);
            if let Err(place) = head.alarms.binary_search(&alarm) {
                head.alarms.insert(place, alarm);
            }
            vec![alarm]
        }
        AlarmAction::Deactivate => {
            let cleared = head.alarms.iter().copied().filter(is_meant).collect();
            head.alarms.retain(|alarm| !is_meant(alarm));
            cleared
        }
    }
}
