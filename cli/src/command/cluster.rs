//! `alarm` and `move-leader`.

use clap::{Args, Subcommand};
use conclave_client::Client;

use super::Context;
use crate::{
    failure::Failure,
    output::{Alarms, Transfer, parse_uint},
};

/// What to do with alarms.
#[derive(Debug, Subcommand)]
pub(crate) enum Alarm {
    /// Print the active alarms.
    List,
    /// Clear all alarms.
    Disarm,
}

/// Arguments of `move-leader`.
#[derive(Debug, Args)]
pub(crate) struct MoveLeaderArguments {
    /// The member to make the leader, in hexadecimal.
    #[arg(value_name = "MEMBER_ID")]
    target: Vec<String>,
    /// Move leadership from the leader among the endpoints to any other voter; does nothing if none
    /// of them leads. For a member that is about to be stopped.
    #[arg(long, conflicts_with = "target")]
    away: bool,
}

pub(super) async fn alarms(context: &Context) -> Result<(), Failure> {
    let reply = context.client.alarms().await?;
    context.print(&Alarms(reply.into_inner()))
}

pub(super) async fn disarm(context: &Context) -> Result<(), Failure> {
    context.print(&Alarms(context.client.disarm_alarms().await?))
}

pub(super) async fn move_leader(
    context: &Context,
    arguments: MoveLeaderArguments,
) -> Result<(), Failure> {
    if arguments.away {
        return move_away(context).await;
    }
    let [target] = arguments.target.as_slice() else {
        return Err(Failure::bad_arguments("move-leader command needs 1 argument"));
    };
    let target = parse_uint(target, 16).map_err(Failure::bad_arguments)?;
    let Some((leader, from)) = leader(context).await? else {
        let endpoints = context.client.endpoints().join(" ");
        return Err(Failure::bad_arguments(format!("no leader endpoint given at [{endpoints}]")));
    };
    leader.move_leader(target).await?;
    context.print(&Transfer { from, to: target })
}

/// The client of the leader's endpoint and the leader's id: only the leader can transfer
/// leadership.
async fn leader(context: &Context) -> Result<Option<(Client, u64)>, Failure> {
    for client in context.client.each() {
        let status = client.status().await?;
        let member = status.header.as_ref().map_or(0, |header| header.member_id);
        if member == status.leader {
            return Ok(Some((client, member)));
        }
    }
    Ok(None)
}

/// Transfers leadership to the first voter that accepts it.
async fn move_away(context: &Context) -> Result<(), Failure> {
    let Some((leader, from)) = leader(context).await? else { return Ok(()) };
    let members = leader.members().await?.into_inner().members;
    let others = members.iter().filter(|member| member.id != from && !member.is_learner);
    let mut refusal = None;
    for to in others.map(|member| member.id) {
        match leader.move_leader(to).await {
            Ok(()) => return context.print(&Transfer { from, to }),
            Err(error) => refusal = Some(error),
        }
    }
    // No other member could lead, so nothing is lost by stopping the only voter.
    refusal.map_or(Ok(()), |error| Err(error.into()))
}
