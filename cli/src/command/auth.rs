//! `auth`: switches authentication on and off.

use clap::{Args, Subcommand};
use conclave_client::Error;

use super::Context;
use crate::{
    failure::Failure,
    output::{AuthStatus, write},
};

/// The user and the role that must exist before auth can be enabled.
const ROOT: &str = "root";
const NO_ROOT_ROLE: &str = "etcdserver: root user does not have root role";

/// What to do with auth.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Require authentication for every call; the user root must exist.
    Enable(Nothing),
    /// Stop requiring authentication.
    Disable(Nothing),
    /// Print whether authentication is enabled.
    Status(Nothing),
}

/// No arguments; others are refused in etcdctl's words.
#[derive(Debug, Args)]
pub(crate) struct Nothing {
    #[arg(hide = true)]
    unexpected: Vec<String>,
}

impl Nothing {
    fn check(&self, verb: &str) -> Result<(), Failure> {
        if self.unexpected.is_empty() {
            return Ok(());
        }
        Err(Failure::bad_arguments(format!("auth {verb} command does not accept any arguments")))
    }
}

pub(super) async fn run(context: &Context, verb: Verb) -> Result<(), Failure> {
    let auth = context.client.auth();
    match verb {
        Verb::Enable(nothing) => {
            nothing.check("enable")?;
            let mut answer = auth.enable().await;
            let lacks_role = |error: &Error| {
                error.status().is_some_and(|status| status.message() == NO_ROOT_ROLE)
            };
            if answer.as_ref().is_err_and(lacks_role) {
                auth.role_add(ROOT).await?;
                auth.user_grant_role(ROOT, ROOT).await?;
                answer = auth.enable().await;
            }
            answer?;
            // As etcdctl, whatever the output form.
            write(b"Authentication Enabled\n")
        }
        Verb::Disable(nothing) => {
            nothing.check("disable")?;
            auth.disable().await?;
            write(b"Authentication Disabled\n")
        }
        Verb::Status(nothing) => {
            nothing.check("status")?;
            context.print(&AuthStatus(auth.status().await?.into_inner()))
        }
    }
}
