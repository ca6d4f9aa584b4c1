//! A transaction that runs only while locks are held: ownership and effect are one step.

use super::check;
use super::queue::{self, NEWEST};
use crate::change::Change;
use crate::command::GuardedTxn;
use crate::kv::txn;
use crate::outcome::Stop;
use crate::read::Read;
use crate::response::TxnResponse;

/// `None`: a guard is not held, and nothing happened.
pub(crate) fn apply<R: Read>(
    change: &mut Change<'_, '_, R>,
    command: &GuardedTxn,
) -> Result<Option<TxnResponse>, Stop> {
    check::guards(&command.guards)?;
    for guard in &command.guards {
        if !queue::holds(change.rows, NEWEST, &guard.name, guard.fence)? {
            return Ok(None);
        }
    }
    txn::apply(change, &command.txn).map(Some)
}
