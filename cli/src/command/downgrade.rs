//! `downgrade`: whether the cluster can go back to an older version. Our servers have only one
//! storage format and refuse to start a downgrade; etcd supports more.

use clap::Subcommand;
use conclave_client::pb::downgrade_request::DowngradeAction;

use super::Context;
use crate::{failure::Failure, output::Downgraded};

/// What to do about a downgrade.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Check whether the cluster can be downgraded to a version.
    Validate {
        /// The version, such as 3.6.0.
        #[arg(value_name = "TARGET_VERSION")]
        version: Vec<String>,
    },
    /// Start a downgrade.
    Enable {
        /// The version, such as 3.6.0.
        #[arg(value_name = "TARGET_VERSION")]
        version: Vec<String>,
    },
    /// Cancel a downgrade.
    Cancel,
}

pub(super) async fn run(context: &Context, verb: Verb) -> Result<(), Failure> {
    let (verb, action, version) = match verb {
        Verb::Validate { version } => ("validate", DowngradeAction::Validate, one(version)?),
        Verb::Enable { version } => ("enable", DowngradeAction::Enable, one(version)?),
        Verb::Cancel => ("cancel", DowngradeAction::Cancel, String::new()),
    };
    let reply = context.client.downgrade(action, &version).await?;
    context.print(&Downgraded { verb, response: reply.into_inner() })
}

fn one(mut versions: Vec<String>) -> Result<String, Failure> {
    match (versions.pop(), versions.is_empty()) {
        (Some(version), true) => Ok(version),
        (None, _) => Err(Failure::bad_arguments("TARGET_VERSION not provided")),
        (Some(_), false) => Err(Failure::bad_arguments("too many arguments")),
    }
}
