//! Alarms: what a member found wrong, known to all members until somebody clears it.

use crate::command::{AlarmAction, AlarmChange, AlarmKind};
use crate::head::Head;

/// Carries out `change` and returns the alarms it touched or listed.
pub(crate) fn apply(head: &mut Head, change: AlarmChange) -> Vec<(u64, AlarmKind)> {
    let alarm = (change.member, change.alarm);
    match change.action {
        // A list is of all members, as in etcd.
        AlarmAction::Get => {
            let kind = change.alarm;
            let alarms = head.alarms.iter().copied();
            alarms.filter(|alarm| kind == AlarmKind::None || alarm.1 == kind).collect()
        }
        AlarmAction::Activate if change.alarm == AlarmKind::None => Vec::new(),
        AlarmAction::Activate => {
            if let Err(place) = head.alarms.binary_search(&alarm) {
                head.alarms.insert(place, alarm);
            }
            vec![alarm]
        }
        // One alarm of one member, as in etcd: who wants to clear all lists them first.
        AlarmAction::Deactivate => match head.alarms.binary_search(&alarm) {
            Ok(place) => vec![head.alarms.remove(place)],
            Err(_) => Vec::new(),
        },
    }
}
