//! Locks and elections: queues of ordinary keys.
//!
//! A *place* in the queue of `name` is a key `name/x` that is attached to a lease; its create
//! revision is its *fence* (fencing token). Which places hold is a function of the queue alone
//! ([`queue`]). So a hand-over happens in the very commit that deletes the previous holder's key,
//! whatever deleted it, and clients that use etcd's own recipes wait in the same queue. The permits
//! and flags of a native place are in its value ([`claim`]); a place with any other value is
//! exclusive.
//!
//! | module | what |
//! |---|---|
//! | [`queue`] | the places of a name, and which of them hold |
//! | [`arrival`] | finds a newcomer's predecessor from the last few events |
//! | `front` | a summary of each queue, so that a command's cost does not depend on its length |
//! | [`tenure`] | since when a holder holds |
//! | [`claim`], `attempt` | the value of a native place; which streams wait for it |
//! | `acquire`, `release`, `convert`, [`seize`], [`candidate`], `hand_over` | the commands |
//! | `delay` | what happens to the places of an expired session |
//! | `guard` | transactions that require a lock |
//! | [`stranded`] | requests left behind by streams of a member that is gone |
//! | [`check`] | validity checks of commands |

mod acquire;
pub mod arrival;
pub(crate) mod attempt;
pub mod candidate;
pub mod check;
pub mod claim;
mod convert;
pub(crate) mod delay;
pub(crate) mod front;
mod guard;
mod hand_over;
pub mod queue;
mod release;
pub mod seize;
pub mod stranded;
pub mod tenure;

use crate::change::Change;
use crate::command::LockCommand;
use crate::events::Events;
use crate::head::Head;
use crate::outcome::Stop;
use crate::overlay::Overlay;
use crate::read::Read;
use crate::response::{LeaseChange, LockResponse};

pub(crate) use guard::apply as guarded_txn;

/// Carries out a command that changes queues, and may end leases.
pub(crate) fn apply<R: Read>(
    rows: &mut Overlay<'_, R>,
    head: &mut Head,
    events: &mut Events,
    command: &LockCommand,
    ended: &mut Vec<LeaseChange>,
) -> Result<LockResponse, Stop> {
    check::command(command)?;
    match command {
        LockCommand::Acquire(command) => {
            acquire::apply(&mut Change::begin(rows, head, events)?, command)
        }
        LockCommand::Release(command) => {
            release::apply(&mut Change::begin(rows, head, events)?, command)
        }
        LockCommand::Convert(command) => {
            convert::apply(&mut Change::begin(rows, head, events)?, command)
        }
        LockCommand::Break(command) => {
            seize::apply(&mut Change::begin(rows, head, events)?, command, ended)
        }
        LockCommand::Campaign(command) => {
            candidate::campaign(&mut Change::begin(rows, head, events)?, command)
        }
        LockCommand::Leave(command) => {
            candidate::leave(&mut Change::begin(rows, head, events)?, command)
        }
        LockCommand::HandOver(command) => hand_over::apply(rows, head, events, command),
    }
}
