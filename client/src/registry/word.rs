//! What an owner reports about its instance while it is registered: the last word counts, whoever carries it.

use conclave_proto::v1::{InstanceHealth, InstanceReport};
use conclave_state_machine::registry::check::OUTPUT_BYTES_MAX;

use super::{Health, Record};

/// What was reported; nothing about the rest.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Word {
    health: Option<(Health, String)>,
    weight: Option<u32>,
}

impl Word {
    /// Whether nothing was reported.
    pub(super) fn is_silent(&self) -> bool {
        *self == Word::default()
    }

    /// Whether that is news.
    pub(super) fn set_health(&mut self, health: Health, mut output: String) -> bool {
        output.truncate(output.floor_char_boundary(OUTPUT_BYTES_MAX));
        let health = Some((health, output));
        let is_news = self.health != health;
        self.health = health;
        is_news
    }

    /// Whether that is news.
    pub(super) fn set_weight(&mut self, weight: u32) -> bool {
        self.weight.replace(weight) != Some(weight)
    }

    /// Puts into a record what was reported.
    pub(super) fn tell(&self, record: &mut Record) {
        if let Some((health, output)) = &self.health {
            record.details.health = *health;
            record.details.output.clone_from(output);
        }
        if let Some(weight) = self.weight {
            record.weight = weight;
        }
    }

    /// What a record says now goes before what was reported.
    pub(super) fn follow(&mut self, record: &Record) {
        if let Some(health) = &mut self.health {
            *health = (record.details.health, record.details.output.clone());
        }
        if let Some(weight) = &mut self.weight {
            *weight = record.weight;
        }
    }

    /// For a heartbeat.
    pub(super) fn report(&self, service: &str, id: &str, fence: i64) -> InstanceReport {
        let (health, output) = self.health_sent();
        InstanceReport {
            service: service.to_owned(),
            id: id.to_owned(),
            fence,
            health,
            output,
            weight: self.weight,
            ..InstanceReport::default()
        }
    }

    fn health_sent(&self) -> (i32, String) {
        let Some((health, output)) = &self.health else { return Default::default() };
        let health = match health {
            Health::Passing => InstanceHealth::Passing,
            Health::Unknown => InstanceHealth::Unknown,
            Health::Warning => InstanceHealth::Warning,
            Health::Critical => InstanceHealth::Critical,
        };
        (health.into(), output.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_reported_is_said() {
        let (mut word, mut record) = (Word::default(), Record::new("h:1"));
        assert!(word.is_silent() && word.set_weight(7) && !word.set_weight(7));
        record.details.health = Health::Warning;
        word.tell(&mut record);
        assert_eq!((record.weight, record.details.health), (7, Health::Warning));
        let report = word.report("api", "a", 5);
        assert_eq!((report.weight, report.health()), (Some(7), InstanceHealth::Unspecified));
        assert!(word.set_health(Health::Passing, String::new()));
        assert_eq!(word.report("api", "a", 5).health(), InstanceHealth::Passing);
        word.tell(&mut record);
        assert_eq!(record.details.health, Health::Passing);
    }

    #[test]
    fn a_later_change_of_the_record_goes_before_what_was_reported() {
        let (mut word, mut record) = (Word::default(), Record::new("h:1"));
        word.set_weight(7);
        (record.weight, record.details.health) = (9, Health::Critical);
        word.follow(&record);
        let report = word.report("api", "a", 5);
        assert_eq!((report.weight, report.health()), (Some(9), InstanceHealth::Unspecified));
    }

    #[test]
    fn a_long_note_is_cut_off_between_characters() {
        let mut word = Word::default();
        assert!(word.set_health(Health::Warning, "ü".repeat(OUTPUT_BYTES_MAX)));
        assert_eq!(word.report("api", "a", 5).output, "ü".repeat(OUTPUT_BYTES_MAX / 2));
    }
}
