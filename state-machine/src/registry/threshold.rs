//! Decides when the results of checks suffice to change the health of an instance.

use super::check::CHECK_FAILURES;
use super::record::{Check, Health};

/// Counts successive results that agree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Streak {
    good: u32,
    bad: u32,
}

impl Streak {
    /// Adds a result. Returns the new health to show, if enough results agree and it differs from
    /// `shown`.
    pub fn note(&mut self, found: Health, check: &Check, shown: Option<Health>) -> Option<Health> {
        let wanted = |wanted: u32, usual: u32| if wanted == 0 { usual } else { wanted };
        let is_enough = if found == Health::Critical {
            (self.good, self.bad) = (0, self.bad.saturating_add(1));
            self.bad >= wanted(check.failures, CHECK_FAILURES)
        } else {
            (self.good, self.bad) = (self.good.saturating_add(1), 0);
            self.good >= wanted(check.passes, 1)
        };
        (is_enough && shown != Some(found)).then_some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_results_in_a_row_count() {
        use Health::{Critical, Passing, Warning};
        let check = Check { passes: 2, ..Check::default() };
        let mut streak = Streak::default();
        let mut shown = None;
        let mut note = |found| {
            let agreed = streak.note(found, &check, shown);
            shown = agreed.or(shown);
            agreed
        };
        assert_eq!([Passing, Passing, Passing].map(&mut note), [None, Some(Passing), None]);
        assert_eq!([Critical, Critical, Passing].map(&mut note), [None; 3]);
        let down = [Critical, Critical, Critical, Critical].map(&mut note);
        assert_eq!(down, [None, None, Some(Critical), None]);
        assert_eq!([Warning, Warning].map(&mut note), [None, Some(Warning)]);
        assert_eq!(note(Passing), Some(Passing));
    }
}
