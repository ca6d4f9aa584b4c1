//! Alarms: problems that a member reported, known to all members until somebody clears them.

use crate::command::{AlarmAction, AlarmChange, AlarmKind};
use crate::head::Head;

/// Applies `change` and returns the alarms it changed or listed.
pub(crate) fn apply(head: &mut Head, change: AlarmChange) -> Vec<(u64, AlarmKind)> {
    let alarm = (change.member, change.alarm);
    match change.action {
        // Lists the alarms of all members, as etcd does.
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
        // Clears one alarm of one member, as in etcd: to clear all, a client lists them first.
        AlarmAction::Deactivate => match head.alarms.binary_search(&alarm) {
            Ok(place) => vec![head.alarms.remove(place)],
            Err(_) => Vec::new(),
        },
    }
}
