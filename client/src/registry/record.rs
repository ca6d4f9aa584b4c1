//! How a balanced channel sees an instance.

use conclave_state_machine::registry::record::{Record, State};

use crate::balance::Instance;

impl From<&Record> for Instance {
    fn from(record: &Record) -> Self {
        let state = record.state_shown();
        // An instance that drains, is starting, or was put out of service by its owner or an
        // operator gets no calls, even if all others are unhealthy.
        let gets_none = matches!(state, State::Draining | State::Starting | State::OutOfService);
        let weight = if gets_none { 0 } else { record.weight };
        let is_healthy = matches!(state, State::Up | State::Draining)
            && record.health_shown().is_good()
            && !record.details.is_damped;
        let (zone, endpoints) = (record.zone.clone(), record.details.endpoints.clone());
        Self { endpoints, weight, zone, is_healthy, ..Self::new(&record.id, &record.address) }
    }
}

#[cfg(test)]
mod tests {
    use conclave_state_machine::registry::record::{Check, Health};

    use super::*;

    #[test]
    fn who_drains_or_is_down_gets_no_calls() {
        let instance = |state| Instance::from(&Record { state, ..Record::new("h:1") });
        assert_eq!((instance(State::Up).weight, instance(State::Up).is_healthy), (100, true));
        for never in [State::Draining, State::Starting, State::OutOfService] {
            assert_eq!(instance(never).weight, 0, "{never:?}");
        }
        assert_eq!((instance(State::Down).weight, instance(State::Down).is_healthy), (100, false));
        let mut record = Record::new("h:1");
        record.details.endpoints.insert("admin".to_owned(), "http://h:2".to_owned());
        assert_eq!(Instance::from(&record).endpoints["admin"], "http://h:2");
        record.details.health = Health::Critical;
        assert!(!Instance::from(&record).is_healthy);
        record.details.health = Health::Passing;
        record.details.check = Some(Check::default());
        assert!(!Instance::from(&record).is_healthy, "nobody has looked yet");
        record.details.override_state = Some(State::Draining);
        assert_eq!(Instance::from(&record).weight, 0);
    }
}
