//! Flap damping: an instance that comes and goes too often is shown as healthy only after a while.
//!
//! Each loss (of the session, or of health) adds to a penalty, which halves every minute. An
//! instance that comes back above [`SUPPRESS`] is damped until its penalty is down to [`REUSE`]: at
//! most two minutes. Damping only delays good news: it never shows a failure late or a recovery
//! early.

use bytes::Bytes;

use super::index;
use crate::overlay::Overlay;
use crate::read::{Read, Table};
use crate::response::Halt;
use crate::rows::{RowReader, RowWriter};

/// Penalty for one loss.
pub const PENALTY: u64 = 1_000;
/// An instance that comes up with a higher penalty is damped: on the fourth loss in a row.
pub const SUPPRESS: u64 = 3_000;
/// Damping ends at this penalty.
pub const REUSE: u64 = 1_500;
/// Highest penalty, so that damping ends after two half-lives.
pub const PENALTY_MAX: u64 = 6_000;
/// Time in which a penalty halves.
pub const HALF_LIFE_MS: u64 = 60_000;
/// A lower penalty is forgotten.
pub const FORGET: u64 = 100;

const FORM: u8 = 1;

/// A penalty at a time of a proposer's wall clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flaps {
    /// Penalty at `at_ms`.
    pub penalty: u64,
    /// When the penalty was computed, in milliseconds since 1970.
    pub at_ms: i64,
}

impl Flaps {
    /// The penalty at `now_ms`; a clock that went backwards counts as one that stood still.
    #[must_use]
    pub fn at(self, now_ms: i64) -> u64 {
        let elapsed = u64::try_from(now_ms.saturating_sub(self.at_ms)).unwrap_or(0);
        let halvings = u32::try_from(elapsed / HALF_LIFE_MS).unwrap_or(u32::MAX);
        let halved = self.penalty.checked_shr(halvings).unwrap_or(0);
        // Linear between two halvings.
        let rest = halved.saturating_mul(elapsed % HALF_LIFE_MS) / (2 * HALF_LIFE_MS);
        halved.saturating_sub(rest)
    }

    fn encode(self) -> Bytes {
        let mut row = RowWriter::new(FORM);
        row.uint(self.penalty);
        row.int(self.at_ms);
        row.finish()
    }

    pub(crate) fn decode(row: &[u8]) -> Result<Flaps, Halt> {
        let mut row = RowReader::new("instance", row);
        match row.form()? {
            FORM => Ok(Flaps { penalty: row.uint()?, at_ms: row.int()? }),
            _ => Err(row.corrupt("unknown form")),
        }
    }
}

/// How long an instance with this penalty stays damped, in milliseconds.
#[must_use]
pub fn wait_ms(penalty: u64) -> u64 {
    let mut wait_ms = 0_u64;
    let mut left = penalty.min(PENALTY_MAX);
    while left > REUSE {
        let half = left / 2;
        if half >= REUSE {
            wait_ms = wait_ms.saturating_add(HALF_LIFE_MS);
            left = half;
            continue;
        }
        let above = left.saturating_sub(REUSE);
        let part = above.saturating_mul(HALF_LIFE_MS.saturating_mul(2)).div_ceil(left);
        return wait_ms.saturating_add(part);
    }
    wait_ms
}

/// Reads the penalty of an instance.
///
/// # Errors
/// [`Halt`] if the storage fails or the row is damaged.
pub fn flaps<R: Read>(rows: &R, service: &[u8], id: &str) -> Result<Flaps, Halt> {
    let row = rows.get(Table::Instance, &index::flap_key(service, id))?;
    row.map_or(Ok(Flaps::default()), |row| Flaps::decode(&row))
}

/// Adds the penalty for a loss.
pub(super) fn note<R: Read>(
    rows: &mut Overlay<'_, R>,
    service: &[u8],
    id: &str,
    now_ms: i64,
) -> Result<(), Halt> {
    let penalty = flaps(rows, service, id)?.at(now_ms).saturating_add(PENALTY).min(PENALTY_MAX);
    let row = Flaps { penalty, at_ms: now_ms }.encode();
    rows.put(Table::Instance, index::flap_key(service, id), row);
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_penalty_halves_every_minute() {
        let flaps = Flaps { penalty: 4_000, at_ms: 1_000 };
        assert_eq!(flaps.at(0), 4_000, "a clock that went backwards");
        assert_eq!(flaps.at(31_000), 3_000);
        assert_eq!(flaps.at(61_000), 2_000);
        assert_eq!(flaps.at(i64::MAX), 0);
        assert_eq!(wait_ms(REUSE), 0);
        assert_eq!(wait_ms(3_000), HALF_LIFE_MS);
        assert_eq!(wait_ms(PENALTY_MAX), 2 * HALF_LIFE_MS);
    }

    proptest! {
        #[test]
        fn after_the_wait_it_is_reused(penalty in 0..=PENALTY_MAX, at_ms in 0..1_000_i64) {
            let flaps = Flaps { penalty, at_ms };
            let after = at_ms + i64::try_from(wait_ms(penalty)).unwrap();
            prop_assert!(flaps.at(after) <= REUSE + 1);
            prop_assert!(penalty <= REUSE || flaps.at(after - 1_000) >= REUSE);
            prop_assert!(wait_ms(penalty) <= 2 * HALF_LIFE_MS);
        }
    }
}
