//! Since when a holder has held, for display.
//!
//! A hand-over writes the summary of the queue in any case, and records its time there, by the
//! clock of the member that proposed it. That is enough for an exclusive holder. Of several
//! holders, the time is known for those that were admitted on arrival, and for those that were
//! admitted together after an exclusive holder; for others it is not known.

use super::front::{self, Moment};
use super::queue::Place;
use crate::read::Read;
use crate::response::Halt;
use crate::rows::place::{Front, Turn};

/// What is known about the times of the holders of one name.
#[derive(Clone, Copy, Debug)]
pub struct Tenure(Option<Front>);

/// A place was deleted or asks for another share, so that others may hold from now on.
pub(super) fn disturbed(turn: Turn, revision: i64) -> Turn {
    Turn { changed: revision, is_last: false, ..turn }
}

/// The first place, which asked for this share, was deleted, and the next becomes first.
pub(super) fn handed_over(moment: Moment, (permits, limit): (u32, u32)) -> Turn {
    // Beside a holder that was not exclusive, the next place may have held already.
    let is_whole = permits >= limit;
    let Moment { revision: changed, unix_ms } = moment;
    Turn { unix_ms, changed, is_whole, is_last: is_whole }
}

/// There is a first place, but it is not known since when.
pub(super) fn unknown(revision: i64) -> Turn {
    disturbed(Turn::UNKNOWN, revision)
}

impl Tenure {
    /// Reads what is known about `name` at present.
    ///
    /// # Errors
    /// [`Halt`] if the storage fails or a row is damaged.
    pub fn load<R: Read>(rows: &R, name: &[u8]) -> Result<Tenure, Halt> {
        Ok(Tenure(front::front(rows, name)?))
    }

    /// Since when `place`, which holds now, has held, in milliseconds since 1970 by a member's
    /// clock; 0: not known.
    #[must_use]
    pub fn since(&self, place: &Place) -> i64 {
        let Some(Front { first, turn, .. }) = self.0 else { return 0 };
        if place.is_lost() {
            return 0;
        }
        let (permits, limit) = place.share();
        // A place that always asked for the whole limit can hold only while it is first.
        let is_alone = permits >= limit && place.version == 1;
        let is_known = if place.fence == first {
            turn.is_whole || is_alone
        } else if place.fence > turn.changed {
            // It was admitted on arrival.
            return place.claim.as_ref().map_or(0, |claim| claim.asked_ms);
        } else {
            turn.is_whole && turn.is_last
        };
        if is_known { turn.unix_ms } else { 0 }
    }
}
