//! `alarm` and `move-leader`.

use clap::{Args, Subcommand};

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
    /// End all alarms.
    Disarm,
}

/// Arguments of `move-leader`.
#[derive(Debug, Args)]
pub(crate) struct MoveLeaderArguments {
    /// The member that shall lead, in hexadecimal.
    #[arg(value_name = "MEMBER_ID")]
    target: Vec<String>,
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
    let [target] = arguments.target.as_slice() else {
        return Err(Failure::bad_arguments("move-leader command needs 1 argument"));
    };
    let target = parse_uint(target, 16).map_err(Failure::bad_arguments)?;
    // Only the leader takes the request: find it among the endpoints.
    for client in context.client.each() {
        let status = client.status().await?;
        let member = status.header.as_ref().map_or(0, |header| header.member_id);
        if member == status.leader {
            client.move_leader(target).await?;
            return context.print(&Transfer { from: member, to: target });
        }
    }
    let endpoints = context.client.endpoints().join(" ");
    Err(Failure::bad_arguments(format!("no leader endpoint given at [{endpoints}]")))
}
