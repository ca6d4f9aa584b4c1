//! The registry's words of golden scripts, and its answers as lines.

use std::ops::ControlFlow;

use conclave_state_machine::command::{
    CheckResult, Configure, Deregister, Former, InstanceUpdate, Range, Register, RegisterMode,
    RegistryCommand, Settle, SettleItem, Settlement,
};
use conclave_state_machine::history;
use conclave_state_machine::read::{Read, Table};
use conclave_state_machine::registry::record::{Check, Health, Record, State};
use conclave_state_machine::registry::view::{Shown, View};
use conclave_state_machine::registry::{self, index, span};
use conclave_state_machine::response::RegistryResponse;

use crate::language::{Parsed, Words, bytes, number, primitive};
use crate::print;
use crate::store::Store;

const NO_FAILURE: &str = "memory does not fail";

pub(crate) fn command(name: &str, words: &mut Words) -> Parsed<Option<RegistryCommand>> {
    Ok(Some(match name {
        "register" => RegistryCommand::Register(register(words)?),
        "update" => RegistryCommand::Update(update(words)?),
        "deregister" => {
            let mut command = Deregister {
                service: bytes(&words.next()?),
                id: words.next()?,
                session: words.number()?,
                ..Deregister::default()
            };
            for (option, value) in words.options() {
                match option.as_str() {
                    "by" => command.once = primitive::once(&value)?,
                    _ => command.fence = number(&value)?,
                }
            }
            RegistryCommand::Deregister(command)
        }
        "checked" => {
            let mut command = CheckResult {
                service: bytes(&words.next()?),
                id: words.next()?,
                fence: words.number()?,
                health: health(&words.next()?)?,
                is_damping: true,
                ..CheckResult::default()
            };
            for (option, value) in words.options() {
                match option.as_str() {
                    "check" => command.check = value,
                    _ => command.now_ms = number(&value)?,
                }
            }
            RegistryCommand::Checked(command)
        }
        "settle" => RegistryCommand::Settle(settle(words)?),
        "switch" => {
            let mut command = Configure { service: bytes(&words.next()?), ..Configure::default() };
            for (option, value) in words.options() {
                let switch = Some(value == "on");
                match option.as_str() {
                    "guard" => command.is_guarded = switch,
                    _ => command.is_damped = switch,
                }
            }
            RegistryCommand::Configure(command)
        }
        _ => return Ok(None),
    }))
}

fn health(word: &str) -> Parsed<Health> {
    serde_json::from_value(word.into()).map_err(|error| error.to_string())
}

fn state(word: &str) -> Parsed<State> {
    serde_json::from_value(word.into()).map_err(|error| error.to_string())
}

fn register(words: &mut Words) -> Parsed<Register> {
    let mut command = Register {
        service: bytes(&words.next()?),
        id: words.next()?,
        session: words.number()?,
        is_damping: true,
        ..Register::default()
    };
    let mut record = Record::new(words.next()?);
    for (option, value) in words.options() {
        match option.as_str() {
            "version" => record.version = value,
            "tag" => record.tags.push(value),
            "zone" => record.zone = value,
            "health" => record.details.health = health(&value)?,
            "check" if value.is_empty() => record.details.check = Some(Check::default()),
            "check" => {
                let (name, remove) = value.split_once(':').unwrap_or((&value, "0"));
                let check = Check { remove_after_ms: number(remove)?, ..Check::default() };
                record.details.checks.insert(name.to_owned(), check);
            }
            "remove" => {
                let remove_after_ms = number(&value)?;
                record.details.check = Some(Check { remove_after_ms, ..Check::default() });
            }
            "absent" => command.mode = RegisterMode::IfAbsent,
            "anew" => command.is_anew = true,
            "at" => command.mod_revision = number(&value)?,
            "fence" => command.fence = number(&value)?,
            "former" => {
                let (session, fence) = value.split_once('.').unwrap_or((&value, "0"));
                command.former = Former { session: number(session)?, fence: number(fence)? };
            }
            "by" => command.once = primitive::once(&value)?,
            "now" => command.now_ms = number(&value)?,
            _ => return Err(format!("unknown option {option:?} of register")),
        }
    }
    command.record = record.encode().into();
    Ok(command)
}

fn update(words: &mut Words) -> Parsed<InstanceUpdate> {
    let mut command = InstanceUpdate {
        service: bytes(&words.next()?),
        id: words.next()?,
        session: words.number()?,
        is_damping: true,
        ..InstanceUpdate::default()
    };
    for (option, value) in words.options() {
        match option.as_str() {
            "state" => command.state = Some(state(&value)?),
            "override" if value == "none" => command.override_state = Some(None),
            "override" => command.override_state = Some(Some(state(&value)?)),
            "health" => command.health = Some((health(&value)?, String::new())),
            "by" => command.once = primitive::once(&value)?,
            "drain" => command.drain_ms = Some(number(&value)?),
            "now" => command.now_ms = number(&value)?,
            "fence" => command.fence = number(&value)?,
            _ => return Err(format!("unknown option {option:?} of update")),
        }
    }
    Ok(command)
}

