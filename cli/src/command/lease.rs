//! `lease`.

use std::time::Duration;

use clap::{Args, Subcommand};
use tokio::time::sleep;

use super::Context;
use crate::{
    failure::Failure,
    output::{Granted, KeptAlive, Leases, Revoked, TimeToLive, parse_int, write},
};

/// Shortest pause between two renewals, whatever the TTL.
const RENEWAL_PAUSE_MIN: Duration = Duration::from_millis(500);

/// What to do with leases.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Create a lease.
    Grant {
        /// Time to live in seconds.
        #[arg(value_name = "TTL")]
        ttl: Vec<String>,
    },
    /// End a lease and delete its keys.
    Revoke {
        /// The lease, in hexadecimal.
        #[arg(value_name = "LEASE_ID")]
        id: Vec<String>,
    },
    /// Print the time a lease has left.
    Timetolive(TimeToLiveArguments),
    /// Print all leases.
    List,
    /// Keep renewing a lease.
    KeepAlive(KeepAliveArguments),
}

/// Flags and arguments of `lease timetolive`.
#[derive(Debug, Args)]
pub(crate) struct TimeToLiveArguments {
    /// The lease, in hexadecimal.
    #[arg(value_name = "LEASE_ID")]
    id: Vec<String>,
    /// Also print the keys attached to it.
    #[arg(long)]
    keys: bool,
}

/// Flags and arguments of `lease keep-alive`.
#[derive(Debug, Args)]
pub(crate) struct KeepAliveArguments {
    /// The lease, in hexadecimal.
    #[arg(value_name = "LEASE_ID")]
    id: Vec<String>,
    /// Renew once and exit.
    #[arg(long)]
    once: bool,
}

pub(super) async fn run(context: &Context, verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::Grant { ttl } => grant(context, &ttl).await,
        Verb::Revoke { id } => {
            let id = lease_id(&id, "lease revoke command needs 1 argument")?;
            let reply = context.client.lease_revoke(id).await;
            let reply = reply.map_err(|error| Failure::about("failed to revoke lease", error))?;
            context.print(&Revoked { id, response: reply.into_inner() })
        }
        Verb::Timetolive(TimeToLiveArguments { id, keys }) => {
            let id = lease_id(&id, "lease timetolive command needs lease ID as argument")?;
            let reply = context.client.lease_time_to_live(id, keys).await;
            let reply = reply.map_err(Failure::bad_connection)?;
            context.print(&TimeToLive { response: reply.into_inner(), keys })
        }
        Verb::List => {
            let reply = context.client.leases().await.map_err(Failure::bad_connection)?;
            context.print(&Leases(reply.into_inner()))
        }
        Verb::KeepAlive(KeepAliveArguments { id, once }) => {
            let id = lease_id(&id, "lease keep-alive command needs lease ID as argument")?;
            if once { keep_alive_once(context, id).await } else { keep_alive(context, id).await }
        }
    }
}

fn lease_id(arguments: &[String], usage: &str) -> Result<i64, Failure> {
    let [id] = arguments else { return Err(Failure::bad_arguments(usage)) };
    parse_int(id, 16).map_err(|error| {
        Failure::bad_arguments(format!("bad lease ID arg ({error}), expecting ID in Hex"))
    })
}

async fn grant(context: &Context, ttl: &[String]) -> Result<(), Failure> {
    let [ttl] = ttl else {
        return Err(Failure::bad_arguments("lease grant command needs TTL argument"));
    };
    let ttl =
        parse_int(ttl, 10).map_err(|error| Failure::bad_arguments(format!("bad TTL ({error})")))?;
    let reply = context.client.lease_grant(ttl, 0).await;
    let reply = reply.map_err(|error| Failure::about("failed to grant lease", error))?;
    context.print(&Granted(reply.into_inner()))
}

async fn keep_alive_once(context: &Context, id: i64) -> Result<(), Failure> {
    let reply = context.client.lease_keep_alive_once(id).await.map_err(Failure::bad_connection)?;
    if reply.ttl <= 0 {
        return Err(Failure::bad_status("etcdserver: requested lease not found"));
    }
    context.print(&KeptAlive(reply.into_inner()))
}

/// Renews until the lease is gone.
async fn keep_alive(context: &Context, id: i64) -> Result<(), Failure> {
    loop {
        let reply =
            context.client.lease_keep_alive_once(id).await.map_err(Failure::bad_connection)?;
        let ttl = Duration::from_secs(u64::try_from(reply.ttl).unwrap_or(0));
        if ttl.is_zero() {
            return write(format!("lease {id:016x} expired or revoked.\n").as_bytes());
        }
        context.print(&KeptAlive(reply.into_inner()))?;
        sleep((ttl / 3).max(RENEWAL_PAUSE_MIN)).await;
    }
}
