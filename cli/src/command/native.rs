//! `conclave lock`: exclusive, shared and counted locks; lists, inspects and breaks them.

use std::time::{Duration, SystemTime};

use conclave_client::{Error, LockGuard, Loss, Session, v1::SessionTag};
use humantime::format_rfc3339_seconds;
use serde_json::{Value, json};

use super::{Context, child::Child, lock::Arguments};
use crate::{
    failure::{Failure, describe},
    output::{Rows, complain, write},
    stop::Stop,
};

/// The last moment whose year has four digits.
const YEAR_9999_MS: u64 = 253_402_300_799_000;

/// Runs `lock`: holds a lock, or lists, inspects or breaks locks. A lock named like one of these
/// words can only be held under the program name `etcdctl`.
pub(super) async fn run(context: &Context, arguments: Arguments) -> Result<(), Failure> {
    let words: Vec<&str> = arguments.words.iter().map(String::as_str).collect();
    let (takes, breaks) = (arguments.has_take_flags(), arguments.has_break_flags());
    match words.as_slice() {
        ["ls"] if !takes && !breaks => list(context, "").await,
        ["ls", prefix] if !takes && !breaks => list(context, prefix).await,
        ["inspect", name] if !takes && !breaks => inspect(context, name).await,
        ["break", name] if !takes => seize(context, name, &arguments).await,
        ["ls" | "inspect" | "break", ..] => Err(Failure::bad_arguments(
            "lock ls [PREFIX], lock inspect NAME, or lock break NAME --yes [--token] [--reason]",
        )),
        _ if breaks => {
            Err(Failure::bad_arguments("--yes, --token and --reason are for `lock break` only"))
        }
        _ => {
            let mut session = None;
            let done = hold(context, arguments, &mut session).await;
            close_unless_lost(context, session).await;
            done
        }
    }
}

/// Waits for the session that was begun for a lock or an election to end in the background. A lost
/// session is not waited for: it was lost because no server answers.
pub(super) async fn close_unless_lost(context: &Context, session: Option<Session>) {
    let is_lost = session.is_some_and(|session| session.is_lost());
    if !is_lost {
        context.client.close().await;
    }
}

/// Takes the lock and keeps it while a command runs, or until a signal comes. Stores the session it
/// used in `session`.
async fn hold(
    context: &Context,
    arguments: Arguments,
    session: &mut Option<Session>,
) -> Result<(), Failure> {
    let (name, command) = arguments.name_and_command()?;
    let mut stop = Stop::listen().map_err(|error| Failure::error(error.to_string()))?;
    let mut acquire = context.client.lock(name).ttl(arguments.ttl);
    if arguments.shared {
        acquire = acquire.shared();
    }
    if let Some(permits) = arguments.permits {
        let (permits, limit) = arguments.limit.map_or((1, permits), |limit| (permits, limit));
        acquire = acquire.permits(permits, limit);
    }
    if let Some(wait) = arguments.wait.or_else(|| arguments.r#try.then_some(Duration::ZERO)) {
        acquire = acquire.wait(wait);
    }
    let guard = tokio::select! {
        guard = acquire => guard.map_err(|error| not_held(name, error))?,
        () = stop.requested() => return Err(Failure::stopped(&format!("{name} was held"))),
    };
    *session = guard.session().cloned();
    let done = match Child::new(command) {
        Some(mut child) => {
            let key = guard.locks().first().map(|lock| lock.key.clone()).unwrap_or_default();
            child.env(&[
                ("ETCD_LOCK_KEY", String::from_utf8_lossy(&key).into_owned()),
                ("ETCD_LOCK_REV", guard.token().to_string()),
                ("FENCING_TOKEN", guard.token().to_string()),
            ]);
            child.run_while((&guard.lost(), guard.jeopardy()), &mut stop).await
        }
        None => wait(name, &guard, &mut stop).await,
    };
    if let Some(loss) = guard.loss().filter(|loss| !command.is_empty() && *loss != Loss::Session) {
        complain(&format!("{name} is lost: {loss}"));
    }
    match guard.release().await {
        // Whether the loss matters, `done` says.
        Ok(()) | Err(Error::Lost { .. }) => done,
        Err(error) => not_given_back(done, (name, arguments.ttl), &error, !command.is_empty()),
    }
}

/// Reports that the lock was not released, and why, for example because the user's password has
/// changed. A command's own failure takes precedence.
pub(super) fn not_given_back(
    done: Result<(), Failure>,
    (name, ttl): (&str, Duration),
    error: &Error,
    has_command: bool,
) -> Result<(), Failure> {
    let ttl = humantime::format_duration(ttl);
    let why = describe(error);
    let text = format!("{name} was not given back, and may be held for {ttl} more: {why}");
    if has_command {
        complain(&text);
        return done;
    }
    done.and(Err(Failure::error(text)))
}

fn not_held(name: &str, error: Error) -> Failure {
    match error {
        Error::Busy => Failure::error(format!(
            "{name} is held by others: `conclave lock inspect {name}` tells by whom"
        )),
        other => other.into(),
    }
}