fn settle(words: &mut Words) -> Parsed<Settle> {
    let term = number(&words.next()?)?;
    let what = match words.next()?.as_str() {
        "undamp" => Settlement::Undamp,
        "lost" => Settlement::DropLost,
        "critical" => Settlement::RemoveCritical,
        "drained" => Settlement::RemoveDrained,
        "forget" => Settlement::Forget,
        other => return Err(format!("unknown settlement {other:?}")),
    };
    let service = bytes(&words.next()?);
    let item = SettleItem { service, id: words.next()?, stamp: words.number()?, what };
    let mut settle = Settle { term, now_ms: 0, items: vec![item] };
    for (_, value) in words.options() {
        settle.now_ms = number(&value)?;
    }
    Ok(settle)
}

pub(crate) fn response(response: &RegistryResponse) -> Vec<String> {
    vec![match response {
        RegistryResponse::Registered { fence, mod_revision, is_new } => {
            let is_new = if *is_new { "registered" } else { "known" };
            format!("{is_new} fence={fence} mod={mod_revision}")
        }
        RegistryResponse::Updated { fence, mod_revision } => {
            format!("updated fence={fence} mod={mod_revision}")
        }
        RegistryResponse::Removed { was_there: true } => "removed".to_owned(),
        RegistryResponse::Removed { was_there: false } => "nothing to remove".to_owned(),
        RegistryResponse::Settled { done } => format!("settled {done}"),
        RegistryResponse::Configured(row) => {
            format!("guard off {} damping off {}", row.is_guard_off, row.is_damping_off)
        }
    }]
}

/// What a script asks the registry.
pub(crate) fn ask(store: &Store, name: &str, words: &mut Words) -> Parsed<Option<Vec<String>>> {
    let rows = &store.rows;
    Ok(Some(match name {
        "instances" => {
            let service = bytes(&words.next()?);
            let (key, range_end) = span(&service);
            let range = Range { key, range_end, ..Range::default() };
            let kvs = store.range(&range).map_err(|rejection| rejection.to_string())?.kvs;
            View::load(service, kvs).all().map(|shown| shown_line(shown)).collect()
        }
        "services" => {
            let services = index::services(rows, b"", b"", 100).expect(NO_FAILURE);
            let line = |(name, row): &(bytes::Bytes, index::ServiceRow)| {
                format!("{} live={} lost={}", print::text(name), row.live, row.lost)
            };
            services.iter().map(line).collect()
        }
        "index" => {
            let (checks, _) = index::checks(rows, b"", 100).expect(NO_FAILURE);
            let (due, _) = index::due(rows, b"", 100).expect(NO_FAILURE);
            let (flapping, _) = index::flapping(rows, b"", 100).expect(NO_FAILURE);
            let checks: Vec<_> = checks.iter().map(|entry| entry.id.as_str()).collect();
            let due: Vec<_> =
                due.iter().map(|(entry, dues)| format!("{} {dues:?}", entry.id)).collect();
            let penalties: Vec<_> = flapping
                .iter()
                .map(|(entry, flaps)| format!("{}={}", entry.id, flaps.penalty))
                .collect();
            vec![
                format!("checks [{}]", checks.join(" ")),
                format!("due [{}]", due.join("; ")),
                format!("penalties [{}]", penalties.join(" ")),
            ]
        }
        "removal" => {
            let service = bytes(&words.next()?);
            let cause = registry::removal(rows, &service, &words.next()?).expect(NO_FAILURE);
            vec![format!("{cause:?}")]
        }
        "causes" => {
            let causes = history::causes(rows, words.number()?, b"").expect(NO_FAILURE);
            causes.iter().map(|(key, cause)| format!("{} {cause:?}", print::text(key))).collect()
        }
        "instance_rows" => {
            let mut count = 0_usize;
            rows.scan(Table::Instance, &[], None, &mut |_, _| {
                count += 1;
                Ok(ControlFlow::Continue(()))
            })
            .expect(NO_FAILURE);
            vec![format!("{count} rows")]
        }
        _ => return Ok(None),
    }))
}

fn shown_line(shown: &Shown) -> String {
    let Shown { record, fence, mod_revision, session, .. } = shown;
    let mut line = format!(
        "{} {} {:?} {:?} fence={fence} mod={mod_revision} session={session}",
        record.id,
        record.address,
        record.state_shown(),
        record.health_shown(),
    );
    for (holds, word) in [
        (record.is_healthy(), " healthy"),
        (record.is_stale(), " stale"),
        (record.details.is_damped, " damped"),
    ] {
        if holds {
            line.push_str(word);
        }
    }
    line
}
