//! `barrier` and `group`: waiting for each other, and group membership.

use std::time::Duration;

use clap::Subcommand;
use conclave_client::{Error, wait::Wait};
use serde_json::{Value, json};

use super::{Context, child::Child, native, tell_connection};
use crate::{
    failure::Failure,
    output::{Rows, write},
    stop::Stop,
};

/// What to do with barriers.
#[derive(Debug, Subcommand)]
pub(crate) enum Barrier {
    /// Raise a barrier; it stays until it is lifted.
    Raise {
        /// Its name, which is its key.
        name: String,
    },
    /// Lift a barrier and release all waiters.
    Lift {
        /// Its name.
        name: String,
    },
    /// Wait until a barrier is lifted.
    Wait {
        /// Its name.
        name: String,
        /// Wait for at most this long.
        #[arg(long, value_parser = conclave_server::config::duration)]
        wait: Option<Duration>,
    },
    /// Run a command once all participants have entered; exit when all are done.
    Enter {
        /// Name of the double barrier.
        name: String,
        /// Number of participants.
        #[arg(long)]
        count: u32,
        /// Wait for the others for at most this long, at the beginning and at the end.
        #[arg(long, value_parser = conclave_server::config::duration)]
        wait: Option<Duration>,
        /// The command to run.
        #[arg(last = true, required = true, value_name = "COMMAND ARGUMENT...")]
        command: Vec<String>,
    },
}

/// What to do with groups.
#[derive(Debug, Subcommand)]
pub(crate) enum Group {
    /// Print the members.
    Ls {
        /// Name of the group.
        name: String,
    },
    /// Print the number of members whenever it changes.
    Watch {
        /// Name of the group.
        name: String,
    },
    /// Be a member while a command runs, or until a signal comes.
    Join {
        /// Name of the group.
        name: String,
        /// Value that other members see.
        #[arg(default_value = "")]
        value: String,
        /// Id of the member; a random one if not given.
        #[arg(long)]
        member: Option<String>,
        /// The command to run.
        #[arg(last = true, value_name = "COMMAND ARGUMENT...")]
        command: Vec<String>,
    },
}

pub(super) async fn barrier(context: &Context, verb: Barrier) -> Result<(), Failure> {
    let of = |name: String| context.client.barrier(name);
    match verb {
        Barrier::Raise { name } => {
            let raised = of(name).raise().await?;
            let rows = vec![vec![json!(raised.is_new), json!(raised.fence)]];
            context.print(&Rows { titles: &["new", "token"], rows })
        }
        Barrier::Lift { name } => {
            let lifted = of(name).lift().await?;
            context.print(&Rows { titles: &["lifted"], rows: vec![vec![json!(lifted)]] })
        }
        Barrier::Wait { name, wait } => {
            let what = format!("the barrier {name} was not lifted");
            self::wait(of(name).wait(), wait, &what).await
        }
        Barrier::Enter { name, count, wait, command } => {
            let done = enter(context, (name, count), wait, &command).await;
            // Leaving the barrier and ending its session happen in the background.
            context.client.close().await;
            done
        }
    }
}

/// Waits until the wait is over or a signal comes; `in_vain` says what did not happen in time.
pub(super) async fn wait(
    wait: Wait,
    at_most: Option<Duration>,
    in_vain: &str,
) -> Result<(), Failure> {
    let mut stop = Stop::listen().map_err(|error| Failure::error(error.to_string()))?;
    let wait = match at_most {
        Some(at_most) => wait.at_most(at_most),
        None => wait,
    };
    tokio::select! {
        waited = wait => match waited {
            Ok(_revision) => Ok(()),
            Err(error) => Err(Failure::awaited(in_vain, at_most, error)),
        },
        () = stop.requested() => Err(Failure::stopped("the end of the wait")),
    }
}

