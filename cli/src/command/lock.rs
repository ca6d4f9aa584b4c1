//! `lock` as in etcdctl: holds a name, or runs a command while it is held.

use std::time::Duration;

use clap::Args;
use conclave_client::{
    Error,
    queue::{Enter, Turn},
};

use super::{Context, child::Child};
use crate::{failure::Failure, output::parse_int, stop::Stop};

/// The TTL that etcdctl uses instead of one that is not above 0.
const TTL_SECONDS: u64 = 60;

/// Flags and arguments of `lock`; etcdctl has the time to live only.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The name, and a command to run while it is held; or `ls [PREFIX]`, `inspect NAME`, `break NAME`.
    #[arg(value_name = "NAME [-- COMMAND ARGUMENT...]")]
    pub(super) words: Vec<String>,
    /// Seconds that the lock outlives this process if it ends without releasing it.
    #[arg(long, default_value = "10", allow_hyphen_values = true, value_parser = seconds)]
    pub(super) ttl: Duration,
    /// Take a shared (read) lock: many may hold it together.
    #[arg(long, conflicts_with = "permits")]
    pub(super) shared: bool,
    /// Take one of this many permits (a semaphore); with --limit: take this many of the limit.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) permits: Option<u32>,
    /// Total permits of the semaphore.
    #[arg(long, requires = "permits", value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) limit: Option<u32>,
    /// Fail at once if the lock is not free.
    #[arg(long, conflicts_with = "wait")]
    pub(super) r#try: bool,
    /// Wait for at most this long.
    #[arg(long, value_parser = conclave_server::config::duration)]
    pub(super) wait: Option<Duration>,
    /// Confirm `break`.
    #[arg(long)]
    pub(super) yes: bool,
    /// With `break`: the fencing token of the one holder to remove; 0 for all.
    #[arg(long, default_value_t = 0)]
    pub(super) token: i64,
    /// With `break`: the reason, logged by the server and shown to the holder.
    #[arg(long, default_value = "")]
    pub(super) reason: String,
}

impl Arguments {
    /// # Errors
    /// As etcdctl, if there is no name.
    pub(super) fn name_and_command(&self) -> Result<(&str, &[String]), Failure> {
        let [name, command @ ..] = self.words.as_slice() else {
            let usage = "lock takes a lock name argument and an optional command to execute";
            return Err(Failure::bad_arguments(usage));
        };
        Ok((name, command))
    }

    /// Whether a flag is given that applies only to taking a lock.
    pub(super) fn has_take_flags(&self) -> bool {
        self.shared || self.permits.is_some() || self.r#try || self.wait.is_some()
    }

    /// Whether a flag is given that applies only to breaking a lock.
    pub(super) fn has_break_flags(&self) -> bool {
        self.yes || self.token != 0 || !self.reason.is_empty()
    }
}

/// Parses a number of seconds as etcdctl does.
pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = parse_int(text, 10).map_err(|error| error.to_string())?;
    let seconds = u64::try_from(seconds).ok().filter(|seconds| *seconds > 0);
    Ok(Duration::from_secs(seconds.unwrap_or(TTL_SECONDS)))
}

/// Runs the verb as etcdctl does.
pub(super) async fn run(context: &Context, arguments: Arguments) -> Result<(), Failure> {
    let (name, command) = arguments.name_and_command()?;
    if arguments.has_take_flags() || arguments.has_break_flags() {
        return Err(Failure::bad_arguments("etcdctl has no such flag: use `conclave lock`"));
    }
    let mut stop = Stop::listen().map_err(|error| Failure::error(error.to_string()))?;
    let enter = context.client.queue(name).ttl(arguments.ttl);
    let turn = taken(context, enter, &mut stop).await?;
    let done = match Child::new(command) {
        Some(mut child) => {
            child.env(&[
                ("ETCD_LOCK_KEY", String::from_utf8_lossy(turn.key()).into_owned()),
                ("ETCD_LOCK_REV", turn.revision().to_string()),
            ]);
            child.run().await
        }
        None => hold(context, &turn, "session expired", &mut stop).await,
    };
    // The command's own failure says more than a failed release.
    done.and(give_back(turn).await)
}

/// Releases the lock. A lease that has ended holds nothing either; whether that matters is known to
/// the caller that used the lock.
pub(super) async fn give_back(turn: Turn) -> Result<(), Failure> {
    match turn.release().await {
        Ok(()) | Err(Error::Lost { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Waits for the turn; a signal ends the wait and withdraws the request.
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

/// Prints the key and holds the lock until a signal comes.
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
