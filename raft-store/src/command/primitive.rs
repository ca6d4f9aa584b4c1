//! Converts requests of counters, latches, barriers and groups from messages to commands.

use conclave_proto::{internal, v1};
use conclave_state_machine::command::{Action, Condition, Once, Primitive};
use conclave_state_machine::response::Rejection;
use internal::counter_set::Condition as When;
use internal::primitive::Action as Message;

/// Converts a change.
///
/// # Errors
/// [`Rejection::Malformed`] if the action is missing or unknown.
pub fn primitive(message: internal::Primitive) -> Result<Primitive, Rejection> {
    let action = match message.action.ok_or(Rejection::Malformed("unknown action"))? {
        Message::Add(delta) => Action::Add(delta),
        Message::Set(set) => set_of(&set),
        Message::Create(count) => Action::Create(count),
        Message::CountDown(by) => Action::CountDown(by),
        Message::Raise(internal::BarrierRaise { note, bound }) => {
            Action::Raise { note, is_bound: bound }
        }
        Message::Lift(fence) => Action::Lift(fence),
        Message::Enter(internal::DoubleBarrierEnter { count, note }) => {
            Action::Enter { count, note }
        }
        Message::ExitIfWaiting(is_only_waiting) => Action::Exit { is_only_waiting },
        Message::Join(internal::GroupJoin { member, value, of }) => {
            Action::Join { member, value, of }
        }
        Message::Part(member) => Action::Part { member },
    };
    Ok(Primitive { once: once(message.once), name: message.name, action })
}

/// Converts session and number of a request.
#[must_use]
pub fn once(message: Option<v1::Once>) -> Once {
    let v1::Once { session, sequence, settled, undoes } = message.unwrap_or_default();
    Once { session, sequence, settled, undoes }
}

fn set_of(set: &internal::CounterSet) -> Action {
    let condition = match set.condition {
        None => Condition::None,
        Some(When::IfValue(value)) => Condition::Value(value),
        Some(When::IfRevision(revision)) => Condition::Revision(revision),
    };
    Action::Set { value: set.value, condition }
}