async fn enter(
    context: &Context,
    (name, count): (String, u32),
    wait: Option<Duration>,
    command: &[String],
) -> Result<(), Failure> {
    let mut stop = Stop::listen().map_err(|error| Failure::error(error.to_string()))?;
    let session = context.client.session().await?;
    let in_vain = |what: &str| {
        let what = format!("not all {count} participants {what} {name}");
        move |error| Failure::awaited(&what, wait, error)
    };
    let mut enter = session.double_barrier(name.clone(), count);
    if let Some(wait) = wait {
        enter = enter.wait(wait);
    }
    let inside = tokio::select! {
        inside = enter => inside.map_err(in_vain("entered"))?,
        () = stop.requested() => return Err(Failure::stopped(&format!("{name} was entered"))),
    };
    if let Some(child) = Child::new(command) {
        child.run_while((&inside.lost(), session.jeopardy()), &mut stop).await?;
    }
    let leave = inside.leave();
    let leave = match wait {
        Some(wait) => leave.at_most(wait),
        None => leave,
    };
    tokio::select! {
        left = leave => left.map_err(in_vain("left")),
        () = stop.requested() => Err(Failure::stopped(&format!("all had left {name}"))),
    }
}

pub(super) async fn group(context: &Context, verb: Group) -> Result<(), Failure> {
    match verb {
        Group::Ls { name } => list(context, name).await,
        Group::Watch { name } => watch(context, name).await,
        Group::Join { name, value, member, command } => {
            let done = join(context, (name, value, member), &command).await;
            context.client.close().await;
            done
        }
    }
}

fn shown(bytes: &[u8]) -> Value {
    json!(String::from_utf8_lossy(bytes))
}

async fn list(context: &Context, name: String) -> Result<(), Failure> {
    let members = context.client.group(name).members().await?;
    let rows = members.iter().map(|member| {
        let session = json!(format!("{:016x}", member.session));
        vec![shown(&member.member), shown(&member.value), session, json!(member.owner)]
    });
    context.print(&Rows { titles: &["member", "value", "session", "owner"], rows: rows.collect() })
}

async fn watch(context: &Context, name: String) -> Result<(), Failure> {
    let mut stop = Stop::listen().map_err(|error| Failure::error(error.to_string()))?;
    let mut followed = context.client.group(name).follow();
    let mut connection = followed.connection();
    loop {
        let members = tokio::select! {
            members = followed.next() => members?,
            trouble = connection.changed() => {
                tell_connection(trouble.as_deref());
                continue;
            }
            () = stop.requested() => return Ok(()),
        };
        let Some(members) = members else {
            return Err(Failure::interrupted("the watch ended"));
        };
        let names = members.iter().map(|member| shown(&member.id));
        let rows = vec![vec![json!(members.len()), json!(names.collect::<Vec<_>>())]];
        context.print(&Rows { titles: &["members", "ids"], rows })?;
    }
}

async fn join(
    context: &Context,
    (name, value, member): (String, String, Option<String>),
    command: &[String],
) -> Result<(), Failure> {
    let mut stop = Stop::listen().map_err(|error| Failure::error(error.to_string()))?;
    let session = context.client.session().await?;
    let mut join = session.group(name.as_str()).join(value);
    if let Some(member) = member {
        join = join.member(member);
    }
    let membership = join.await?;
    let lost = membership.lost();
    let done = match Child::new(command) {
        Some(child) => child.run_while((&lost, session.jeopardy()), &mut stop).await,
        None => {
            let member = String::from_utf8_lossy(membership.member());
            write(format!("{member} is a member\n").as_bytes())?;
            tokio::select! {
                () = lost.cancelled() => {
                    Err(Failure::error("the membership is lost: its session expired"))
                }
                () = stop.requested() => Ok(()),
            }
        }
    };
    match membership.leave().await {
        // Whether the loss matters, `done` says.
        Ok(()) | Err(Error::Lost { .. } | Error::NotFound(_)) => done,
        Err(error) => {
            let held = (name.as_str(), session.ttl());
            native::not_given_back(done, held, &error, !command.is_empty())
        }
    }
}
