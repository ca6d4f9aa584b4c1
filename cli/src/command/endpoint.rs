//! `endpoint` and `defrag`: verbs that ask each server by itself.

use std::time::Instant;

use clap::{Args, Subcommand};
use conclave_client::{Client, Error};
use futures::future::join_all;

use super::Context;
use crate::{
    failure::{Failure, describe},
    output::{Hash, Hashes, Health, Healths, Statuses, complain, write},
};

/// Flags of `endpoint`.
#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub(crate) struct Arguments {
    /// Ask all members of the cluster instead of the endpoints given.
    #[arg(long, global = true)]
    cluster: bool,
    #[command(subcommand)]
    verb: Verb,
}

/// What to ask the servers.
#[derive(Debug, Subcommand)]
enum Verb {
    /// Check whether the servers are healthy.
    Health,
    /// Print version, size, leader and log positions of the servers.
    Status,
    /// Print a hash of keys and history: equal on all servers at the same revision.
    Hashkv {
        /// The revision up to which to hash; 0 for all.
        #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
        rev: i64,
    },
}

/// Flags of `defrag`.
#[derive(Debug, Args)]
pub(crate) struct DefragArguments {
    /// Defragment all members of the cluster instead of the endpoints given.
    #[arg(long)]
    cluster: bool,
}

pub(super) async fn run(context: &Context, arguments: Arguments) -> Result<(), Failure> {
    let clients = clients(context, arguments.cluster).await?;
    match arguments.verb {
        Verb::Health => health(context, &clients).await,
        Verb::Status => status(context, &clients).await,
        Verb::Hashkv { rev } => hash(context, &clients, rev).await,
    }
}

/// Each endpoint with a client of its own.
async fn clients(context: &Context, is_cluster: bool) -> Result<Vec<(String, Client)>, Failure> {
    let client = if is_cluster {
        let members = context.client.members().await.map_err(|error| {
            Failure::about("failed to fetch endpoints from etcd cluster member list", error)
        })?;
        let urls: Vec<String> =
            members.members.iter().flat_map(|member| member.client_ur_ls.iter().cloned()).collect();
        context.global.client(&urls)?
    } else {
        context.client.clone()
    };
    Ok(client.endpoints().into_iter().zip(client.each()).collect())
}

async fn health(context: &Context, clients: &[(String, Client)]) -> Result<(), Failure> {
    let probe = async |(endpoint, client): &(String, Client)| {
        let start = Instant::now();
        let answer = match client.ready().await {
            Ok(()) => alarms(client).await,
            Err(error) => Err(error),
        };
        let took = start.elapsed();
        let error = answer.unwrap_or_else(|error| describe(&error));
        Health { endpoint: endpoint.clone(), took, error }
    };
    let healths = Healths(join_all(clients.iter().map(probe)).await);
    let is_healthy = healths.0.iter().all(|health| health.error.is_empty());
    context.print(&healths)?;
    if is_healthy { Ok(()) } else { Err(Failure::error("unhealthy cluster")) }
}

/// The alarms that make an endpoint unhealthy; empty if there are none.
async fn alarms(client: &Client) -> Result<String, Error> {
    let reply = match client.alarms().await {
        // A reader without the right to see alarms has still shown that the server serves.
        Err(error) if error.is_permission_denied() => return Ok(String::new()),
        reply => reply?,
    };
    if reply.alarms.is_empty() {
        return Ok(String::new());
    }
    let names: Vec<&str> = reply.alarms.iter().map(|alarm| alarm.alarm().as_str_name()).collect();
    Ok(format!("Active Alarm(s): {} ", names.join(", ")))
}

async fn status(context: &Context, clients: &[(String, Client)]) -> Result<(), Failure> {
    let answers = join_all(clients.iter().map(|(_, client)| client.status())).await;
    let mut statuses = Vec::new();
    let mut failed = false;
    for ((endpoint, _), answer) in clients.iter().zip(answers) {
        match answer {
            Ok(status) => statuses.push((endpoint.clone(), status.into_inner())),
            Err(error) => {
                failed = true;
                let error = describe(&error);
                complain(&format!("Failed to get the status of endpoint {endpoint} ({error})"));
            }
        }
    }
    context.print(&Statuses(statuses))?;
    if failed { Err(Failure::reported()) } else { Ok(()) }
}

async fn hash(
    context: &Context,
    clients: &[(String, Client)],
    revision: i64,
) -> Result<(), Failure> {
    let answers = join_all(clients.iter().map(|(_, client)| client.hash_kv(revision))).await;
    let mut hashes = Vec::new();
    let mut failure = None;
    for ((endpoint, _), answer) in clients.iter().zip(answers) {
        match answer {
            Ok(hash) => {
                hashes.push(Hash { endpoint: endpoint.clone(), response: hash.into_inner() });
            }
            Err(error) => {
                let text = describe(&error);
                complain(&format!("Failed to get the hash of endpoint {endpoint} ({text})"));
                failure = Some(Failure::from(error));
            }
        }
    }
    context.print(&Hashes(hashes))?;
    failure.map_or(Ok(()), Err)
}

pub(super) async fn defrag(context: &Context, arguments: DefragArguments) -> Result<(), Failure> {
    let mut failed = false;
    // One after the other: a cluster whose members are all busy at once does not serve.
    for (endpoint, client) in clients(context, arguments.cluster).await? {
        match client.defragment().await {
            Ok(()) => {
                let line = format!("Finished defragmenting etcd member[{endpoint}]\n");
                write(line.as_bytes())?;
            }
            Err(error) => {
                failed = true;
                let error = describe(&error);
                complain(&format!("Failed to defragment etcd member[{endpoint}] ({error})"));
            }
        }
    }
    if failed { Err(Failure::reported()) } else { Ok(()) }
}
