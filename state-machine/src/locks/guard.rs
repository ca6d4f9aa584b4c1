//! Transactions that run only while locks are held: check and effect are one atomic step.

use super::check;
use super::queue::{self, NEWEST};
use crate::change::Change;
use crate::command::GuardedTxn;
use crate::kv::txn;
use crate::outcome::Stop;
use crate::read::Read;
use crate::response::{Rejection, TxnResponse};

/// Most places that all guards of one transaction may have to look at: many guards of locks with
/// many holders would keep apply busy.
const PLACES_MAX: usize = 4_096;

/// Returns `None` if a guard is not held; nothing was done then.
pub(crate) fn apply<R: Read>(
    change: &mut Change<'_, '_, R>,
    command: &GuardedTxn,
) -> Result<Option<TxnResponse>, Stop> {
    check::guards(&command.guards)?;
    let mut places_left = PLACES_MAX;
    for guard in &command.guards {
        let guard = (guard.name.as_ref(), guard.fence);
        match queue::holds_within(change.rows, NEWEST, guard, &mut places_left)? {
            Some(true) => {}
            Some(false) => return Ok(None),
            None => return Err(Rejection::InvalidLock("the guards have too many holders").into()),
        }
    }
    txn::apply(change, &command.txn).map(Some)
}
