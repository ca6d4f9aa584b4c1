//! Checks, proposes and answers changes of counters, latches, barriers and groups.

use bytes::Bytes;
use conclave_proto::internal::{self, command::Command as Message, primitive::Action};
use conclave_proto::v1;
use conclave_raft_store::{Reader, command};
use conclave_state_machine::command::{Caller, Range};
use conclave_state_machine::primitives::check;
use conclave_state_machine::response::{KeyValue, PrimitiveResponse, Response as Answer};
use conclave_state_machine::room;
use tonic::Status;

use crate::api::context::{Context, mismatch};
use crate::api::limits;
use crate::status;

/// Refuses before the proposal what apply would refuse.
pub(super) fn checked(message: &internal::Primitive) -> Result<(), Status> {
    let command = command::primitive::primitive(message.clone());
    let checked = command.and_then(|command| check::command(&command));
    checked.map_err(|rejection| status::from_rejection(&rejection))
}

/// Executes a change on behalf of a caller.
pub(super) async fn change(
    (context, caller): (&Context, &Caller),
    once: Option<v1::Once>,
    name: Bytes,
    action: Action,
) -> Result<PrimitiveResponse, Status> {
    let cost = match &action {
        Action::Lift(_) | Action::ExitIfWaiting(_) | Action::Part(_) => 0,
        Action::Raise(raise) => limits::key_cost(&name) + raise.note.len(),
        Action::Enter(enter) => limits::key_cost(&name) + enter.note.len(),
        Action::Join(join) => limits::key_cost(&name) + join.value.len(),
        Action::Add(_) | Action::Set(_) | Action::Create(_) | Action::CountDown(_) => {
            limits::key_cost(&name)
        }
    };
    let message = internal::Primitive { once, name, action: Some(action) };
    checked(&message)?;
    context.check_size(&message)?;
    let is_known =
        |reader: &Reader| room::is_answered(reader, command::primitive::once(message.once));
    context.check_quota_unless(cost, is_known).await?;
    propose((context, caller), message).await
}

/// Proposes a change that was checked already.
pub(super) async fn propose(
    (context, caller): (&Context, &Caller),
    message: internal::Primitive,
) -> Result<PrimitiveResponse, Status> {
    match context.propose(caller, Message::Primitive(message)).await? {
        (Answer::Primitive(answer), _) => Ok(answer),
        _ => Err(mismatch()),
    }
}

/// Reads one key at a revision, 0 for the current one.
pub(super) fn key_at(context: &Context, key: &Bytes, at: i64) -> Result<Option<KeyValue>, Status> {
    let range = Range { key: Bytes::clone(key), revision: at, ..Range::default() };
    let found = context.node.reader().range(&range);
    let (found, _) = found.map_err(|error| status::from_read(&error))?;
    Ok(found.kvs.into_iter().next())
}
