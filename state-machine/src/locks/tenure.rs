//! Since when a holder holds, for people.
//!
//! A hand-over writes where the queue begins in any case, and there it says when it was, by the clock of the member that
//! proposed it. That is enough where one holds alone. Of several who hold together it tells those who were let in
//! as they came, and those who came in together where one had held alone; of others nothing is told.

use super::front::{self, Moment};
use super::queue::Place;
use crate::read::Read;
use crate::response::Halt;
use crate::rows::place::{Front, Turn};

/// What is known of the times of one name.
#[derive(Clone, Copy, Debug)]
pub struct Tenure(Option<Front>);

/// A place went or asks for another share: others may hold from then on.
pub(super) fn disturbed(turn: Turn, revision: i64) -> Turn {
    Turn { changed: revision, is_last: false, ..turn }
}

/// The first went, which asked for this share, and the next has its turn.
pub(super) fn handed_over(moment: Moment, (permits, limit): (u32, u32)) -> Turn {
    // Beside one that does not hold alone the next may have held already.
    let is_whole = permits >= limit;
    let Moment { revision: changed, unix_ms } = moment;
    Turn { unix_ms, changed, is_whole, is_last: is_whole }
}

/// There is a first, and nobody knows since when.
pub(super) fn unknown(revision: i64) -> Turn {
    disturbed(Turn::UNKNOWN, revision)
}

impl Tenure {
    /// Reads what is known of `name` now.
    ///
    /// # Errors
    /// [`Halt`] if the storage fails or a row is damaged.
    pub fn load<R: Read>(rows: &R, name: &[u8]) -> Result<Tenure, Halt> {
        Ok(Tenure(front::front(rows, name)?))
    }

    /// When `place`, which holds now, began to, in milliseconds since 1970 by a member's clock; 0: not known.
    #[must_use]
    pub fn since(&self, place: &Place) -> i64 {
        let Some(Front { first, turn, .. }) = self.0 else { return 0 };
        if place.is_lost() {
            return 0;
        }
        let (permits, limit) = place.share();
        // Who never asked for less than all can hold as the first only.
        let is_alone = permits >= limit && place.version == 1;
        let is_known = if place.fence == first {
            turn.is_whole || is_alone
        } else if place.fence > turn.changed {
            // It was let in as it came.
            return place.claim.as_ref().map_or(0, |claim| claim.asked_ms);
        } else {
            turn.is_whole && turn.is_last
        };
        if is_known { turn.unix_ms } else { 0 }
    }
}
