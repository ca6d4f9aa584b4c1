//! `lock`: hold a name, or run a command while it is held.

use std::time::Duration;

use clap::Args;
use conclave_client::{
    Error,
    queue::{Enter, Turn},
};

use super::{Context, child::Child};
use crate::{arguments::Flavor, failure::Failure, output::parse_int, stop::Stop};

/// The TTL that etcdctl takes for one that is not above 0.
const TTL_SECONDS: u64 = 60;

/// Flags and arguments of `lock` as etcdctl has them.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The name, and a command to run while it is held.
    #[arg(value_name = "NAME [-- COMMAND ARGUMENT...]")]
    words: Vec<String>,
    /// Seconds that the lock outlives this process if it ends without releasing it.
    #[arg(long, default_value = "10", allow_hyphen_values = true, value_parser = seconds)]
    ttl: Duration,
    /// Do not wait (not for etcdctl).
    #[arg(long, conflicts_with = "wait")]
    r#try: bool,
    /// Wait for at most this long (not for etcdctl).
    #[arg(long, value_parser = humantime::parse_duration)]
    wait: Option<Duration>,
}

/// A number of seconds as etcdctl takes it.
fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = parse_int(text, 10).map_err(|error| error.to_string())?;
    let seconds = u64::try_from(seconds).ok().filter(|seconds| *seconds > 0);
    Ok(Duration::from_secs(seconds.unwrap_or(TTL_SECONDS)))
}

pub(super) async fn run(context: &Context, arguments: Arguments) -> Result<(), Failure> {
    let [name, command @ ..] = arguments.words.as_slice() else {
        let usage = "lock takes a lock name argument and an optional command to execute";
        return Err(Failure::bad_arguments(usage));
    };
    let mut stop = Stop::listen().map_err(|error| Failure::error(error.to_string()))?;
    let mut enter = context.client.queue(name.as_str()).ttl(arguments.ttl);
    if let Some(wait) = arguments.wait.or_else(|| arguments.r#try.then_some(Duration::ZERO)) {
        enter = enter.wait(wait);
    }
    let turn = taken(context, enter, &mut stop).await?;
    let done = match Child::new(command) {
        Some(child) => run_child(context, &turn, child, &mut stop).await,
        None => hold(context, &turn, "session expired", &mut stop).await,
    };
    give_back(turn).await?;
    done
}

/// Releases what is held. A lease that has ended holds nothing either; whether that matters is known
/// to whoever waited for it.
pub(super) async fn give_back(turn: Turn) -> Result<(), Failure> {
    match turn.release().await {
        Ok(()) | Err(Error::Lost { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

async fn run_child(
    context: &Context,
    turn: &Turn,
    mut child: Child,
    stop: &mut Stop,
) -> Result<(), Failure> {
    child.env(&[
        ("ETCD_LOCK_KEY", String::from_utf8_lossy(turn.key()).into_owned()),
        ("ETCD_LOCK_REV", turn.revision().to_string()),
        ("FENCING_TOKEN", turn.token().to_string()),
    ]);
    match context.flavor {
        Flavor::Etcdctl => child.run().await,
        Flavor::Conclave => child.run_while(&turn.lost(), stop).await,
    }
}

/// Waits for the turn; a signal ends that and leaves nothing behind.
pub(super) async fn taken(
    context: &Context,
    enter: Enter,
    stop: &mut Stop,
) -> Result<Turn, Failure> {
    tokio::select! {
        turn = enter => Ok(turn?),
        () = stop.requested() => {
            context.client.close().await;
            Err(Failure::error("context canceled"))
        }
    }
}

/// Prints the key and holds it until a signal comes.
pub(super) async fn hold(
    context: &Context,
    turn: &Turn,
    expired: &str,
    stop: &mut Stop,
) -> Result<(), Failure> {
    let reply = context.client.get(turn.key().to_vec()).await?;
    context.print(&*reply)?;
    let lost = turn.lost();
    tokio::select! {
        () = lost.cancelled() => Err(Failure::error(expired)),
        () = stop.requested() => Ok(()),
    }
}
