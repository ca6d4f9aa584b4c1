//! Retries of commands, which may arrive after something else has changed the instance: a session
//! remembers its answers, as it does for counters, barriers and groups.

use crate::change::Change;
use crate::command::Once;
use crate::outcome::Stop;
use crate::primitives::once::{self, Kind, Standing};
use crate::read::Read;
use crate::response::{PrimitiveResponse, RegistryResponse};

/// Carries out a command, or returns its earlier answer, which `answer` converts.
pub(super) fn apply<R: Read>(
    change: &mut Change<'_, '_, R>,
    (once, kind): (Once, Kind),
    answer: fn(PrimitiveResponse) -> RegistryResponse,
    command: impl FnOnce(&mut Change<'_, '_, R>) -> Result<PrimitiveResponse, Stop>,
) -> Result<RegistryResponse, Stop> {
    let session = match once::find(change.rows, once, kind)? {
        Standing::Known(known) => return Ok(answer(known)),
        Standing::New(session) => session,
    };
    let found = command(change)?;
    if let Some(session) = session {
        once::remember(change.rows, session, (once, kind), found);
    }
    Ok(answer(found))
}

pub(super) fn registered(answer: PrimitiveResponse) -> RegistryResponse {
    let PrimitiveResponse { is_done: is_new, number: fence, revision: mod_revision } = answer;
    RegistryResponse::Registered { fence, mod_revision, is_new }
}

pub(super) fn updated(answer: PrimitiveResponse) -> RegistryResponse {
    let PrimitiveResponse { number: fence, revision: mod_revision, .. } = answer;
    RegistryResponse::Updated { mod_revision, fence }
}

pub(super) fn removed(answer: PrimitiveResponse) -> RegistryResponse {
    RegistryResponse::Removed { was_there: answer.is_done }
}
