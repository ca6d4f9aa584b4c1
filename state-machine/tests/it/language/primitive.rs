//! Words of counters, latches, barriers and groups.

use conclave_state_machine::command::{Action, Condition, Once, Primitive};

use super::{Parsed, Words, bytes, number};

/// `primitive NAME ACTION ... [by=SESSION.SEQUENCE[.SETTLED[.UNDOES]]]`.
pub(super) fn primitive(words: &mut Words) -> Parsed<Primitive> {
    let name = bytes(&words.next()?);
    let action = action(words)?;
    let mut primitive = Primitive { once: Once::default(), name, action };
    for (option, value) in words.options() {
        match (option.as_str(), &mut primitive.action) {
            ("by", _) => primitive.once = once(&value)?,
            ("if_value", Action::Set { condition, .. }) => {
                *condition = Condition::Value(number(&value)?);
            }
            ("if_revision", Action::Set { condition, .. }) => {
                *condition = Condition::Revision(number(&value)?);
            }
            ("bound", Action::Raise { is_bound, .. }) => *is_bound = true,
            ("of", Action::Join { of, .. }) => *of = number(&value)?,
            ("waiting", Action::Exit { is_only_waiting }) => *is_only_waiting = true,
            _ => return Err(format!("unknown option {option:?} of a primitive")),
        }
    }
    Ok(primitive)
}

fn action(words: &mut Words) -> Parsed<Action> {
    Ok(match words.next()?.as_str() {
        "add" => Action::Add(words.number()?),
        "set" => Action::Set { value: words.number()?, condition: Condition::None },
        "create" => Action::Create(words.number()?),
        "down" => Action::CountDown(words.number()?),
        "raise" => Action::Raise { note: bytes(&words.next()?), is_bound: false },
        "lift" => Action::Lift(words.number()?),
        "enter" => Action::Enter { count: number(&words.next()?)?, note: bytes(&words.next()?) },
        "exit" => Action::Exit { is_only_waiting: false },
        "join" => {
            Action::Join { member: bytes(&words.next()?), value: bytes(&words.next()?), of: 0 }
        }
        "part" => Action::Part { member: bytes(&words.next()?) },
        other => return Err(format!("unknown action {other:?}")),
    })
}

pub(crate) fn once(text: &str) -> Parsed<Once> {
    let mut once = Once { settled: 1, ..Once::default() };
    for (place, word) in text.split('.').enumerate() {
        match place {
            0 => once.session = number(word)?,
            1 => once.sequence = number(word)?,
            2 => once.settled = number(word)?,
            3 => once.undoes = number(word)?,
            _ => return Err(format!("{text:?} has too many parts")),
        }
    }
    Ok(once)
}