async fn wait(name: &str, guard: &LockGuard, stop: &mut Stop) -> Result<(), Failure> {
    write(format!("{name} is held, token {}\n", guard.token()).as_bytes())?;
    let lost = guard.lost();
    tokio::select! {
        () = lost.cancelled() => {
            let why = guard.loss().filter(|loss| *loss != Loss::Session);
            let why = why.map_or("its session expired".to_owned(), |loss| loss.to_string());
            Err(Failure::error(format!("{name} is lost: {why}")))
        }
        () = stop.requested() => Ok(()),
    }
}

fn shown(bytes: &[u8]) -> Value {
    json!(String::from_utf8_lossy(bytes))
}

async fn list(context: &Context, prefix: &str) -> Result<(), Failure> {
    let locks = context.client.locks(prefix).await?;
    let rows = locks.iter().map(|lock| {
        vec![shown(&lock.name), json!(lock.holders), json!(lock.waiters), json!(lock.fence)]
    });
    for lock in locks.iter().filter(|lock| lock.more) {
        let name = String::from_utf8_lossy(&lock.name);
        complain(&format!("{name}: more wait than are counted"));
    }
    let titles = &["name", "holders", "waiters", "token"];
    context.print(&Rows { titles, rows: rows.collect() })
}

async fn inspect(context: &Context, name: &str) -> Result<(), Failure> {
    let found = context.client.lock_inspect(name).await?;
    let rows = found.places.iter().map(|place| {
        let state = match (place.delayed, place.held) {
            (true, _) => "is lost, its delay passes",
            (false, true) => "holds",
            (false, false) => "waits",
        };
        let share = match (place.permits, place.limit) {
            (1, 1) => "exclusive".to_owned(),
            (1, u32::MAX) => "shared".to_owned(),
            (permits, limit) => format!("{permits} of {limit}"),
        };
        vec![
            json!(state),
            json!(share),
            json!(place.fence),
            json!(format!("{:016x}", place.session)),
            json!(place.remaining_ms),
            json!(moment(place.asked_unix_ms)),
            json!(moment(place.held_since_unix_ms)),
            json!(place.owner),
            tags(&place.metadata),
            // The values of etcd's recipes are not meant for people.
            if place.foreign { json!("etcd") } else { shown(&place.note) },
        ]
    });
    let titles = &[
        "state",
        "share",
        "token",
        "session",
        "remaining ms",
        "asked",
        "since",
        "owner",
        "metadata",
        "note",
    ];
    context.print(&Rows { titles, rows: rows.collect() })?;
    if found.more {
        complain("more wait than are shown");
    }
    Ok(())
}

/// The metadata of a session.
fn tags(metadata: &[SessionTag]) -> Value {
    let tags = metadata.iter().map(|tag| format!("{}={}", tag.name, tag.value));
    json!(tags.collect::<Vec<_>>().join(" "))
}

/// A moment in milliseconds since 1970 as text; empty for 0 and for dates beyond any clock.
fn moment(unix_ms: i64) -> String {
    let ms = u64::try_from(unix_ms).ok().filter(|ms| (1..=YEAR_9999_MS).contains(ms));
    ms.map_or_else(String::new, |ms| {
        format_rfc3339_seconds(SystemTime::UNIX_EPOCH + Duration::from_millis(ms)).to_string()
    })
}

async fn seize(context: &Context, name: &str, arguments: &Arguments) -> Result<(), Failure> {
    if !arguments.yes {
        let message = "lock break takes the lock away from who holds it: say so with --yes";
        return Err(Failure::bad_arguments(message));
    }
    let reason = arguments.reason.clone();
    let broken = context.client.lock_break(name, arguments.token, reason).await?;
    if broken.is_empty() {
        let place = match arguments.token {
            0 => String::new(),
            token => format!(" with the token {token}"),
        };
        return Err(Failure::error(format!("nobody holds {name}{place}")));
    }
    let rows = broken.iter().map(|lock| vec![shown(&lock.name), json!(lock.fence)]).collect();
    context.print(&Rows { titles: &["name", "token"], rows })
}

/// Prints all sessions.
pub(super) async fn sessions(context: &Context) -> Result<(), Failure> {
    let sessions = context.client.sessions().await?;
    let rows = sessions.iter().map(|session| {
        vec![
            json!(format!("{:016x}", session.id)),
            json!(session.ttl_seconds),
            json!(session.remaining_ms),
            json!(session.owner),
            tags(&session.metadata),
            json!(session.keys.len()),
        ]
    });
    let titles = &["session", "ttl", "remaining ms", "owner", "metadata", "keys"];
    context.print(&Rows { titles, rows: rows.collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_told_if_they_are_known() {
        assert_eq!(moment(1_700_000_000_999), "2023-11-14T22:13:20Z");
        for unknown in [0, -1, i64::MIN, i64::MAX] {
            assert_eq!(moment(unknown), "");
        }
    }
}
