//! `elect`: campaigns in an election, or observes it.

use std::time::Duration;

use clap::Args;
use conclave_client::{
    Error, Loss,
    election::{Campaign, Leader},
    pb::RangeResponse,
};

use super::{Context, child::Child, lock, native, tell_connection};
use crate::{arguments::Flavor, failure::Failure, output::complain, stop::Stop};

/// How long leadership outlives its last renewal, as with etcdctl.
const TTL: Duration = Duration::from_secs(60);

/// Flags and arguments of `elect`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The election, and the value that the candidate proclaims.
    #[arg(value_name = "NAME [PROPOSAL]")]
    words: Vec<String>,
    /// A command to run only while this process leads (not for etcdctl).
    #[arg(last = true, value_name = "COMMAND ARGUMENT...")]
    command: Vec<String>,
    /// Do not campaign: print the leader, and each new one.
    #[arg(short, long)]
    listen: bool,
    /// Seconds that the leadership outlives this process if it ends without resigning (not for etcdctl) [default: 60].
    #[arg(long, allow_hyphen_values = true, value_parser = lock::seconds, conflicts_with = "listen")]
    ttl: Option<Duration>,
}

pub(super) async fn run(context: &Context, mut arguments: Arguments) -> Result<(), Failure> {
    if context.flavor == Flavor::Etcdctl {
        if arguments.ttl.is_some() {
            return Err(Failure::bad_arguments("etcdctl has no such flag: use `conclave elect`"));
        }
        arguments.words.append(&mut arguments.command);
    }
    let mut stop = Stop::listen().map_err(|error| Failure::error(error.to_string()))?;
    let has_command = !arguments.command.is_empty();
    match (arguments.words.as_slice(), arguments.listen) {
        ([_, _], true) => Err(Failure::bad_arguments("proposal given but -l is set")),
        ([_], true) if has_command => Err(Failure::bad_arguments("command given but -l is set")),
        ([name], true) => listen(context, name, &mut stop).await,
        ([name, proposal], false) => {
            campaign(context, (name, proposal), &arguments, &mut stop).await
        }
        ([name], false) if has_command => {
            campaign(context, (name, ""), &arguments, &mut stop).await
        }
        ([_], false) => Err(Failure::bad_arguments("no proposal argument but -l not set")),
        _ => Err(Failure::bad_arguments(
            "elect takes one election name argument and an optional proposal argument",
        )),
    }
}

async fn campaign(
    context: &Context,
    (name, proposal): (&str, &str),
    arguments: &Arguments,
    stop: &mut Stop,
) -> Result<(), Failure> {
    let command = &arguments.command;
    if context.flavor == Flavor::Conclave {
        let ttl = arguments.ttl.unwrap_or(TTL);
        let election = context.client.election(name).ttl(ttl);
        return lead(context, election.campaign(proposal), (name, command, ttl), stop).await;
    }
    let enter = context.client.queue(name).ttl(TTL).value(proposal);
    let turn = lock::taken(context, enter, stop).await?;
    let done = match Child::new(command) {
        Some(mut child) => {
            child.env(&[("FENCING_TOKEN", turn.token().to_string())]);
            child.run_while((&turn.lost(), turn.lease().jeopardy()), stop).await
        }
        None => lock::hold(context, &turn, "elect: session expired", stop).await,
    };
    lock::give_back(turn).await?;
    done
}

/// Leads by the native API, or by etcd's recipe where the server lacks it.
async fn lead(
    context: &Context,
    campaign: Campaign,
    (name, command, ttl): (&str, &[String], Duration),
    stop: &mut Stop,
) -> Result<(), Failure> {
    let leadership = tokio::select! {
        leadership = campaign => leadership?,
        () = stop.requested() => {
            context.client.close().await;
            return Err(Failure::stopped(&format!("{name} was led")));
        }
    };
    let lost = leadership.lost();
    let done = match Child::new(command) {
        Some(mut child) => {
            child.env(&[("FENCING_TOKEN", leadership.token().to_string())]);
            child.run_while((&lost, leadership.jeopardy()), stop).await
        }
        None => {
            let reply = context.client.get(leadership.key().to_vec()).await?;
            context.print(&*reply)?;
            tokio::select! {
                () = lost.cancelled() => Err(Failure::error("elect: leadership lost")),
                () = stop.requested() => Ok(()),
            }
        }
    };
    if let Some(loss) = leadership.loss().filter(|loss| *loss != Loss::Session) {
        complain(&format!("{name} is led no more: {loss}"));
    }
    let session = leadership.session().cloned();
    let resigned = leadership.resign().await;
    native::close_unless_lost(context, session).await;
    match resigned {
        // `done` already reflects a loss if it matters.
        Ok(()) | Err(Error::Lost { .. } | Error::NotFound(_)) => done,
        Err(error) => native::not_given_back(done, (name, ttl), &error, !command.is_empty()),
    }
}

async fn listen(context: &Context, name: &str, stop: &mut Stop) -> Result<(), Failure> {
    let mut leaders = context.client.election(name).observe();
    let mut connection = leaders.connection();
    let is_etcdctl = context.flavor == Flavor::Etcdctl;
    loop {
        let leader = tokio::select! {
            leader = leaders.leader() => leader?,
            trouble = connection.changed(), if !is_etcdctl => {
                tell_connection(trouble.as_deref());
                continue;
            }
            () = stop.requested() => return Ok(()),
        };
        let Some(Leader { kv, header }) = leader else {
            return Err(Failure::error("elect: observer lost"));
        };
        let header = Some(header);
        context.print(&RangeResponse { header, kvs: vec![kv], ..RangeResponse::default() })?;
    }
}
